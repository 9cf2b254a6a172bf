"""The epsilon-ball, measured and bounded: how far learners are from their mean, and how far they can be at most.

The radius at version k is ||X(k) - 1 xbar(k)||, the Frobenius norm over the stacked learners [n, P], each taken at its
own version k, right after that version's mixing; xbar is their mean. Two bounds are drawn beside it.

**Synchronous.** Version v is X(v) = P(v) (X(v - 1) + U(v)): all learners add update v, then mix with P(v), the
identity where v is no multiple of `everyUpdates`. From a common start, with J = 11'/n and P(v) doubly stochastic,

    X(k) - J X(k) = sum over s = 1 ... k of (P(k) ... P(s) - J) U(s)
    radius(k)    <= sum over s = 1 ... k of c(s, k) ||U(s)||,    c(s, k) = ||P(k) ... P(s) - J||, the 2-norm

For a static graph c(s, k) = beta^m with m the mixings at versions s ... k, because a circulant P is normal; with a
mixing after every update m = k - s + 1: an update is mixed once in the version that it makes. (Counting updates from 0,
so that U(s) = alpha G(s - 1), it is the bound of docs/protocol.md, alpha * sum over s < k of beta^(k - s) ||G(s)||.)
It holds while the trace is that of synchronous gossip, which is checked mixing by mixing.

**Measured delays.** `propagation` gives the weight W_i(j, s) of every update in every learner's parameters, however
late, skipped or uneven the mixing was. With D the weights minus their mean over the learners, X - 1 xbar = D U, and
two estimates hold whatever directions the updates had:

    by learner   sqrt(sum_i (sum_js |D_i(j, s)| ||u_j(s)||)^2)
    by version   sum_s min(||D(., s)|| ||U(s)||,  sqrt(sum_i (sum_j |D_i(j, s)| ||u_j(s)||)^2))

The bound is the smaller one. Where gossip is synchronous, D(., s) = P(k) ... P(s) - J: the estimate by version, and
with it the bound, is at most the synchronous one. (The estimate by learner alone need not be: the matrix of absolute
values |D| can have a larger norm than D. In a ring of 4, one round with equal updates gives 1 where beta is 0.71.)

Both take every learner's measured update norms. They do not cover what bfloat16 messages lose, nor push-sum, whose
learners also take back shares that nobody received, which a trace does not record: there is no bound then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gala import topology
from gala.report.propagation import Unknown, Weights, propagate
from gala.report.read import Run, integer, text
from gala.report.traces import Array, Life, TraceError, read_traces, snapshots_of

ROUNDING = 2.0**-20
"""Of ||X||: what float32 arithmetic may add to a radius, sixteen times its relative error. Only where learners average
exactly (Complete, a ring of two) is a radius as small as that."""
_NEGLIGIBLE = 1e-14
"""Contractions below it no longer count, times the largest update so far, which is added instead."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A `gala.topology.Topology`, and how often it is used."""

    type: str
    peers: int | None
    every_updates: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonBall:
    """Radius and bounds at the versions K of which every learner has a snapshot. NaN where there is no bound."""

    ranks: tuple[int, ...]
    versions: Array
    """[K], ascending."""
    radius: Array
    """[K]"""
    bound: Array
    """[K], from the measured delays."""
    synchronous_bound: Array
    """[K]; all NaN for asynchronous gossip."""
    rounding: Array
    """[K]: `ROUNDING` times ||X||, in float32 a radius may exceed a bound by so much."""
    beta: float
    notes: tuple[str, ...]
    """What is missing, and why: sentences without a full stop."""

    @property
    def above(self) -> npt.NDArray[np.bool_]:
        """[K]: whether the radius is larger than a bound that there is, by more than rounding."""
        return self.radius > np.fmin(self.bound, self.synchronous_bound) + self.rounding


def epsilon_ball(run: Run) -> EpsilonBall | None:
    """Radius and bounds of a run; None if its learners did not record anything.

    Raises:
        TraceError: a record is damaged, or contradicts itself, or the topology is unknown.
    """
    traces = read_traces(run)
    if not traces:
        return None
    graph = graph_of(run)
    staleness = integer(run.spec, "gossip", "maxStaleness")
    synchronous = staleness is not None and staleness < graph.every_updates
    return ball_of(traces, graph, synchronous=synchronous)


def graph_of(run: Run) -> Graph:
    """Who gossips with whom in a run, and how often.

    Raises:
        TraceError: nobody knows, as its topology is one that this GALA does not have.
    """
    graph = Graph(
        text(run.spec, "topology", "type") or "Ring",
        integer(run.spec, "topology", "peers"),
        integer(run.spec, "gossip", "everyUpdates") or 1,
    )
    try:
        topology.offsets(graph, size=1, round=0)
    except ValueError as error:
        raise TraceError(f"{run.directory}: {error}") from error
    return graph


def ball_of(traces: Mapping[int, tuple[Life, ...]], graph: Graph, *, synchronous: bool = True) -> EpsilonBall:
    """Radius and bounds from the traces of all learners; see `epsilon_ball`.

    Args:
        synchronous: whether the run was to gossip synchronously; without, there is no synchronous bound.
    """
    ranks = tuple(sorted(traces))
    found = {rank: snapshots_of(traces[rank]) for rank in ranks}
    versions = sorted(set.intersection(*(set(snapshots) for snapshots in found.values())))
    radii, sizes = [], []
    for version in versions:
        stacked = np.stack([found[rank][version][1].parameters() for rank in ranks])
        radii.append(radius(stacked))
        sizes.append(float(np.linalg.norm(stacked)))
    notes: list[str] = []
    bound = np.full(len(versions), math.nan)
    together = np.full(len(versions), math.nan)
    beta = topology.beta(graph, len(ranks))
    if any(life.wire != "float32" for lives in traces.values() for life in lives):
        notes.append("there is no bound: messages were rounded to bfloat16, which it does not cover")
    elif any(life.mixing != "average" for lives in traces.values() for life in lives):
        notes.append("there is no bound: it does not cover push-sum")
    else:
        places = {version: i for i, version in enumerate(versions)}
        unknown: dict[int, str] = {}
        for version, weights in propagate(traces, versions):
            if isinstance(weights, Unknown):
                unknown[version] = weights.reason
            else:
                bound[places[version]] = delay_bound(weights)
        unknown |= dict.fromkeys((v for v in versions if v not in unknown and math.isnan(bound[places[v]])), "")
        if unknown:
            reason = next((unknown[v] for v in sorted(unknown) if unknown[v]), "the traces end earlier")
            notes.append(f"there is no bound at {len(unknown)} of {len(versions)} points: {reason}")
        limit, why = synchronous_until(traces, graph) if synchronous else (0, "")
        covered = [version for version in versions if version < limit]
        if covered:
            norms = np.array([traces[rank][0].norms[: limit - 1] for rank in ranks]).T
            together[: len(covered)] = synchronous_bound(norms, graph, covered)
        if why and len(covered) < len(versions):
            notes.append(f"gossip was not synchronous from version {limit} on: {why}")
    return EpsilonBall(
        ranks=ranks,
        versions=np.array(versions, dtype=np.float64),
        radius=np.array(radii),
        bound=bound,
        synchronous_bound=together,
        rounding=ROUNDING * np.array(sizes),
        beta=beta,
        notes=tuple(notes),
    )


def radius(stacked: Array) -> float:
    """||X - 1 xbar|| of X [n, P]."""
    return float(np.linalg.norm(stacked - stacked.mean(axis=0)))


def delay_bound(weights: Weights) -> float:
    """The largest radius that is possible with these weights and lengths of updates; see the module's text."""
    n = len(weights.matrix)
    apart = weights.matrix - weights.matrix.mean(axis=0)
    by_learner = np.abs(apart) @ weights.norms + weights.remainder * (n - 1) / n
    # A dropped column's n weights are within a spread d, so their distance from their mean is at most d sqrt(n) / 2.
    by_version = weights.remainder * math.sqrt(n) / 2
    if len(weights.norms):
        num_groups = int(weights.groups.max()) + 1
        blocks, lengths = np.zeros((num_groups, n, n)), np.zeros((num_groups, n))
        blocks[weights.groups, :, weights.learners] = apart.T
        lengths[weights.groups, weights.learners] = weights.norms
        whole = np.linalg.norm(blocks, 2, axis=(1, 2)) * np.linalg.norm(lengths, axis=1)
        single = np.linalg.norm(np.einsum("gij,gj->gi", np.abs(blocks), lengths), axis=1)
        by_version += float(np.minimum(whole, single).sum())
    return min(float(np.linalg.norm(by_learner)), by_version)


def synchronous_bound(norms: Array, graph: Graph, versions: Sequence[int]) -> Array:
    """[K], the bound at each of `versions`, from the lengths [V, n] of all updates, the first of which made version 1.

    Raises:
        ValueError: an unknown topology.
    """
    n, every = norms.shape[1], graph.every_updates
    together = np.linalg.norm(norms, axis=1)
    tables = [_contractions(graph, n, phase, len(norms) // every + 1) for phase in range(topology.period(graph, n))]
    bounds = []
    for k in versions:
        s = np.arange(1, k + 1)
        first, last = (
            (s - 1) // every + 1,
            k // every,
        )  # the rounds that an update takes part in: the first and the last
        rounds = np.maximum(last - first + 1, 0)
        bound = 0.0
        for phase, table in enumerate(tables):
            here = first % len(tables) == phase
            bound += float(table[np.minimum(rounds[here], len(table) - 1)] @ together[:k][here])
        bounds.append(bound)
    return np.array(bounds)


def _contractions(graph: Graph, n: int, phase: int, longest: int) -> Array:
    """c[m] = ||P(r + m - 1) ... P(r) - J|| for a first round r = phase (mod the period), until it is negligible.

    The last entry stands for all that follow: it is no smaller than they are, as a contraction never grows.
    """
    period = topology.period(graph, n)
    values = [0.0 if n == 1 else 1.0]
    if period == 1:
        beta = topology.beta(graph, n)
        while len(values) <= longest and values[-1] > _NEGLIGIBLE:
            values.append(values[-1] * beta)
        return np.array(values)
    matrices = [np.array(topology.mixing_matrix(graph, n, round)) for round in range(period)]
    product = np.eye(n)
    while len(values) <= longest and values[-1] > _NEGLIGIBLE:
        product = matrices[(phase + len(values) - 1) % period] @ product
        values.append(min(values[-1], float(np.linalg.norm(product - 1 / n, 2))))
    return np.array(values)


def synchronous_until(traces: Mapping[int, tuple[Life, ...]], graph: Graph) -> tuple[int, str]:
    """The first version at which the traces are not those of synchronous gossip, and why; "" if they merely end there.

    That is: one life each, all from version 0 and the same parameters, in every round the mixing of the topology.
    """
    ranks = sorted(traces)
    for rank in ranks:
        if len(traces[rank]) > 1:
            return 0, f"learner {rank} was started more than once"
        if traces[rank][0].version != 0:
            return 0, f"learner {rank} began with version {traces[rank][0].version}"
    seed = traces[ranks[0]][0].start.parameters()
    if not all(np.array_equal(traces[rank][0].start.parameters(), seed) for rank in ranks):
        return 0, "the learners did not begin with the same parameters"
    if ranks != list(range(len(ranks))):
        return 0, f"there are traces of the ranks {ranks} only"
    end = 1 + min(len(traces[rank][0].norms) for rank in ranks)
    every, period = graph.every_updates, topology.period(graph, len(ranks))
    peers = [[topology.in_peers(graph, rank, len(ranks), phase) for phase in range(period)] for rank in ranks]
    for version in range(1, end):
        for rank in ranks:
            mixed = traces[rank][0].mixed[version - 1]
            expected = peers[rank][version // every % period] if version % every == 0 else ()
            if sorted(message.rank for message in mixed) != sorted(expected):
                return version, f"learner {rank} did not mix as the topology says"
            share = 1 / (1 + len(expected))
            if any(message.version != version or abs(message.weight - share) > 1e-6 for message in mixed):
                return version, f"learner {rank} mixed a message of another version or with another weight"
    return end, ""
