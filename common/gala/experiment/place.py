"""Where the runs of an experiment happen: the seam between the loop and this machine, or a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gala.experiment.index import State
from gala.experiment.matrix import PlannedRun


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """What there is of a run."""

    state: State
    steps: int = 0
    """Decisions made so far, all learners together."""
    wall_seconds: float = 0.0
    reason: str = ""
    """Of failed and interrupted, where known: why, in one line."""
    changes: str = ""
    """How the run that is there differs from the one that is asked for: `spec.totalSteps 1000 -> 2000`."""


class Place(Protocol):
    """What the loop asks. Every method may raise GalaError; UnreachableError means: ask again later."""

    goes_on: bool
    """Whether runs go on when we leave."""
    side_by_side: int
    """How many runs share a machine at most; 0 = not known."""

    def sight(self, run: PlannedRun) -> Sight:
        """The run as it is now, started by us or earlier."""

    def start(self, run: PlannedRun, *, afresh: bool) -> bool:
        """Start or resume it; `afresh`: remove what is there of it first.

        False: not yet, another `gala run` is at work in it.
        """

    def has_room(self, going: int) -> bool:
        """Whether one more may start while `going` are under way."""

    def stop(self) -> None:
        """Ask the runs to stop, if they do not go on without us; they are to be resumed. Again: with less patience."""

    def kill(self) -> None:
        """Leave nothing behind on this machine."""
