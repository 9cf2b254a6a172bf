"""Ranks that the others wait for, where the algorithm has such: what it means that one is away, or lost for good.

`plan.essential` names them. Gossip has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gala_operator.learners import FAILED, Learner
from gala_operator.situation import Situation

AWAY: Final = "EssentialLearnerAway"
"""Reason of Progressing while the others wait."""
LOST: Final = "EssentialLearnerFailed"
"""Reason of Failed."""


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


def _goes_on(situation: Situation, learner: Learner) -> str:
    keepers = situation.plan.keepers
    if any(rank != learner.rank for rank in keepers):
        return "goes on from their state"
    if situation.spec.checkpoint.volume is None:
        return "starts over when it is back: there is no spec.checkpoint.volume"
    return "goes on from its checkpoint"
