"""The schema of a GalaRun's status, as it goes into the CRD. The operator writes it, `gala status` reads it."""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

from gala import names
from gala.spec_schema import Schema

ENDED: Final = ("Succeeded", "Failed")
"""States that a run never leaves."""
STATES: Final = ("Pending", "Starting", "Running", "Degraded", "Suspended", *ENDED)
ConditionType = Literal["Accepted", "PodsReady", "RingFormed", "Progressing", "Suspended", "Succeeded", "Failed"]
CONDITIONS: Final[tuple[ConditionType, ...]] = get_args(ConditionType)
"""In the order in which they stand in a status."""
LEARNER_STATES = (
    *("pending", "starting", "training", "waiting", "stopping"),
    *("finished", "backing off", "failed"),
)


def schema() -> Schema:
    """The structural schema of `.status`."""
    return _field(
        "object",
        "What the operator has observed. Nobody else writes it.",
        properties={
            "state": _field("string", f"The run in one word: {', '.join(STATES)}.", maxLength=64),
            "message": _field("string", "Why it is so, in one sentence.", maxLength=1024),
            "observedGeneration": _field("integer", "The spec's generation that this status is about.", format="int64"),
            "conditions": _conditions(),
            "learners": _field("integer", "Learners of the plan in force.", format="int32", minimum=0),
            "readyLearners": _field("integer", "Learners that are in the ring.", format="int32", minimum=0),
            "ready": _field("string", "readyLearners of learners, such as 3/4.", maxLength=16),
            "selector": _field(
                "string", "Label selector of the learners' pods, for the scale subresource.", maxLength=1024
            ),
            "epoch": _field(
                "integer", "Of the plan in force; it grows with every change of it.", format="int64", minimum=0
            ),
            **_numbers(),
            "progressTime": _time("When those numbers were taken."),
            "startTime": _time("When the run became active, for the first time or after being suspended."),
            "finishingTime": _time("When the first learner had finished."),
            "completionTime": _time("When the run ended."),
            "learnerStatuses": _learners(),
            "results": _field("object", "Failures of the pod that makes the final model.", properties=_failures()),
            "finalModel": _final_model(),
        },
    )


def _field(kind: str, description: str, **more: Any) -> Schema:
    return {"description": description, "type": kind, **more}


def _time(description: str) -> Schema:
    return _field("string", description, format="date-time")


def _numbers() -> dict[str, Schema]:
    return {
        "steps": _field("integer", "Agent decisions so far, over all learners.", format="int64", minimum=0),
        "stepsPerSecond": _field("number", "Agent decisions per second, over all learners."),
        "meanReturn": _field("number", "Mean return of the last episodes, over all learners."),
        "disagreement": _field(
            "number", "Relative distance of a learner's parameters from its neighbour's, the largest."
        ),
    }


def _conditions() -> Schema:
    condition = {
        "type": _field("string", "Aspect of the run, such as Accepted or RingFormed.", minLength=1, maxLength=316),
        "status": _field("string", "Whether it is so.", enum=["True", "False", "Unknown"]),
        "observedGeneration": _field(
            "integer", "The spec's generation that this was seen with.", format="int64", minimum=0
        ),
        "lastTransitionTime": _time("When the status changed last."),
        "reason": _field(
            "string",
            "Why, as one word for programs.",
            pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            maxLength=1024,
        ),
        "message": _field("string", "Why, as a sentence for people.", maxLength=32768),
    }
    return _list_by(
        "type",
        f"In detail: {', '.join(CONDITIONS)}.",
        max_items=32,
        item="One aspect of the run.",
        required=["type", "status", "lastTransitionTime", "reason", "message"],
        properties=condition,
    )


def _learners() -> Schema:
    return _list_by(
        "rank",
        "The learners, one by one.",
        max_items=names.MAX_LEARNERS,
        item="One learner.",
        required=["rank", "state"],
        properties={
            "rank": _field("integer", "Its rank, from 0.", format="int32", minimum=0),
            "state": _field("string", f"What it does: {', '.join(LEARNER_STATES)}.", maxLength=64),
            "ready": {"description": "Whether it is in the ring.", "type": "boolean"},
            "steps": _field("integer", "Agent decisions of this learner.", format="int64", minimum=0),
            "stepsPerSecond": _field("number", "Agent decisions per second of this learner."),
            "meanReturn": _field("number", "Mean return of its last episodes."),
            "staleness": _field(
                "integer",
                "Its updates from the arrival of what it mixed last to the mixing; A3C, IMPALA: mean age, in updates.",
                format="int64",
                minimum=0,
            ),
            "disagreement": _field("number", "Relative distance of its parameters from its neighbours'."),
            **_failures(),
        },
    )


def _failures() -> dict[str, Schema]:
    return {
        "failures": _field("integer", "Pods of it that failed; disruptions do not count.", format="int32", minimum=0),
        "lastFailure": _field(
            "object",
            "The last of them.",
            properties={
                "podUID": _field("string", "uid of the pod that failed.", maxLength=128),
                "reason": _field("string", "Why, as one word: OOMKilled, Misconfigured, Error.", maxLength=256),
                "message": _field("string", "The last line of its log, and its exit code.", maxLength=1024),
                "time": _time("When it failed."),
            },
        ),
    }


def _final_model() -> Schema:
    return _field(
        "object",
        "The averaged model and its score.",
        properties={
            "globalSteps": _field("integer", "Agent decisions that it has learned from.", format="int64", minimum=0),
            "meanReturn": _field("number", "Mean return (raw score) of the greedy policy."),
            "sampledMeanReturn": _field("number", "Mean return (raw score) of the policy that samples its actions."),
            "sha256": _field("string", "Of the file model.safetensors.", maxLength=64),
            "averaged": _field(
                "array",
                "Ranks whose parameters are in it.",
                maxItems=names.MAX_LEARNERS,
                items=_field("integer", "A rank.", format="int32", minimum=0),
            ),
            "location": _field("string", "The pod that serves it to `gala fetch`.", maxLength=253),
        },
    )


def _list_by(
    key: str, description: str, *, max_items: int, item: str, required: list[str], properties: dict[str, Schema]
) -> Schema:
    return _field(
        "array",
        description,
        maxItems=max_items,
        items={"description": item, "type": "object", "required": required, "properties": properties},
        **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]},
    )
