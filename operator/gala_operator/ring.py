"""Whether the learners hear each other: the condition RingFormed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gala import names
from gala.plan import RunPlan
from gala_operator import conditions
from gala_operator.learners import FINISHED, Learner
from gala_operator.observed import LearnerProgress
from gala_operator.situation import Situation

FORMING: Final = "Forming"
"""Reason while the ring has not been whole yet; any other one says that it was before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ring:
    """The condition RingFormed."""

    formed: bool
    reason: str
    message: str

    @property
    def was_formed(self) -> bool:
        """Whether it is, or was before."""
        return self.reason != FORMING


def assess(situation: Situation, learners: Sequence[Learner]) -> Ring:
    """Formed: every learner that is ready knows the plan and hears a neighbour, and all whom it cannot do without.

    The first time it waits for all learners but those that are stuck, so that a start is not taken for a loss.
    """
    status = situation.run.status
    before = conditions.read(status).get("RingFormed", {})
    once = bool(before) and before.get("reason") not in (FORMING, "Suspended")
    was_true = before.get("status") == "True"
    same_size = status.get("learners") == len(learners)
    ready = [learner for learner in learners if learner.ready]
    if not once and (not ready or any(not learner.ready and not learner.troubled for learner in learners)):
        return Ring(formed=False, reason=FORMING, message="Learners are starting.")
    if not ready:
        return Ring(formed=False, reason="NoLearners", message="No learner is ready.")
    unknown = False
    for learner in ready:
        progress = learner.progress
        if learner.state == FINISHED or len(learners) == 1:
            continue
        if progress is None:
            unknown = True
        elif progress.epoch < situation.plan.epoch and not (was_true and same_size):
            return _broken(once, f"{learner.name} has not taken up plan {situation.plan.epoch} yet.")
        elif (lack := _lack(situation.plan, learner, progress)) is not None:
            return _broken(once, lack)
    if unknown and not was_true:
        return _broken(once, "Not every learner has been asked yet.")
    return Ring(formed=True, reason="Formed", message=_whole(situation.plan))


def _lack(plan: RunPlan, learner: Learner, progress: LearnerProgress) -> str | None:
    """What keeps a learner apart: that it hears nobody, or not everybody whom it cannot do without."""
    needed = set(plan.learner(learner.rank).in_peers) & set(plan.essential)
    if missing := sorted(needed - set(progress.in_peers)):
        return f"{learner.name} is not connected to {names.learner_name(plan.run_name, missing[0])}."
    if progress.in_peers:
        return None
    return f"{learner.name} {'is connected to no other learner' if plan.essential else 'hears no neighbour'}."


def _whole(plan: RunPlan) -> str:
    if len(plan.learners) == 1:
        return "The only learner needs no other."
    if not plan.essential:
        return "Every learner that is ready hears a neighbour."
    if len(plan.essential) == 1:
        centre = names.learner_name(plan.run_name, plan.essential[0])
        return f"{centre} and every other learner that is ready are connected."
    return "Every learner is connected to every other."


def _broken(once: bool, message: str) -> Ring:
    return Ring(formed=False, reason="Reforming" if once else FORMING, message=message)
