"""From processes and their answers to what is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gala.answers import number
from gala.local.polling import Answer
from gala.local.supervisor import Learner
from gala.local.table import LearnerRow, Snapshot, shape
from gala.spec import GalaRun

SILENT_SECONDS: Final = 5.0
"""Without an answer for this long, a worker that has answered before is shown as silent."""


def snapshot(
    run: GalaRun,
    learners: Sequence[Learner],
    answers: Mapping[int, Answer],
    global_steps: int,
    wall_seconds: float,
    note: str,
    now: float,
) -> Snapshot:
    """The run as it stands. `global_steps`: the most that was known before, since every worker sees a part."""
    rows = [
        row(learner, answers.get(learner.plan.rank), now) for learner in sorted(learners, key=lambda it: it.plan.rank)
    ]
    known = [number(answer.status.get("globalSteps")) or 0 for answer in answers.values()]
    spec = run.spec
    return Snapshot(
        name=run.metadata.name,
        environment=spec.environment.id,
        topology=shape(spec.algorithm, spec.topology.type, spec.learners),
        learners=rows,
        global_steps=int(max([global_steps, *known])),
        total_steps=spec.total_steps,
        wall_seconds=wall_seconds,
        note=note,
    )


def row(learner: Learner, answer: Answer | None, now: float) -> LearnerRow:
    """A learner's line: the supervisor knows whether it runs, the worker what it is doing."""
    status = answer.status if answer is not None else {}
    state: str = learner.phase
    moving = False
    if learner.phase == "running":
        if answer is None or answer.time < learner.started:
            state = "starting"
        elif now - answer.time > SILENT_SECONDS:
            state = "silent"
        else:
            state = str(status.get("state", "training"))
            moving = True
    staleness = number(status.get("stalenessUpdates"))
    steps = number(status.get("steps"))
    return LearnerRow(
        rank=learner.plan.rank,
        state=state,
        steps=None if steps is None else int(steps),
        steps_per_second=number(status.get("stepsPerSecond")) if moving else None,
        mean_return=number(status.get("meanReturn")),
        staleness=None if staleness is None else int(staleness),
        disagreement=number(status.get("relativeDisagreement")),
        restarts=learner.backoff.total_restarts,
    )
