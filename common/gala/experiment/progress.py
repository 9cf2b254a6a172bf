"""How far an experiment is, and how long the rest will take. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
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
    seconds: defaultdict[Hashable, float] = defaultdict(float)
    steps: defaultdict[Hashable, int] = defaultdict(int)
    for entry in entries:
        if entry.wall_seconds > 0 and made(entry) > 0:
            for pool in _pools(entry):
                seconds[pool] += entry.wall_seconds
                steps[pool] += made(entry)
    total, rest = 0.0, 0
    for entry in entries:
        if entry.state in ("finished", "failed"):
            continue
        pool = next((pool for pool in _pools(entry) if steps[pool]), None)
        if pool is None:
            return None
        total += seconds[pool] / steps[pool] * (entry.total_steps - made(entry))
        rest += 1
    return total / max(1, min(at_once, rest))


def _pools(entry: RunEntry) -> tuple[Hashable, ...]:
    """Which runs tell the pace of this one, the best first."""
    return ("alike", _group(entry)), ("environment", entry.environment), "all"


def _group(entry: RunEntry) -> tuple[Level, ...]:
    return tuple(level for factor, level in entry.factors.items() if factor != "seed")
