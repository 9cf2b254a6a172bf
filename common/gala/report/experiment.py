"""Reads an experiment's folder for the report: experiment.json and the run directories beside it.

What the file holds is said in `gala.experiment.index`. A report is written while the experiment is still going, too,
and its files may be damaged: what cannot be read is left out, as in `read`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from gala.answers import json_file
from gala.errors import UsageError
from gala.experiment.index import INDEX_FILE
from gala.report.clock import on_one_clock
from gala.report.read import Record, Run, integer, mapping, number, objects, read_run, text

ENDED = frozenset({"finished", "failed"})
"""States of runs that will not go on."""
WAITING = "waiting"
"""The state of a run that has not started. A folder of its name is of an earlier definition, to be started over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One run of an experiment."""

    name: str
    factors: Mapping[str, str]
    """Its level of every factor, as text."""
    environment: str
    algorithm: str
    topology: str
    learners: int
    """Ranks, those that only hold parameters included."""
    total_simulators: int
    total_steps: int
    seed: int
    state: str
    side_by_side: int
    """The most runs that went on at once on its machine, itself included; 0 if that is not known."""
    run: Run | None = field(default=None, repr=False)
    """None before it has started, or if its folder cannot be read."""

    @property
    def has_ended(self) -> bool:
        """Whether it will not go on."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """From which return on a run of an environment counts as convergent."""

    value: float
    measure: str
    """greedy: of the final model's evaluation; training: mean over the learners of their last mean return."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A folder of runs that belong together."""

    directory: Path
    name: str
    description: str
    scale: str
    figures: tuple[str, ...]
    """Names of `figures.FIGURES` that it is for."""
    thresholds: Mapping[str, Threshold]
    """By environment id."""
    entries: tuple[Entry, ...]

    @property
    def environments(self) -> tuple[str, ...]:
        """Ids in the order in which they first appear."""
        return tuple(dict.fromkeys(entry.environment for entry in self.entries))

    @property
    def algorithms(self) -> tuple[str, ...]:
        """Names in the order in which they first appear."""
        return tuple(dict.fromkeys(entry.algorithm for entry in self.entries))

    def of(self, environment: str) -> tuple[Entry, ...]:
        """The runs of one environment."""
        return tuple(entry for entry in self.entries if entry.environment == environment)


def read_experiment(directory: Path) -> Experiment:
    """Reads an experiment's folder with all its runs.

    Raises:
        UsageError: there is no experiment.json, or nothing in it can be read.
    """
    index = json_file(directory / INDEX_FILE)
    if not index:
        raise UsageError(f"{directory}: not an experiment: {INDEX_FILE} is missing, or cannot be read as a JSON object")
    entries = (_entry(directory, record) for record in objects(index, "runs"))
    thresholds = {
        environment: Threshold(value=number(record, "return"), measure=text(record, "measure") or "training")
        for environment, record in mapping(index, "thresholds").items()
        if number(record, "return") == number(record, "return")
    }
    figures = index.get("figures")
    return Experiment(
        directory=directory,
        name=text(index, "name") or directory.resolve().name,
        description=text(index, "description"),
        scale=text(index, "scale"),
        figures=tuple(name for name in figures if isinstance(name, str)) if isinstance(figures, list) else (),
        thresholds=thresholds,
        entries=tuple(entry for entry in entries if entry is not None),
    )


def _entry(directory: Path, record: Record) -> Entry | None:
    name = text(record, "name")
    # A name becomes a path: it must stay within the experiment.
    if not name or name != Path(name).name or name == "..":
        return None
    state = text(record, "state")
    return Entry(
        name=name,
        factors={factor: _level(level) for factor, level in mapping(record, "factors").items()},
        environment=text(record, "environment"),
        algorithm=text(record, "algorithm"),
        topology=text(record, "topology"),
        learners=integer(record, "learners") or 0,
        total_simulators=integer(record, "totalSimulators") or 0,
        total_steps=integer(record, "totalSteps") or 0,
        seed=integer(record, "seed") or 0,
        state=state,
        side_by_side=integer(record, "sideBySide") or 0,
        run=_run(directory / name) if state != WAITING else None,
    )


def _level(level: object) -> str:
    return level if isinstance(level, str) else str(level)


def _run(directory: Path) -> Run | None:
    try:
        run = read_run(directory)
    except (UsageError, OSError):
        return None
    return replace(run, learners=on_one_clock(run.learners))
