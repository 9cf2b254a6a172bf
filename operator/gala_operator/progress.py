"""Learning progress for the status, from the learners' last answers, renewed no more often than the settings say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from gala_operator import times
from gala_operator.learners import WORKING, Learner
from gala_operator.observed import LearnerProgress
from gala_operator.situation import Situation

RUN_FIELDS: Final = ("steps", "stepsPerSecond", "meanReturn", "disagreement")
LEARNER_FIELDS: Final = ("steps", "stepsPerSecond", "meanReturn", "staleness", "disagreement")


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """What the status is to say in numbers."""

    run: Mapping[str, Any]
    """`RUN_FIELDS` and progressTime, as far as they are known."""
    learners: Mapping[int, Mapping[str, Any]]
    """`LEARNER_FIELDS` and state by rank."""
    due: datetime | None
    """When numbers that have changed may be written."""


def numbers(situation: Situation, learners: Sequence[Learner], *, at_once: bool) -> Numbers:
    """The numbers of the last status while they are young, else the present ones; `at_once` = a change of state is
    written anyway."""
    status = situation.run.status
    old_run = _pick(status, RUN_FIELDS)
    old_learners = {rank: _pick(entry, LEARNER_FIELDS) for rank, entry in situation.entries.items()}
    new_learners = {learner.rank: _of_learner(situation, learner) for learner in learners}
    new_run = _of_run(situation, learners, new_learners) or old_run
    taken = times.read(status.get("progressTime"))
    old_states = {rank: str(entry.get("state")) for rank, entry in situation.entries.items()}
    states = {learner.rank: learner.state for learner in learners}

    changed = new_run != old_run or any(
        new_learners[rank] != old_learners.get(rank, {}) or states[rank] != old_states.get(rank) for rank in states
    )
    due = None if taken is None else taken + timedelta(seconds=situation.settings.status_seconds)
    if changed and (at_once or due is None or due <= situation.now):
        run = {**new_run, **({"progressTime": times.write(situation.now)} if new_run else {})}
        return Numbers(run=run, learners=_with_state(new_learners, states), due=None)
    for rank, state in states.items():
        # Between these two a learner changes all the time; every other change of state is news.
        if state in WORKING and old_states.get(rank) in WORKING:
            states[rank] = old_states[rank]
    kept = {rank: old_learners.get(rank, {}) for rank in states}
    run = {**old_run, **({"progressTime": status["progressTime"]} if taken is not None else {})}
    return Numbers(run=run, learners=_with_state(kept, states), due=due if changed else None)


def _with_state(learners: Mapping[int, Mapping[str, Any]], states: Mapping[int, str]) -> dict[int, dict[str, Any]]:
    return {rank: {"state": states[rank], **fields} for rank, fields in learners.items()}


def _of_learner(situation: Situation, learner: Learner) -> dict[str, Any]:
    progress = situation.observed.progress.get(learner.rank)
    if progress is None:
        return _pick(situation.entries.get(learner.rank, {}), LEARNER_FIELDS)
    at_work = learner.progress is not None and learner.ready and learner.state in WORKING
    return _known(
        steps=max(0, progress.steps),
        stepsPerSecond=_round(progress.steps_per_second, 1) if at_work else 0.0,
        meanReturn=_round(progress.mean_return, 2),
        staleness=None if progress.staleness is None else max(0, progress.staleness),
        disagreement=_significant(progress.disagreement),
    )


def _of_run(
    situation: Situation, learners: Sequence[Learner], by_rank: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    answers: list[LearnerProgress] = [
        situation.observed.progress[learner.rank] for learner in learners if learner.rank in situation.observed.progress
    ]
    if not answers:
        return {}
    returns = [fields["meanReturn"] for fields in by_rank.values() if "meanReturn" in fields]
    distances = [fields["disagreement"] for fields in by_rank.values() if "disagreement" in fields]
    return _known(
        steps=max(0, *(answer.global_steps for answer in answers)),
        stepsPerSecond=_round(sum(fields.get("stepsPerSecond", 0.0) for fields in by_rank.values()), 1),
        meanReturn=_round(sum(returns) / len(returns), 2) if returns else None,
        disagreement=max(distances) if distances else None,
    )


def _pick(mapping: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    return {field: mapping[field] for field in fields if field in mapping}


def _known(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _round(value: float | None, digits: int) -> float | None:
    return round(float(value), digits) if value is not None and math.isfinite(value) else None


def _significant(value: float | None) -> float | None:
    """Three digits: more is noise, and every digit is a reason to write."""
    return float(f"{value:.3g}") if value is not None and math.isfinite(value) else None
