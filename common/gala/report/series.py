"""Turns records into curves that can be drawn: ordered, with gaps where a learner was away, and not too many points.

Shapes: a curve's x and y are [K]; a NaN in y is a gap. Grids are [G].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gala.report.read import Learner, Record, number

Array = npt.NDArray[np.float64]

MAX_POINTS = 400
"""Points of one drawn curve: about one per pixel of a plot."""

GRID_POINTS = 300


@dataclass(frozen=True, slots=True)
class Curve:
    """y over ascending x; NaN in y is a gap."""

    x: Array
    y: Array

    def __bool__(self) -> bool:
        return bool(np.isfinite(self.y).any())

    @property
    def last(self) -> float:
        """The last finite y; NaN if there is none."""
        finite = self.y[np.isfinite(self.y)]
        return float(finite[-1]) if finite.size else math.nan


EMPTY = Curve(np.empty(0), np.empty(0))


def curve(learner: Learner, x: str, *y: str) -> Curve:
    """The value at path `y` of a learner's train records over `x` ("globalSteps" or "wallSeconds")."""
    return _curve(learner.train, x, y)


def _curve(records: Sequence[Record], x: str, y: Sequence[str]) -> Curve:
    xs = np.array([number(record, x) for record in records], dtype=float)
    ys = np.array([number(record, *y) for record in records], dtype=float)
    walls = np.array([number(record, "wallSeconds") for record in records], dtype=float)
    known = np.isfinite(xs)
    xs, ys, walls = xs[known], ys[known], walls[known]
    kept = _not_superseded(xs)
    xs, ys, walls = xs[kept], ys[kept], walls[kept]
    if not np.isfinite(ys).any():
        return EMPTY
    return _with_gaps(xs, ys, walls)


def _not_superseded(x: Array) -> npt.NDArray[np.intp]:
    """Indices of the records that still hold.

    A learner that falls back to its checkpoint writes x values again; the records of the lost work would make the curve
    run backwards. What was written last holds.
    """
    if x.size == 0:
        return np.empty(0, dtype=np.intp)
    following = np.minimum.accumulate(x[::-1])[::-1]
    holds = np.append(x[:-1] < following[1:], True)
    return np.flatnonzero(holds)


def _with_gaps(x: Array, y: Array, wall: Array) -> Curve:
    """Breaks the curve where the learner was silent for far longer than it usually is between two records."""
    if x.size < 3:
        return Curve(x, y)
    silence = np.diff(wall)
    known = silence[np.isfinite(silence)]
    usual = float(np.median(known)) if known.size else math.inf
    breaks = np.flatnonzero(silence > max(4 * usual, 15.0))
    middle = (x[breaks] + x[breaks + 1]) / 2
    return Curve(np.insert(x, breaks + 1, middle), np.insert(y, breaks + 1, np.nan))


def downsample(full: Curve, limit: int = MAX_POINTS) -> Curve:
    """At most about `limit` points, keeping the lowest and the highest of every bucket, both ends, and gaps.

    Averages would hide the spikes that a reader of a disagreement or a throughput curve looks for.
    """
    if full.x.size <= limit:
        return full
    bounds = np.linspace(0, full.x.size, limit // 2 + 1).astype(np.intp)
    keep: set[int] = {0, full.x.size - 1}
    for start, stop in itertools.pairwise(bounds):
        part = full.y[start:stop]
        finite = np.isfinite(part)
        if not finite.all():
            keep.add(int(start + np.flatnonzero(~finite)[0]))
        if finite.any():
            keep.add(int(start + np.nanargmin(part)))
            keep.add(int(start + np.nanargmax(part)))
    index = np.array(sorted(keep))
    return Curve(full.x[index], full.y[index])


def averaged(full: Curve, buckets: int = 80) -> Curve:
    """Means over `buckets` equal parts of the points, so that a noisy curve can be seen; gaps stay gaps.

    A curve with fewer than two points per bucket is left as it is.
    """
    if full.x.size < 2 * buckets:
        return full
    points: list[tuple[float, float]] = []
    for part in np.array_split(np.arange(full.x.size), buckets):
        finite = part[np.isfinite(full.y[part])]
        if finite.size:
            points.append((float(full.x[finite].mean()), float(full.y[finite].mean())))
        if finite.size < part.size:
            points.append((float(full.x[part[-1]]), math.nan))
    return Curve(np.array([x for x, _ in points]), np.array([y for _, y in points]))


@dataclass(frozen=True, slots=True)
class Spread:
    """Several curves on one grid; all [G]. NaN where fewer than half of the curves have a value."""

    x: Array
    mean: Array
    low: Array
    high: Array
    total: Array
    """The sum of the curves that have a value."""

    @property
    def curve(self) -> Curve:
        """The mean as a curve."""
        return Curve(self.x, self.mean)


def spread(curves: Sequence[Curve]) -> Spread | None:
    """Mean, lowest, highest and sum of the curves on a common grid; None if no curve has a value."""
    curves = [one for one in curves if one]
    if not curves:
        return None
    start, stop = min(float(one.x[0]) for one in curves), max(float(one.x[-1]) for one in curves)
    grid = np.linspace(start, stop, GRID_POINTS) if stop > start else np.array([start])
    values, lows, highs = (np.stack(rows) for rows in zip(*(_on_grid(one, grid) for one in curves), strict=True))
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    enough = count * 2 >= len(curves)
    mean = np.where(enough, total / np.maximum(count, 1), np.nan)
    low = np.where(enough, np.where(known, lows, np.inf).min(axis=0), np.nan)
    high = np.where(enough, np.where(known, highs, -np.inf).max(axis=0), np.nan)
    return Spread(grid, mean, low, high, np.where(count > 0, total, np.nan))


def _on_grid(one: Curve, grid: Array) -> tuple[Array, Array, Array]:
    """Mean, lowest and highest value in each cell of the grid; between the points of a sparse curve, interpolated."""
    finite = np.isfinite(one.y)
    x, y = one.x[finite], one.y[finite]
    first, last = np.flatnonzero(finite)[[0, -1]]
    # With the gaps: nothing is interpolated across them.
    between = np.interp(grid, one.x[first : last + 1], one.y[first : last + 1], left=np.nan, right=np.nan)
    # The end values hold a little beyond the ends, since learners do not report at the same moments.
    hold = 2 * float(np.median(np.diff(x))) if x.size > 1 else 0.0
    between[(grid < x[0]) & (grid >= x[0] - hold)] = y[0]
    between[(grid > x[-1]) & (grid <= x[-1] + hold)] = y[-1]
    cell = np.searchsorted((grid[:-1] + grid[1:]) / 2, x)
    points = np.bincount(cell, minlength=grid.size)
    sums = np.bincount(cell, weights=y, minlength=grid.size)
    mean = np.where(points > 0, sums / np.maximum(points, 1), between)
    low, high = mean.copy(), mean.copy()
    np.minimum.at(low, cell, y)
    np.maximum.at(high, cell, y)
    return mean, low, high


def rolling_maximum(points: Curve, window: float) -> Curve:
    """For each x, the highest y of the last `window` units of x."""
    finite = np.isfinite(points.y)
    x, y = points.x[finite], points.y[finite]
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    result = np.empty_like(y)
    candidates: list[int] = []  # indices with falling y; the first is the maximum of the window
    head = 0
    for i in range(x.size):
        while len(candidates) > head and y[candidates[-1]] <= y[i]:
            candidates.pop()
        candidates.append(i)
        while x[candidates[head]] < x[i] - window:
            head += 1
        result[i] = y[candidates[head]]
    return Curve(x, result)
