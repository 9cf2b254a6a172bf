"""The run's status: one word, one sentence, the conditions, and the learners one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from gala import names
from gala.status_schema import ENDED
from gala_operator import conditions, essential, failures, stuck, times
from gala_operator.conditions import Conditions
from gala_operator.learners import FAILED, Learner
from gala_operator.progress import RUN_FIELDS, numbers
from gala_operator.results import FINISHING, Finish, Outcome
from gala_operator.ring import Ring
from gala_operator.situation import Situation

MAX_MESSAGE: Final = 1024
DISRUPTED: Final = "Disrupted"
"""Reason of PodsReady while a learner is away that the cluster has ended."""
STARTS_OVER: Final = "without spec.checkpoint.volume its training will start over."


def has_ended(status: Mapping[str, Any]) -> bool:
    """Whether the run is over: for good."""
    return status.get("state") in ENDED


def of_active(
    situation: Situation,
    learners: Sequence[Learner],
    ring: Ring,
    finish: Finish | None,
    outcome: Outcome | None,
    obstacle: str | None,
) -> tuple[dict[str, Any], Any]:
    """The status of a run that is neither suspended nor refused, and when its numbers are due again."""
    before, now = situation.run.status, situation.now
    state = _state(before, learners, ring, finish, outcome)
    figures = numbers(situation, learners, at_once=state != before.get("state"))
    table = Conditions(before, generation=situation.run.generation, now=now)
    table.set("Accepted", True, "Valid", "The spec is valid.")
    ready = sum(learner.ready for learner in learners)
    table.set("PodsReady", *_pods_ready(before, learners, ready, obstacle))
    away = essential.away(situation, learners) if state == "Degraded" and finish is None else None
    waiting = None if away is None else essential.waiting(situation, away)
    if finish is None or not ring.was_formed or ring.formed:
        table.set("RingFormed", ring.formed, ring.reason, ring.message)
    message = _message(state, learners, ready, finish, outcome, obstacle, waiting, table)
    if outcome is not None:
        table.set("Progressing", False, outcome.reason, outcome.message)
        table.set("Succeeded", outcome.succeeded, outcome.reason, outcome.message)
        table.set("Failed", not outcome.succeeded, outcome.reason, outcome.message)
    elif finish is not None:
        table.set("Progressing", True, FINISHING, finish.message)
    elif waiting is not None:
        table.set("Progressing", False, essential.AWAY, f"{waiting[0].upper()}{waiting[1:]}.")
    else:
        reason = "Training" if state in ("Running", "Degraded") else "Starting"
        table.set("Progressing", True, reason, f"{ready} of {len(learners)} learners are ready.")
    if conditions.is_true(before, "Suspended"):
        table.set("Suspended", False, "Resumed", "The run has been resumed.")
    elif "Suspended" in conditions.read(before):
        table.set("Suspended", False, "NotSuspended", "The run is not suspended.")
    status = {
        **head(situation, state, message),
        "conditions": table.document(),
        "learners": len(learners),
        **readiness(ready, len(learners)),
        "epoch": situation.plan.epoch,
        "startTime": before.get("startTime") or times.write(now),
        **figures.run,
        "learnerStatuses": [
            {"rank": learner.rank, "ready": learner.ready, **figures.learners[learner.rank], **learner.tally.document()}
            for learner in learners
        ],
    }
    if finish is not None:
        status["finishingTime"] = times.write(finish.since)
        if finish.tally.failures:
            status["results"] = finish.tally.document()
    if outcome is not None:
        status["completionTime"] = times.write(now)
        if outcome.final_model is not None:
            status["finalModel"] = dict(outcome.final_model)
    return status, figures.due


def of_suspended(situation: Situation) -> dict[str, Any]:
    """The status of a run that is to be suspended, or is. Failures are forgiven: a resumed run starts afresh."""
    before, asked = situation.run.status, situation.spec.learners
    gone = not situation.pods
    lost = next(filter(None, (stuck.of_deletion(pod, situation.now) for pod in situation.pods.values())), None)
    table = Conditions(before, generation=situation.run.generation, now=situation.now)
    table.set("Accepted", True, "Valid", "The spec is valid.")
    if gone:
        is_lost = situation.spec.checkpoint.volume is None and ("epoch" in before or "steps" in before)
        message = f"The run is suspended; {STARTS_OVER}" if is_lost else "The run is suspended."
        state, reason = "Suspended", "Suspended"
    else:
        state, reason = str(before.get("state") or "Pending"), "Stopping"
        message = "The learners write a checkpoint and stop."
    if lost is not None:
        message = f"{lost.reason}: {lost.message}"
    table.set("PodsReady", False, reason if lost is None else lost.reason, message)
    table.set("RingFormed", False, "Suspended", message)
    table.set("Progressing", False, "Suspended", message)
    table.set("Suspended", gone, reason, message)
    status = {
        **head(situation, state, message),
        "conditions": table.document(),
        "learners": asked,
        **readiness(0, asked),
        **{name: before[name] for name in ("epoch", *RUN_FIELDS, "progressTime") if name in before},
        "learnerStatuses": [
            {"rank": rank, "ready": False, "state": state_of, "failures": 0}
            for rank in range(asked)
            for state_of in (
                "stopping" if names.learner_name(situation.run.name, rank) in situation.pods else "pending",
            )
        ],
    }
    if "stepsPerSecond" in status:
        status["stepsPerSecond"] = 0.0
    return status


def with_problem(
    status: Mapping[str, Any], reason: str, message: str, *, generation: int, now: datetime
) -> dict[str, Any]:
    """The status of a run for which something could not be done: the API server refused it, or a name is taken.

    `PodsReady` says so as well, unless all are ready all the same, or one of them needs help for a reason of its own
    (overwritten it would be news again at the next look), or the run is over. For as long as the problem lasts each
    pass ends with the same status, so it is written once.
    """
    table = Conditions(status, generation=generation, now=now)
    stays = conditions.is_true(status, "PodsReady") or has_ended(status)
    if not stays and conditions.reason(status, "PodsReady") not in stuck.WORTH_TELLING:
        table.set("PodsReady", False, reason, message)
    return {**status, "message": f"{reason}: {message}"[:MAX_MESSAGE], "conditions": table.document()}


def head(situation: Situation, state: str, message: str) -> dict[str, Any]:
    """What every status begins with."""
    run = situation.run
    return {
        "state": state,
        "message": message[:MAX_MESSAGE],
        "observedGeneration": run.generation,
        "selector": f"{names.LABEL_RUN}={run.name},{names.LABEL_RANK}",
    }


def readiness(ready: int, asked: int) -> dict[str, Any]:
    """For programs and for the printer column."""
    return {"readyLearners": ready, "ready": f"{ready}/{asked}"}


def _state(
    before: Mapping[str, Any],
    learners: Sequence[Learner],
    ring: Ring,
    finish: Finish | None,
    outcome: Outcome | None,
) -> str:
    if outcome is not None:
        return "Succeeded" if outcome.succeeded else "Failed"
    previous = before.get("state")
    if finish is not None:
        return previous if previous in ("Running", "Degraded") else "Running"
    ready = sum(learner.ready for learner in learners)
    if ready == len(learners):
        return "Running"
    if ready == 0:
        nothing_yet = previous in (None, "Pending", "Suspended") and all(learner.pod is None for learner in learners)
        return "Pending" if nothing_yet else "Starting"
    if not ring.was_formed and not any(learner.troubled for learner in learners):
        return "Starting"
    return "Degraded"


def worst(learners: Sequence[Learner]) -> Learner | None:
    """The learner whose trouble the status speaks of: one that is left out, else the first."""
    troubled = [learner for learner in learners if learner.troubled]
    return next((learner for learner in troubled if learner.state == FAILED), troubled[0] if troubled else None)


def _pods_ready(
    before: Mapping[str, Any], learners: Sequence[Learner], ready: int, obstacle: str | None
) -> tuple[bool, str, str]:
    if ready == len(learners):
        return True, "AllReady", f"{ready} of {ready} learners are ready."
    trouble = worst(learners)
    if trouble is not None and trouble.stuck is not None:
        return False, trouble.stuck.reason, _kept(before, trouble.stuck)
    if obstacle is not None:
        return False, stuck.NAME_CONFLICT, obstacle
    disruption = _disruption(before, learners)
    if disruption is not None:
        return False, DISRUPTED, disruption
    return False, "Waiting", f"{ready} of {len(learners)} learners are ready."


def _disruption(before: Mapping[str, Any], learners: Sequence[Learner]) -> str | None:
    """Whom the cluster ended, and why; it is said until that learner is ready again."""
    for learner in learners:
        if learner.disrupted and learner.pod is not None:
            return f"{learner.name}: the cluster ended it ({failures.verdict(learner.pod)}); it is replaced."
    old = conditions.read(before).get("PodsReady", {})
    said = str(old.get("message"))
    lasts = any(not learner.ready and said.startswith(f"{learner.name}: ") for learner in learners)
    return said if old.get("reason") == DISRUPTED and lasts else None


def _kept(before: Mapping[str, Any], why: stuck.Stuck) -> str:
    old = conditions.read(before).get("PodsReady", {})
    if why.is_repetition and old.get("reason") == why.reason:
        return str(old.get("message"))
    return why.message


def _message(
    state: str,
    learners: Sequence[Learner],
    ready: int,
    finish: Finish | None,
    outcome: Outcome | None,
    obstacle: str | None,
    waiting: str | None,
    table: Conditions,
) -> str:
    if outcome is not None:
        return outcome.message
    if finish is not None:
        return finish.message
    if state == "Running":
        return "All learners are training." if len(learners) > 1 else "The learner is training."
    said = f"{ready} of {len(learners)} learners are ready"
    if waiting is not None:
        said = f"{said}; {waiting}"
    if worst(learners) is not None:
        pods_ready = next(entry for entry in table.document() if entry["type"] == "PodsReady")
        return f"{said}; {pods_ready['reason']}: {pods_ready['message']}"
    return f"{said}; {obstacle}." if obstacle is not None else f"{said}."
