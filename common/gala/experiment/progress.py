"""How far an experiment is, and how long the rest will take. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gala.experiment.index import Index, Level, RunEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The runs that differ in nothing but their seed."""

    levels: tuple[Level, ...]
    """Of every factor but the seed."""
    finished: int
    running: int
    failed: int
    left: int
    """Neither of these: waiting, or interrupted."""
    share: float
    """Of all their decisions, in [0, 1]."""

    @property
    def size(self) -> int:
        """Runs in all."""
        return self.finished + self.running + self.failed + self.left


def groups(index: Index) -> list[Group]:
    """In the order of the definition."""
    found: dict[tuple[Level, ...], list[RunEntry]] = {}
    for entry in index.runs:
        found.setdefault(_group(entry), []).append(entry)
    return [summed(entries, levels) for levels, entries in found.items()]


def summed(entries: Sequence[RunEntry], levels: tuple[Level, ...] = ()) -> Group:
    """Some runs in one row."""
    states = [entry.state for entry in entries]
    total = sum(entry.total_steps for entry in entries)
    return Group(
        levels=levels,
        finished=states.count("finished"),
        running=states.count("running"),
        failed=states.count("failed"),
        left=states.count("waiting") + states.count("interrupted"),
        share=sum(made(entry) for entry in entries) / total if total else 0.0,
    )


def made(entry: RunEntry) -> int:
    """Decisions that count as made: never more than were asked for."""
    return entry.total_steps if entry.state == "finished" else min(entry.steps, entry.total_steps)


def eta_seconds(entries: Sequence[RunEntry], at_once: int) -> float | None:
    """Seconds until all runs that have not failed are done; None while nothing is known of their speed.

    A run that nothing is known of takes as long per decision as those that differ from it by their seed, else as those
    in the same environment, else as all that are known.
    """
    rest = [entry for entry in entries if entry.state not in ("finished", "failed")]
    seconds = 0.0
    for entry in rest:
        alike = [other for other in entries if _group(other) == _group(entry)]
        related = [other for other in entries if other.environment == entry.environment]
        pace = _seconds_per_step(alike) or _seconds_per_step(related) or _seconds_per_step(entries)
        if pace is None:
            return None
        seconds += pace * (entry.total_steps - made(entry))
    return seconds / max(1, min(at_once, len(rest)))


def _seconds_per_step(entries: Iterable[RunEntry]) -> float | None:
    known = [entry for entry in entries if entry.wall_seconds > 0 and made(entry) > 0]
    steps = sum(made(entry) for entry in known)
    return sum(entry.wall_seconds for entry in known) / steps if steps else None


def _group(entry: RunEntry) -> tuple[Level, ...]:
    return tuple(level for factor, level in entry.factors.items() if factor != "seed")
