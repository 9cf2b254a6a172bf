"""A run whose spec cannot be acted on: the answer is in its status, and whatever runs is left alone."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from gala import names
from gala.errors import SpecError
from gala.spec import GalaRun, immutable_fields
from gala_operator import children, conditions, manifests, situation, status
from gala_operator.actions import Actions, RunEvent
from gala_operator.conditions import Conditions
from gala_operator.learners import is_ready
from gala_operator.observed import Observed, RunObject

INVALID: Final = "InvalidSpec"
FIELD_CHANGED: Final = "ImmutableFieldChanged"


def invalid(run: RunObject, observed: Observed, now: datetime, error: SpecError) -> Actions:
    """The answer to a spec with problems: all of them."""
    problems = [str(problem) for problem in error.problems]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return _refuse(run, observed, now, INVALID, "\n".join(problems), f"The spec is invalid: {problems[0]}{more}")


def changed(run: RunObject, document: GalaRun, observed: Observed, now: datetime) -> Actions | None:
    """The answer to a change of what may not change, for API servers that let it through; None if there is none."""
    child = children.plan_child(run, observed)
    annotations = {} if child is None else child.annotations
    if annotations.get(names.ANNOTATION_IMMUTABLE_HASH) not in (None, manifests.immutable_hash(document)):
        *first, last = immutable_fields()
        message = f"{', '.join(first)} and {last} are immutable; change them back, or make a new run."
    elif (
        annotations.get(names.ANNOTATION_COMMON_HASH) not in (None, manifests.common_hash(document))
        and situation.learner_pods(run, observed)
        and not document.spec.run_policy.suspend
    ):
        # Who starts again would read what the others have not.
        message = (
            f"all workers of {document.spec.algorithm} must have the same hyperparameters and precision; change them"
            " back, or set runPolicy.suspend, wait until the run is Suspended, change them, and resume it."
        )
    else:
        return None
    return _refuse(run, observed, now, FIELD_CHANGED, message, f"The change is refused: {message}")


def _refuse(run: RunObject, observed: Observed, now: datetime, reason: str, full: str, short: str) -> Actions:
    table = Conditions(run.status, generation=run.generation, now=now)
    table.set("Accepted", False, reason, full)
    # The learners that were there go on; how many, is still true.
    asked = run.status.get("learners")
    after: dict[str, Any] = {**run.status, "observedGeneration": run.generation, "message": short[: status.MAX_MESSAGE]}
    running = False
    if isinstance(asked, int) and asked > 0:
        ready = sum(is_ready(pod) for pod in situation.learner_pods(run, observed))
        after |= status.readiness(ready, asked)
        running = ready > 0
    after["state"] = run.status.get("state") or "Pending"
    after["conditions"] = table.document()
    was = conditions.read(run.status).get("Accepted", {})
    is_news = (was.get("status"), was.get("message")) != ("False", full[: conditions.MAX_MESSAGE])
    event = RunEvent(type="Warning", reason=reason, message=full)
    return Actions(status=after, events=(event,) if is_news else (), poll=running)
