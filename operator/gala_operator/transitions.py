"""Events for people, made from the difference between two statuses: each is told once, when it is written down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from gala_operator import conditions, failures, situation, stuck
from gala_operator.actions import RunEvent
from gala_operator.learners import FAILED, WORKING, Learner
from gala_operator.status import STARTS_OVER

_ALIVE = frozenset({"starting", "stopping", *WORKING})


def events(
    before: Mapping[str, Any], after: Mapping[str, Any], learners: Sequence[Learner] = ()
) -> tuple[RunEvent, ...]:
    """What is worth telling about the change from one status to the next."""
    return (*_of_learners(before, learners), *_of_run(before, after))


def _of_learners(before: Mapping[str, Any], learners: Sequence[Learner]) -> Iterator[RunEvent]:
    old = situation.entries(before)
    for learner in learners:
        entry = old.get(learner.rank, {})
        if entry.get("state") == learner.state and entry.get("failures", 0) == learner.tally.failures:
            continue
        if learner.tally.failures > entry.get("failures", 0) and learner.stuck is not None:
            reason = "LearnerFailed" if learner.state == FAILED else "LearnerRestarted"
            yield RunEvent(type="Warning", reason=reason, message=learner.stuck.message)
        elif learner.disrupted and learner.pod is not None and entry.get("state") != learner.state:
            message = f"The cluster ended {learner.name} ({failures.verdict(learner.pod)}); it is replaced."
            yield RunEvent(type="Normal", reason="LearnerDisrupted", message=message)
        elif learner.pod is None and learner.create and entry.get("state") in _ALIVE:
            yield RunEvent(type="Normal", reason="LearnerReplaced", message=f"{learner.name} is gone; it is replaced.")


def _of_run(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[RunEvent]:
    old, new = conditions.read(before), conditions.read(after)

    def became(type_: str, value: str) -> bool:
        return new.get(type_, {}).get("status") == value != old.get(type_, {}).get("status")

    def says(type_: str) -> str:
        return str(new[type_]["message"])

    if became("Accepted", "True"):
        yield RunEvent(type="Normal", reason="Accepted", message=says("Accepted"))
    ready = new.get("PodsReady", {})
    if ready.get("reason") in stuck.WORTH_TELLING and ready.get("reason") != old.get("PodsReady", {}).get("reason"):
        yield RunEvent(type="Warning", reason=str(ready["reason"]), message=says("PodsReady"))
    if became("RingFormed", "True"):
        yield RunEvent(type="Normal", reason="RingFormed", message=says("RingFormed"))
    if after.get("state") == "Degraded" != before.get("state"):
        yield RunEvent(type="Warning", reason="RingDegraded", message=str(after["message"]))
    if before.get("learners") not in (None, after.get("learners")):
        message = f"From {before['learners']} to {after['learners']} learners."
        yield RunEvent(type="Normal", reason="Scaled", message=message)
    if became("Suspended", "True"):
        # To lose what was learned is worth a warning.
        kind: Literal["Normal", "Warning"] = "Warning" if says("Suspended").endswith(STARTS_OVER) else "Normal"
        yield RunEvent(type=kind, reason="Suspended", message=says("Suspended"))
    if old.get("Suspended", {}).get("status") == "True" and became("Suspended", "False"):
        yield RunEvent(type="Normal", reason="Resumed", message=says("Suspended"))
    if "finishingTime" in after and "finishingTime" not in before:
        yield RunEvent(type="Normal", reason="Finishing", message=str(after["message"]))
    if became("Succeeded", "True"):
        yield RunEvent(type="Normal", reason="Succeeded", message=says("Succeeded"))
    if became("Failed", "True"):
        yield RunEvent(type="Warning", reason=str(new["Failed"]["reason"]), message=says("Failed"))
