"""Ranks that the others wait for, where the algorithm has such: what it means that one is away, or lost for good.

`plan.essential` names them. Gossip has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from gala_operator import conditions, times
from gala_operator.learners import FAILED, FINISHED, Learner
from gala_operator.ring import Ring
from gala_operator.situation import Situation

AWAY: Final = "EssentialLearnerAway"
"""Reason of Progressing while the others wait."""
LOST: Final = "EssentialLearnerFailed"
"""Reason of Failed."""
PATIENCE: Final = timedelta(seconds=60)
"""For a centre to finish as well, when those around it have."""


def away(situation: Situation, learners: Sequence[Learner]) -> Learner | None:
    """The first that is not ready although others are: these wait for it."""
    if not any(learner.ready for learner in learners):
        return None
    return next((each for each in learners if each.rank in situation.plan.essential and not each.ready), None)


def lost(situation: Situation, learners: Sequence[Learner]) -> Learner | None:
    """The first that has used up its restarts."""
    return next((each for each in learners if each.rank in situation.plan.essential and each.state == FAILED), None)


def waiting(situation: Situation, learner: Learner) -> str:
    """That the others wait for it, and what it goes on from, as a sentence without its full stop."""
    return f"the others wait for {learner.name}, which {_goes_on(situation, learner)}"


def stranded(
    situation: Situation, learners: Sequence[Learner], ring: Ring
) -> tuple[Sequence[Learner], datetime | None]:
    """Those that keep no state and have finished, while the centre has not and is alone.

    They were told of an end that was then lost, with a centre that came back from before it. They wait to be released,
    and it waits for them. They have nothing to lose, so they are replaced: their successors join it.

    While the wait of `PATIENCE` lasts: nobody, and when it ends.
    """
    keepers = [learner for learner in learners if learner.rank in situation.plan.keepers]
    finished = [
        learner
        for learner in learners
        if learner not in keepers and learner.state == FINISHED and learner.pod is not None
    ]
    if ring.formed or not finished or not all(_is_alone(keeper) for keeper in keepers):
        return (), None
    before = conditions.read(situation.run.status).get("RingFormed", {})
    since = times.read(before.get("lastTransitionTime")) if before.get("status") == "False" else None
    until = (since or situation.now) + PATIENCE
    return (finished, None) if until <= situation.now else ((), until)


def _is_alone(keeper: Learner) -> bool:
    """At work, and connected to nobody."""
    return keeper.ready and keeper.state != FINISHED and keeper.progress is not None and not keeper.progress.in_peers


def _goes_on(situation: Situation, learner: Learner) -> str:
    keepers = situation.plan.keepers
    if any(rank != learner.rank for rank in keepers):
        return "goes on from their state"
    if situation.spec.checkpoint.volume is None:
        return "starts over when it is back: there is no spec.checkpoint.volume"
    return "goes on from its checkpoint"
