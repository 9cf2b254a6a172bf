"""How alike the learners' gradients are: the cosine of every pair, averaged over a run.

Gradients are those of snapshots that all learners took at the same version: before clipping, GALA's each at its own
parameters, a synchronous A2C rank's of its own shard, before they are averaged. Gradients of a batch of data are noisy,
so a small cosine is nothing bad: it says how much of a learner's update is news to the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gala import topology
from gala.report.radius import graph_of
from gala.report.read import Run, text
from gala.report.traces import Array, Life, read_traces, snapshots_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """Of one run, or of several together."""

    ranks: tuple[int, ...]
    cosines: Array
    """[n, n], symmetric, 1 on the diagonal: the mean over the snapshots."""
    snapshots: int
    """How many were averaged."""
    versions: tuple[int, int]
    """The first and the last of them."""
    neighbours: frozenset[tuple[int, int]]
    """Pairs of ranks, the smaller first, of which one sends parameters to the other; none where nobody gossips."""

    def mean(self, *, neighbours: bool | None = None) -> float:
        """Over all pairs of learners, or only over those that are, or are not, neighbours; NaN if there are none."""
        found = [
            float(self.cosines[i, j])
            for i, first in enumerate(self.ranks)
            for j, second in enumerate(self.ranks)
            if i < j and neighbours in (None, (first, second) in self.neighbours)
        ]
        return sum(found) / len(found) if found else math.nan


def correlation(run: Run, *, since: float = 0.0) -> Correlation | None:
    """The cosines of a run; None if fewer than two learners recorded gradients, or none at a common version.

    Args:
        since: leave out the first so large a share of the versions, in [0, 1).

    Raises:
        TraceError: a record is damaged, or the topology is unknown.
    """
    traces = read_traces(run)
    gossips = (text(run.spec, "algorithm") or "GALA").startswith("GALA")
    neighbours = set()
    if traces and gossips:
        graph = graph_of(run)
        for rank in range(len(traces)):
            for peer in topology.all_out_peers(graph, rank, len(traces)):
                neighbours.add((min(rank, peer), max(rank, peer)))
    return correlation_of(traces, frozenset(neighbours), since=since)


def correlation_of(
    traces: Mapping[int, tuple[Life, ...]], neighbours: frozenset[tuple[int, int]], *, since: float = 0.0
) -> Correlation | None:
    """The cosines of all learners' snapshots; see `correlation`."""
    ranks = tuple(sorted(traces))
    if len(ranks) < 2:
        return None
    found = [snapshots_of(traces[rank]) for rank in ranks]
    common = sorted(set.intersection(*(set(snapshots) for snapshots in found)))
    used, total = [], np.zeros((len(ranks), len(ranks)))
    for version in common:
        if version < since * common[-1]:
            continue
        matrix = cosines(np.stack([snapshots[version][1].gradient() for snapshots in found]))
        if matrix is not None:
            used.append(version)
            total += matrix
    if not used:
        return None
    return Correlation(
        ranks=ranks,
        cosines=total / len(used),
        snapshots=len(used),
        versions=(used[0], used[-1]),
        neighbours=neighbours,
    )


def together(runs: list[Correlation]) -> Correlation:
    """The mean of several runs of the same learners, each run counting the same."""
    first = runs[0]
    return Correlation(
        ranks=first.ranks,
        cosines=np.mean([run.cosines for run in runs], axis=0),
        snapshots=sum(run.snapshots for run in runs),
        versions=(min(run.versions[0] for run in runs), max(run.versions[1] for run in runs)),
        neighbours=first.neighbours,
    )


def cosines(gradients: Array) -> Array | None:
    """[n, n] of gradients [n, P]; None if one of them is 0 or not finite and so has no direction."""
    lengths = np.linalg.norm(gradients, axis=1)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        return None
    directions = gradients / lengths[:, None]
    between: Array = np.clip(directions @ directions.T, -1.0, 1.0)
    return between
