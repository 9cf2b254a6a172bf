"""What a run's hardware did, as far as the machine and the learners tell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from gala.report import formats
from gala.report.energy import energy
from gala.report.read import Learner, Run, integer, number


@dataclass(frozen=True, slots=True)
class Use:
    """A kind of hardware use."""

    key: str
    name: str
    axis: str
    of: Callable[[Run], float]
    """Mean over a run; NaN if it is not known."""

    def shown(self, value: float) -> str:
        """In a table."""
        return formats.compact(value)


def hardware_use(run: Run) -> dict[str, float]:
    """Each kind that is known, by its key."""
    return {use.key: value for use in USES if not math.isnan(value := use.of(run))}


def cores(run: Run) -> float:
    """Processor cores that the learners kept busy together, mean over the run's time; NaN if none has told.

    From the learners' own count of CPU time, over the time between their first and last record.
    """
    each = [value for learner in run.learners if not math.isnan(value := _cores(learner))]
    return sum(each) if each else math.nan


def watts(run: Run) -> float:
    """Mean power of processor and GPU while the run was running, what the machine uses anyway included.

    NaN where energy is not readable.
    """
    used = energy(run)
    if not used:
        return math.nan
    # Energy may end before the run does, when a counter fails, or later, with the final evaluation.
    measured = [
        (moment, number(record, "wallSeconds"))
        for one in run.learners
        for record in one.train
        if (moment := number(record, "time")) <= used.x[-1]
    ]
    moment, seconds = max(measured, default=(math.nan, math.nan))
    return float(np.interp(moment, used.x, used.y)) / seconds if seconds > 0 else math.nan


def _cores(learner: Learner) -> float:
    busy = passed = 0.0
    for before, after in itertools.pairwise(learner.train):
        if integer(before, "incarnation") != integer(after, "incarnation"):
            continue
        wall = number(after, "wallSeconds") - number(before, "wallSeconds")
        spent = number(after, "cpuSeconds") - number(before, "cpuSeconds")
        if wall > 0 and spent >= 0:
            busy, passed = busy + spent, passed + wall
    return busy / passed if passed > 0 else math.nan


USES: Final = (
    Use("cores", "cores in use", "processor cores in use, all learners", cores),
    Use("watts", "power in W", "power of processor and GPU, W", watts),
)
