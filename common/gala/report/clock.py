"""One wall-clock for all learners of a run.

A learner's own `wallSeconds` is its time in training, carried from checkpoint to checkpoint: after a crash it goes
back, and two learners' differ by what each was away. On the time of day, with the times cut out in which nobody ran,
the learners' curves lie over each other as things happened.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from gala.report.read import Learner, Record, number

SHORTEST_STOP_SECONDS = 15.0
"""Silence of all learners at once that may count as the run being stopped. Learners write every few seconds."""


def on_one_clock(learners: Sequence[Learner]) -> tuple[Learner, ...]:
    """The learners with every record's `wallSeconds` replaced by the run's: since its first record, without stops.

    A record without a time keeps what it has.
    """
    times = sorted(
        moment
        for learner in learners
        for record in (*learner.train, *learner.events, *learner.evaluations)
        if not math.isnan(moment := number(record, "time"))
    )
    if not times:
        return tuple(learners)
    steps = [after - before for before, after in itertools.pairwise(times)]
    longest = max(SHORTEST_STOP_SECONDS, 4 * median(_own_steps(learners) or [0.0]))
    walls = list(itertools.accumulate((step if step <= longest else 0.0 for step in steps), initial=0.0))

    def placed(record: Record) -> Record:
        moment = number(record, "time")
        if math.isnan(moment):
            return record
        return {**record, "wallSeconds": walls[bisect_right(times, moment) - 1]}

    return tuple(
        replace(
            learner,
            train=tuple(map(placed, learner.train)),
            evaluations=tuple(map(placed, learner.evaluations)),
            events=tuple(map(placed, learner.events)),
        )
        for learner in learners
    )


def _own_steps(learners: Sequence[Learner]) -> list[float]:
    """Seconds between two train records of the same learner."""
    steps = (
        number(after, "time") - number(before, "time")
        for learner in learners
        for before, after in itertools.pairwise(learner.train)
    )
    return [step for step in steps if not math.isnan(step)]
