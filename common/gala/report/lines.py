"""Which runs of an experiment form one line of a figure, and how a line looks. Pure.

Runs that differ in the seed alone belong together. So do, in a figure over the number of simulators, runs that differ
in that number: a factor that a figure's x axis already shows does not make lines of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from gala.report.canvas import swatch_class
from gala.report.experiment import Entry, Experiment
from gala.report.plots import plural

Attribute = Callable[[Entry], Hashable]


@dataclass(frozen=True, slots=True)
class Line:
    """The runs of one line, or of one row: they differ in the seed and in what the figure's x axis shows."""

    label: str
    algorithm: str
    index: int
    """Of its colour and style; an algorithm that is a line by itself has the same in every figure of an experiment."""
    entries: tuple[Entry, ...]

    @property
    def seeds(self) -> int:
        """Different seeds."""
        return len({entry.seed for entry in self.entries})

    def only(self, entries: Sequence[Entry]) -> Line:
        """The same line of fewer runs: those that have what a figure shows, so that it speaks of no others."""
        return replace(self, entries=tuple(entries))


def lines(experiment: Experiment, entries: Sequence[Entry], x: Attribute | None = None) -> list[Line]:
    """The lines that `entries` form, in the order of the experiment's runs.

    Args:
        entries: some of the experiment's, of one environment.
        x: what the x axis shows, if it is not a matter of a single run.
    """
    everything = experiment.entries
    shown: tuple[Attribute, ...] = (_seed, _environment) if x is None else (_seed, _environment, x)
    factors = [
        factor
        for factor in dict.fromkeys(factor for entry in everything for factor in entry.factors)
        if _is_told_apart_by(everything, factor, _algorithm)
        or not any(_is_told_apart_by(everything, factor, attribute) for attribute in shown)
    ]
    factors = [factor for factor in factors if len({entry.factors.get(factor) for entry in everything}) > 1]
    by_algorithm = [factor for factor in factors if _is_told_apart_by(everything, factor, _algorithm)]
    others = [factor for factor in factors if factor not in by_algorithm]

    def key(entry: Entry) -> tuple[str | None, ...]:
        return (entry.algorithm, *(entry.factors.get(factor) for factor in factors))

    order = list(dict.fromkeys(key(entry) for entry in everything))
    groups: defaultdict[tuple[str | None, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[key(entry)].append(entry)
    result = []
    for i, wanted in enumerate(order):
        if members := groups.get(wanted):
            levels = [f"{factor} {members[0].factors[factor]}" for factor in others if factor in members[0].factors]
            names = [members[0].factors[factor] for factor in by_algorithm if factor in members[0].factors]
            label = ", ".join([*(names[:1] or [members[0].algorithm]), *levels])
            result.append(Line(label, members[0].algorithm, i, tuple(members)))
    return result


def legend(drawn: Sequence[Line]) -> tuple[tuple[str, str], ...]:
    """(CSS class of the swatch, label) of each line."""
    return tuple((swatch_class(line.index), line.label) for line in drawn)


def seeds_note(drawn: Sequence[Line]) -> str:
    """Over how many seeds: "10 seeds per line." or what the lines have."""
    counts = [line.seeds for line in drawn]
    if len(set(counts)) == 1:
        return "One seed per line." if counts[0] == 1 else f"{counts[0]} seeds per line."
    return "Seeds: " + ", ".join(f"{line.label} {count}" for line, count in zip(drawn, counts, strict=True)) + "."


def left_out_note(everything: Sequence[Line], shown: Sequence[Line], lacking: str) -> str:
    """Which runs a figure leaves out, and what became of them: "Without 3 of 5 runs: 2 failed, 1 has not ended."

    Args:
        everything: the lines with all of their runs.
        shown: with those that the figure shows; a line of which it shows none may be missing.
        lacking: what it does not find in those that it leaves out although they have finished.
    """
    names = {entry.name for line in shown for entry in line.entries}
    told: list[tuple[str, str, str]] = []
    for line in everything:
        if missing := [entry for entry in line.entries if entry.name not in names]:
            count = f"{len(missing)} of {plural(len(line.entries), 'run')}"
            told.append((line.label, count, _what_became_of(missing, lacking)))
    if not told:
        return ""
    if len(told) == len(everything) and len({(count, fate) for _, count, fate in told}) == 1:
        _, count, fate = told[0]
        return f"Without {count}{' per line' if len(told) > 1 else ''}: {fate}."
    return f"Without {'; '.join(f'{count} of {label}: {fate}' for label, count, fate in told)}."


def unfinished_note(shown: Sequence[Line]) -> str:
    """Which runs that a figure of returns shows have failed or not ended, and how they count; "" if there are none."""
    told = [
        (line.label, _what_became_of(unfinished))
        for line in shown
        if (unfinished := [entry for entry in line.entries if entry.state != "finished"])
    ]
    if not told:
        return ""
    entries = [entry for line in shown for entry in line.entries]
    parts = [f"Not finished, {'; '.join(f'of {label}: {fate}' for label, fate in told)}."]
    if any(entry.state == "failed" for entry in entries):
        parts.append("A run that failed keeps its last return to the end.")
    if not all(entry.has_ended for entry in entries):
        parts.append("One that has not ended counts as far as it got.")
    return " ".join(parts)


def _what_became_of(entries: Sequence[Entry], otherwise: str = "") -> str:
    """2 failed, 1 has not ended, and of those that have finished what `otherwise` says."""
    failed = sum(entry.state == "failed" for entry in entries)
    waiting = sum(not entry.has_ended for entry in entries)
    rest = len(entries) - failed - waiting
    parts = (
        f"{failed} failed" if failed else "",
        f"{waiting} {'has' if waiting == 1 else 'have'} not ended" if waiting else "",
        f"{rest} {otherwise}" if rest else "",
    )
    return ", ".join(part for part in parts if part)


def shared_machine_note(entries: Sequence[Entry]) -> str:
    """A warning where runs went on side by side, so that their times tell little; else ""."""
    most = max((entry.side_by_side for entry in entries), default=0)
    if most > 1:
        return f"Up to {most} runs shared the machine at a time: times and energy are not those of a run alone."
    if any(entry.side_by_side == 0 and entry.run is not None for entry in entries):
        return "What else ran on the machines is not known."
    return ""


def _is_told_apart_by(entries: Sequence[Entry], factor: str, attribute: Attribute) -> bool:
    """Whether `factor` is `attribute` by another name: in the runs of each algorithm, the one determines the other.

    Within an algorithm, since a level may mean another number of simulators for an algorithm with a server.
    """
    if attribute is _algorithm:
        return factor == "algorithm" or _one_to_one(
            [(entry.factors.get(factor), _algorithm(entry)) for entry in entries]
        )
    algorithms = {entry.algorithm for entry in entries}
    return all(
        _one_to_one([(e.factors.get(factor), attribute(e)) for e in entries if e.algorithm == algorithm])
        for algorithm in algorithms
    ) and any(
        len({attribute(entry) for entry in entries if entry.algorithm == algorithm}) > 1 for algorithm in algorithms
    )


def _one_to_one(pairs: Sequence[tuple[Hashable, Hashable]]) -> bool:
    different = set(pairs)
    return len({a for a, _ in different}) == len(different) == len({b for _, b in different})


def _seed(entry: Entry) -> Hashable:
    return entry.seed


def _environment(entry: Entry) -> Hashable:
    return entry.environment


def _algorithm(entry: Entry) -> Hashable:
    return entry.algorithm
