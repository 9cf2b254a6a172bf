"""From a definition to the documents of its runs. Pure.

Every value of a run is traced back to where it stands in the definition, so that what is wrong with a run is said
there, once, however many runs it is wrong for.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gala import names, spec
from gala.errors import MISSING, Problem, SpecError
from gala.experiment.definition import GalaExperiment, Matrix, Override, Scale, Threshold, Variation, When, same
from gala.experiment.draft import Draft, acting_ranks
from gala.experiment.index import Index, Level, RunEntry
from gala.experiment.naming import run_names, slug

SHORT_FORMS: Final[Mapping[str, str]] = {
    "environment": "environment.id",
    "simulators": "environment.simulators",
    "topology": "topology.type",
    "mixing": "gossip.mixing",
}
"""Factors with plain levels whose field of the spec has another name; every other factor is named after its field."""
MAX_RUNS: Final = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One run of the matrix."""

    levels: Mapping[str, Level]
    document: Mapping[str, Any]
    """The GalaRun, without defaults."""
    run: spec.GalaRun
    """The same, validated."""

    @property
    def name(self) -> str:
        """Of the run, its folder, its GalaRun in a cluster."""
        return self.run.metadata.name

    def entry(self) -> RunEntry:
        """Its entry in experiment.json, before anything has happened."""
        of = self.run.spec
        acting = acting_ranks(of.algorithm, of.learners)
        return RunEntry(
            name=self.name,
            factors=self.levels,
            environment=of.environment.id,
            algorithm=of.algorithm,
            topology=of.topology.type,
            learners=of.learners,
            simulators=of.environment.simulators,
            total_simulators=of.environment.simulators * acting,
            total_steps=of.total_steps,
            seed=of.seed,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Expansion:
    """An experiment at one scale, valid in all its parts."""

    name: str
    """Of its folder."""
    experiment: str
    scale: Scale
    description: str
    figures: Sequence[str]
    thresholds: Mapping[str, Threshold]
    factors: Mapping[str, Sequence[Level]]
    runs: Sequence[PlannedRun]
    """In the order in which they are to be started: all that is asked for with the first seed, then with the second."""

    def index(self, entries: Sequence[RunEntry]) -> Index:
        """experiment.json."""
        return Index(
            name=self.name,
            experiment=self.experiment,
            scale=self.scale,
            description=self.description,
            figures=self.figures,
            thresholds={key: {"return": it.value, "measure": it.measure} for key, it in self.thresholds.items()},
            factors=self.factors,
            runs=entries,
        )


def expand(experiment: GalaExperiment, scale: Scale = "full") -> Expansion:
    """The runs at one scale.

    All scales are checked, so that a definition is right or wrong whichever one is asked for.

    Raises: SpecError with every problem, in the definition's own words.
    """
    expansions: dict[str, Expansion] = {}
    problems: list[Problem] = []
    smaller: tuple[Scale, ...] = ("small", "toy")
    scales: list[Scale] = ["full", *(name for name in smaller if getattr(experiment.spec, name) is not None)]
    if scale not in scales:
        raise SpecError([Problem(path=f"spec.{scale}", message="is not there", remedy="add it, or leave the option")])
    for name in scales:
        try:
            expansions[name] = _Expander(experiment, name).expand()
        except SpecError as error:
            told = {(it.path, it.message, repr(it.value)) for it in problems}  # of a larger scale, for its runs
            problems += [it for it in error.problems if (it.path, it.message, repr(it.value)) not in told]
    if problems:
        raise SpecError(problems)
    return expansions[scale]


class _Expander:
    """One scale of one definition."""

    def __init__(self, experiment: GalaExperiment, scale: Scale) -> None:
        self._experiment = experiment
        self._scale = scale
        self._full = experiment.spec
        self._variation: Variation | None = None if scale == "full" else getattr(experiment.spec, scale)
        self.name = experiment.metadata.name if scale == "full" else f"{experiment.metadata.name}-{scale}"
        self._problems: list[Problem] = []

    def expand(self) -> Expansion:
        """Raises: SpecError."""
        factors = self._factors()
        self._check_mentions()
        self._fail_if_any()
        combinations = self._combinations(factors)
        self._fail_if_any()
        runs = self._runs(combinations)
        figures, thresholds = self._figures(), self._thresholds()
        if "convergence" in figures:
            self._check_thresholds(runs, thresholds)
        self._fail_if_any()
        varied = self._variation
        return Expansion(
            name=self.name,
            experiment=self._experiment.metadata.name,
            scale=self._scale,
            description=varied.description if varied and varied.description is not None else self._full.description,
            figures=figures,
            thresholds=thresholds,
            factors=factors,
            runs=runs,
        )

    def _fail_if_any(self) -> None:
        if self._problems:
            raise SpecError(self._problems)

    def _figures(self) -> Sequence[str]:
        return (self._variation and self._variation.figures) or self._full.figures

    def _thresholds(self) -> dict[str, Threshold]:
        return {**self._full.thresholds, **(self._variation.thresholds if self._variation else {})}

    def _matrix(self) -> dict[str, str]:
        """Factor -> the part of the definition that has its levels; factors in their order."""
        places = dict.fromkeys(self._full.matrix, "spec.matrix")
        for name, choices in (self._variation.matrix if self._variation else {}).items():
            if choices:
                places[name] = f"spec.{self._scale}.matrix"
            else:
                places.pop(name, None)
        return places

    def _choices(self, name: str, place: str) -> Sequence[Any]:
        matrix: Matrix = self._full.matrix
        if place != "spec.matrix" and self._variation is not None:
            matrix = self._variation.matrix
        return matrix[name]

    def _factors(self) -> dict[str, list[Level]]:
        factors: dict[str, list[Level]] = {}
        for name, place in self._matrix().items():
            levels = [level for choice in self._choices(name, place) for level in choice.levels()]
            if not levels:
                self._say(f"{place}.{name}", "has no levels", "name at least one, or remove the factor")
            for index, level in enumerate(levels):
                if any(same(level, other) for other in levels[:index]):
                    self._say(f"{place}.{name}", "names a level twice", "remove one of the two", level)
            factors[name] = levels
        return factors

    def _check_mentions(self) -> None:
        """`when` speaks of factors and levels that some scale has: anything else is a slip of the pen."""
        known: dict[str, list[Level]] = {}
        for matrix in (self._full.matrix, *(it.matrix for it in (self._full.small, self._full.toy) if it)):
            for name, choices in matrix.items():
                known.setdefault(name, []).extend(level for choice in choices for level in choice.levels())
        for place, entry in (*self._all("exclude"), *self._all("per")):
            for factor, level in entry.mentioned():
                if factor not in known:
                    self._say(f"{place}.when.{factor}", "is not a factor of the matrix", _close(factor, known))
                elif not any(same(level, other) for other in known[factor]):
                    remedy = _close(str(level), known[factor])
                    self._say(f"{place}.when.{factor}", "is not one of the factor's levels", remedy, level)

    def _all(self, key: str) -> Iterator[tuple[str, Any]]:
        """The entries of `exclude` or `per` that count at this scale, and where they stand."""
        for index, entry in enumerate(getattr(self._full, key)):
            yield f"spec.{key}[{index}]", entry
        for index, entry in enumerate(getattr(self._variation, key) if self._variation else ()):
            yield f"spec.{self._scale}.{key}[{index}]", entry

    def _combinations(self, factors: Mapping[str, Sequence[Level]]) -> list[dict[str, Level]]:
        size = math.prod(map(len, factors.values()))
        if size > MAX_RUNS:
            self._say("spec.matrix", f"makes more than {MAX_RUNS:,} runs", "use fewer levels", size)
            return []
        # The seed turns slowest: after the first round every point of every figure has its first run.
        order = sorted(factors, key=lambda name: name != "seed")
        found = []
        excluded: list[When] = [entry for _, entry in self._all("exclude")]
        for values in itertools.product(*(factors[name] for name in order)):
            by_name = dict(zip(order, values, strict=True))
            levels: dict[str, Level] = {name: by_name[name] for name in factors}
            if not any(entry.matches(levels) for entry in excluded):
                found.append(levels)
        if not found:
            self._say("spec.exclude", "leaves no run", "remove some of it")
        return found

    def _runs(self, combinations: Sequence[Mapping[str, Level]]) -> list[PlannedRun]:
        base = Draft()
        base.merge(self._full.base, "spec.base")
        if self._variation is not None:
            base.merge(self._variation.base, f"spec.{self._scale}.base")
        places = self._matrix()
        overrides: list[tuple[str, Override]] = list(self._all("per"))
        runs = []
        faults: dict[tuple[str, str, str], tuple[Problem, list[str]]] = {}
        for name, levels in zip(run_names(self.name, combinations), combinations, strict=True):
            draft = base.copy()
            try:
                for factor, level in levels.items():
                    self._set_level(draft, factor, level, places[factor])
                for place, override in overrides:
                    if override.matches(levels):
                        draft.merge(override.set, f"{place}.set")
                draft.share_simulators()
                runs.append(self._run(name, levels, draft))
            except SpecError as error:
                for problem in error.problems:
                    key = (problem.path, problem.message, repr(problem.value))
                    faults.setdefault(key, (problem, []))[1].append(name)
        for problem, affected in faults.values():
            where = f"in {len(affected)} of {len(combinations)} runs, such as {affected[0]}"
            remedy = f"{problem.remedy} ({where})" if problem.remedy else where
            self._problems.append(
                Problem(path=problem.path, value=problem.value, message=problem.message, remedy=remedy)
            )
        return runs

    def _set_level(self, draft: Draft, factor: str, level: Level, place: str) -> None:
        for index, choice in enumerate(self._choices(factor, place)):
            if choice.set is not None and same(choice.label, level):
                draft.merge(choice.set, f"{place}.{factor}[{index}].set")
                return
        draft.put(SHORT_FORMS.get(factor, factor), level, f"{place}.{factor}")

    def _run(self, name: str, levels: Mapping[str, Level], draft: Draft) -> PlannedRun:
        labels = {names.LABEL_EXPERIMENT: self.name}
        labels |= {
            f"{names.EXPERIMENT_FACTOR_PREFIX}/{factor}": slug(level)[:63].rstrip("-")
            for factor, level in levels.items()
        }
        document = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name, "labels": labels},
            "spec": draft.spec,
        }
        try:
            return PlannedRun(levels=levels, document=document, run=spec.parse(document))
        except SpecError as error:
            raise SpecError([draft.traced(problem) for problem in error.problems]) from error

    def _check_thresholds(self, runs: Sequence[PlannedRun], thresholds: Mapping[str, Threshold]) -> None:
        for environment in dict.fromkeys(run.run.spec.environment.id for run in runs):
            if environment not in thresholds:
                self._say(
                    f"spec.thresholds.{environment}",
                    "is required by the figure convergence",
                    "add return and measure: when does a run count as converged?",
                )

    def _say(self, path: str, message: str, remedy: str, value: object = MISSING) -> None:
        self._problems.append(Problem(path=path, value=value, message=message, remedy=remedy))


def _close(text: str, options: Sequence[Any] | Mapping[str, Any]) -> str:
    known = {str(option).lower(): str(option) for option in options}
    found = difflib.get_close_matches(text.lower(), known, n=1)
    return f"did you mean {known[found[0]]}?" if found else f"there are {', '.join(known.values())}"
