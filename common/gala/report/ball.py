"""The epsilon-ball: how far apart synchronous gossip lets the learners be, from what they measured themselves.

With X(k+1) = P (X(k) + U(k)), P doubly stochastic, beta = ||P - 11'/n|| < 1 and every row of U(k) at most u long:
||X(k) - mean|| <= sqrt(n) u (beta + beta^2 + ...) = sqrt(n) u beta / (1 - beta), in the Frobenius norm.

A time-varying graph of period p contracts by beta^p over a period but perhaps not in a single round, so that each
beta^(k p) counts p times: the sum is p / (1 - beta^p) - 1, which is beta / (1 - beta) again for p = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gala import topology
from gala.report.read import Run, integer, text
from gala.report.series import Curve, curve, rolling_maximum

WINDOW_SECONDS = 120.0
"""The bound forgets an update after about 1 / (1 - beta) rounds, which is seconds; two minutes are on the safe side."""


def radius(num_learners: int, update_norm: float, beta: float, period: int = 1) -> float:
    """The largest ||X - mean|| (Frobenius) right after a mixing, for local updates of at most `update_norm`."""
    return math.sqrt(num_learners) * update_norm * (period / (1 - beta**period) - 1)


def pairwise_bound(num_learners: int, update_norm: float, beta: float, period: int = 1) -> float:
    """The largest ||x - m|| between a learner and its neighbours' mean at the moment before a mixing.

    Before mixing, the learners have just added one more update each: the ball is radius + sqrt(n) u wide.
    Two rows of a matrix of that norm are at most sqrt(2) times as far apart, and a mean of rows no further.
    """
    return math.sqrt(2) * (radius(num_learners, update_norm, beta, period) + math.sqrt(num_learners) * update_norm)


@dataclass(frozen=True, slots=True)
class Ball:
    """The bound over wall-clock seconds and what it was computed from."""

    beta: float
    period: int
    num_learners: int
    every_updates: int
    bound: Curve


@dataclass(frozen=True, slots=True)
class _Topology:
    """`gala.topology.Topology` without the spec's validation: a report also reads runs of other versions of GALA."""

    type: str
    peers: int | None


def ball(run: Run) -> Ball | None:
    """The bound of a run; None if it has no neighbours, no measured update norms, or an unknown topology."""
    # The most that there were at once if the run was scaled: the bound grows with their number.
    size = max(run.num_learners, sum(bool(learner.train) for learner in run.learners))
    points = [curve(learner, "wallSeconds", "updateNorm") for learner in run.learners]
    together = Curve(np.concatenate([c.x for c in points]), np.concatenate([c.y for c in points])) if points else None
    if size < 2 or not together:
        return None
    graph = _Topology(text(run.spec, "topology", "type") or "Ring", integer(run.spec, "topology", "peers"))
    try:
        beta, period = topology.beta(graph, size), topology.period(graph, size)
    except ValueError:
        return None
    if not 0 <= beta < 1:
        return None
    beta = beta if beta > 1e-12 else 0.0  # cos(pi / 2) of a ring of two
    every = max(integer(run.spec, "gossip", "everyUpdates") or 1, 1)
    largest = rolling_maximum(together, WINDOW_SECONDS)
    # Between two mixings a learner makes `every` updates: together at most every * u long.
    bound = Curve(largest.x, largest.y * pairwise_bound(size, every, beta, period))
    return Ball(beta, period, size, every, bound)
