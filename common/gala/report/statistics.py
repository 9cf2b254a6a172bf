"""Statistics of a handful of runs: aggregates with intervals, after Agarwal et al. 2021 (arXiv 2108.13264), "rliable".

A handful of seeds says little about a mean, so everything here comes with an interval, and nothing here reads files.
Scores are one array per task (a game), [n_1], ..., [n_M]: its runs' final scores, normalised so that tasks can be
averaged. Tasks may have different numbers of runs. Batches are one array per task as well, [R, n_m]: R resamplings.

Shapes: M tasks, n_m runs of task m, R resamplings, K thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

CONFIDENCE: Final = 0.95

RESAMPLINGS: Final = 20_000
"""Of one number: two decimals of an interval's ends no longer change with the generator's seed."""

SEED: Final = 0
"""Of the resampling: the same runs give the same interval."""


class Estimate(NamedTuple):
    """A number with its 95 % interval; low and high are NaN where there are too few runs for one."""

    value: float
    low: float
    high: float


Statistic = Callable[[Sequence[Array]], Array]
"""From a batch of resampled runs per task, [R, n_m] each, to one number for each, [R]."""


def iqm(tasks: Sequence[Array]) -> Array:
    """The interquartile mean: the mean of the middle half of all runs of all tasks (section 4.2 there).

    A quarter of the runs, rounded down, is cut off at either end, as `scipy.stats.trim_mean(x, 0.25)` does; with fewer
    than four runs it is the mean.
    """
    together = np.sort(np.concatenate(tasks, axis=-1), axis=-1)
    cut = together.shape[-1] // 4
    return np.asarray(together[..., cut : together.shape[-1] - cut].mean(axis=-1))


def mean(tasks: Sequence[Array]) -> Array:
    """The mean over tasks of the mean over runs."""
    return np.asarray(np.mean([task.mean(axis=-1) for task in tasks], axis=0))


def median(tasks: Sequence[Array]) -> Array:
    """The median over tasks of the mean over runs, as scores of Atari were usually summed up."""
    return np.asarray(np.median([task.mean(axis=-1) for task in tasks], axis=0))


def optimality_gap(tasks: Sequence[Array], target: float = 1.0) -> Array:
    """By how much the runs miss `target` on average; what a run has above it does not count. Lower is better."""
    return np.asarray(target - np.mean([np.minimum(task, target).mean(axis=-1) for task in tasks], axis=0))


def estimate(statistic: Statistic, tasks: Sequence[Array], *, resamplings: int = RESAMPLINGS) -> Estimate:
    """`statistic` of the runs with its 95 % stratified bootstrap interval (percentile method).

    Stratified: runs are drawn again, with replacement, within each task, so that every resampling has every task as
    often as the data have it. Where every task has a single run, nothing can be drawn: there is no interval. With
    fewer than about ten runs in all, such an interval is too narrow: it cannot hold what no run has shown.

    Raises:
        ValueError: there is no task, or one without runs.
    """
    value = float(statistic([task[None] for task in _checked(tasks)])[0])
    if max(task.size for task in tasks) < 2:
        return Estimate(value, math.nan, math.nan)
    generator = np.random.default_rng(SEED)
    resampled = statistic([task[_draw(generator, resamplings, task.size)] for task in tasks])
    low, high = _interval(resampled)
    return Estimate(value, float(low), float(high))


def probability_of_improvement(ours: Sequence[Array], theirs: Sequence[Array]) -> Array:
    """P(X > Y) for a run X of ours and a run Y of theirs on a task drawn at random; a tie counts half.

    The mean over tasks of the Mann-Whitney statistic over n m (section 4.3 there).

    Args:
        ours: batches [R, n_m].
        theirs: batches [R, k_m] of the same tasks.
    """
    shares = []
    for x, y in zip(ours, theirs, strict=True):
        difference = x[..., :, None] - y[..., None, :]
        shares.append(((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-1, -2)))
    return np.asarray(np.mean(shares, axis=0))


def improvement(ours: Sequence[Array], theirs: Sequence[Array], *, resamplings: int = 2_000) -> Estimate:
    """`probability_of_improvement` with its 95 % interval; both sides' runs are drawn again within each task.

    Raises:
        ValueError: the two do not have the same, non-empty tasks.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} tasks cannot be compared with {len(theirs)}")
    both = [*_checked(ours), *_checked(theirs)]
    return estimate(
        lambda tasks: probability_of_improvement(tasks[: len(ours)], tasks[len(ours) :]), both, resamplings=resamplings
    )


def performance_profile(tasks: Sequence[Array], thresholds: Array) -> Array:
    """The share of runs, mean over tasks, that score more than each threshold, [R, K] (section 4.2 there)."""
    return np.asarray(np.mean([(task[..., None] > thresholds).mean(axis=-2) for task in tasks], axis=0))


def profile_band(tasks: Sequence[Array], thresholds: Array, *, resamplings: int = 2_000) -> tuple[Array, Array, Array]:
    """The performance profile [K] with its pointwise 95 % stratified bootstrap band: value, low, high."""
    value = performance_profile([task[None] for task in _checked(tasks)], thresholds)[0]
    if max(task.size for task in tasks) < 2:
        return value, np.full_like(value, math.nan), np.full_like(value, math.nan)
    generator = np.random.default_rng(SEED)
    resampled = [task[_draw(generator, resamplings, task.size)] for task in tasks]
    low, high = _interval(performance_profile(resampled, thresholds))
    return value, low, high


def band(values: Array, statistic: Statistic = iqm, *, resamplings: int = 1_000) -> tuple[Array, Array, Array]:
    """A statistic of curves at each point with its pointwise 95 % bootstrap band over runs: value, low, high, all [G].

    A run is drawn as a whole, with its whole curve. Where one run or none is known there is no band, and where none
    is, no value.

    Args:
        values: [n, G]; NaN where a run has no value.
    """
    value = np.full(values.shape[1], math.nan)
    low, high = value.copy(), value.copy()
    known = np.isfinite(values)
    # Runs begin and end: the grid falls into few stretches in which the same runs are known.
    patterns, stretch = np.unique(known, axis=1, return_inverse=True)
    for i, runs in enumerate(patterns.T):
        if not runs.any():
            continue
        at = np.flatnonzero(stretch.reshape(-1) == i)
        here = values[np.ix_(np.flatnonzero(runs), at)].T  # [g, n]
        value[at] = statistic([here])
        if runs.sum() > 1:
            drawn = _draw(np.random.default_rng(SEED), resamplings, int(runs.sum()))
            for j in range(0, at.size, _CHUNK):
                part = here[j : j + _CHUNK][:, drawn]  # [g, R, n]
                low[at[j : j + _CHUNK]], high[at[j : j + _CHUNK]] = _interval(statistic([part]).T)
    return value, low, high


def wilson(successes: int, trials: int) -> Estimate:
    """A share with its 95 % Wilson score interval (Wilson 1927): all shares that the observed one does not reject.

    Wilson rather than Clopper-Pearson: with the ten seeds of a point its coverage is 95 % on average over shares,
    where the "exact" interval, which never covers less than 95 %, covers 98 % and is wider for it; unlike the normal
    approximation it has a width at 0 and at 1 (Brown, Cai, DasGupta 2001, "Interval estimation for a binomial
    proportion").

    Raises:
        ValueError: there are no trials, or not `successes` in 0..trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials}")
    share = successes / trials
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    spread = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / spread
    half = z / spread * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # At the ends the formula gives 0 and 1 but for rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Estimate(share, low, high)


_CHUNK: Final = 16
"""Grid points that `band` resamples at once: a few megabytes."""


def _draw(generator: np.random.Generator, resamplings: int, size: int) -> npt.NDArray[np.int64]:
    return generator.integers(size, size=(resamplings, size))


def _interval(resampled: Array) -> tuple[Array, Array]:
    """The central 95 % over the first axis."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail], axis=0)
    return np.asarray(low), np.asarray(high)


def _checked(tasks: Sequence[Array]) -> Sequence[Array]:
    if not tasks or any(task.size == 0 for task in tasks):
        raise ValueError("every task needs a run")
    return tasks
