"""Who gossips with whom: ring, exponential graphs and the complete graph, and how fast they mix.

Pure functions of (topology, size, round). Every graph here is circulant - rank i pushes to i + o for each o of a set
of offsets that is the same for all ranks - hence regular and doubly stochastic, with eigenvalues in closed form.

    Ring                  o = 1 ... peers                           peers: 1 if not set
    Exponential           o = 1, 2, 4, ... below the size           peers: the first so many of them; all if not set
    OnePeerExponential    o = 2^(round mod ceil(log2 size))         one peer in each round, whatever `peers` says
    Complete              o = 1 ... size - 1                        all peers, whatever `peers` says

n = size = number of members; J = 11'/n, the matrix of exact averaging. A round is one gossip exchange.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from typing import Protocol


class Topology(Protocol):
    """What these functions read of `gala.spec.Topology`."""

    @property
    def type(self) -> str:
        """Ring, Exponential, OnePeerExponential or Complete."""

    @property
    def peers(self) -> int | None:
        """Out-peers of a learner where the type leaves a choice; None = the type's own number."""


def offsets(topology: Topology, size: int, round: int) -> tuple[int, ...]:
    """The distances at which every rank pushes in this round, ascending, each in [1, size - 1]; empty when alone.

    Raises: ValueError for a size or a round that cannot be, or an unknown type.
    """
    if size < 1 or round < 0:
        raise ValueError(f"size must be at least 1 and round at least 0, got size {size} and round {round}")
    powers = tuple(1 << k for k in range((size - 1).bit_length()))
    match topology.type:
        case "Ring":
            return tuple(range(1, min(topology.peers or 1, size - 1) + 1))
        case "Exponential":
            return powers[: topology.peers]
        case "OnePeerExponential":
            return (powers[round % len(powers)],) if powers else ()
        case "Complete":
            return tuple(range(1, size))
        case unknown:
            raise ValueError(f"unknown topology type {unknown!r}")


def period(topology: Topology, size: int) -> int:
    """After how many rounds the graph repeats: ceil(log2 size) for OnePeerExponential, 1 for the static ones."""
    return max(1, (size - 1).bit_length()) if topology.type == "OnePeerExponential" else 1


def successors(topology: Topology, members: Sequence[int], rank: int, round: int = 0) -> tuple[int, ...]:
    """The ranks that `rank` pushes to when `members` are alive: the same graph over the sorted members.

    This is the healed ring: a rank that is gone is left out and everyone moves up.

    Raises: ValueError when `rank` is not a member.
    """
    ring = sorted(set(members))
    here = ring.index(rank)
    return tuple(ring[(here + offset) % len(ring)] for offset in offsets(topology, len(ring), round))


def predecessors(topology: Topology, members: Sequence[int], rank: int, round: int) -> tuple[int, ...]:
    """The ranks that push to `rank` when `members` are alive; the counterpart of `successors`."""
    ring = sorted(set(members))
    here = ring.index(rank)
    return tuple(ring[(here - offset) % len(ring)] for offset in offsets(topology, len(ring), round))


def out_peers(topology: Topology, rank: int, size: int, round: int = 0) -> tuple[int, ...]:
    """The ranks that `rank` pushes to in this round, nearest first, with all `size` ranks alive."""
    return successors(topology, range(size), rank, round)


def in_peers(topology: Topology, rank: int, size: int, round: int) -> tuple[int, ...]:
    """The ranks that push to `rank` in this round, nearest first, with all `size` ranks alive."""
    return predecessors(topology, range(size), rank, round)


def all_out_peers(topology: Topology, rank: int, size: int) -> tuple[int, ...]:
    """The ranks that `rank` pushes to in any round of a period, ascending: the edges a worker has to hold open."""
    rounds = range(period(topology, size))
    return tuple(sorted({peer for round in rounds for peer in out_peers(topology, rank, size, round)}))


def all_in_peers(topology: Topology, rank: int, size: int) -> tuple[int, ...]:
    """The ranks that push to `rank` in any round of a period, ascending."""
    rounds = range(period(topology, size))
    return tuple(sorted({peer for round in rounds for peer in in_peers(topology, rank, size, round)}))


def mixing_matrix(topology: Topology, size: int, round: int = 0) -> list[list[float]]:
    """P [n, n], doubly stochastic: row i holds the weights with which rank i mixes, 1 / (1 + in-peers) each."""
    weight = 1 / (1 + len(offsets(topology, size, round)))
    matrix = [[0.0] * size for _ in range(size)]
    for rank, row in enumerate(matrix):
        for peer in (rank, *in_peers(topology, rank, size, round)):
            row[peer] = weight
    return matrix


def beta(topology: Topology, size: int) -> float:
    """The factor in [0, 1] by which a round of gossip shrinks the disagreement: ||P - J||, the 2-norm.

    A circulant P is normal, so the norm is the largest modulus of its eigenvalues, without that of the constant vector:
    lambda_m = (1 + sum over o of w^(m o)) / (1 + number of offsets), w = exp(2 pi i / n), m = 1 ... n - 1. That is
    cos(pi / n) for the ring with one peer and 0 for the complete graph.

    For a time-varying graph, the factor per round over one period: ||P_1 ... P_k - J||^(1/k). A one-peer exponential
    graph over a power of two averages exactly after one period: 0.
    """
    if size == 1 or topology.type == "Complete":
        return 0.0
    if topology.type == "OnePeerExponential" and size & (size - 1) == 0:
        return 0.0  # exactly; the product of the eigenvalues below would leave a rounding error and its k-th root shows
    num_rounds = period(topology, size)
    # Circulant matrices share their eigenvectors, so the eigenvalues of a product are the products of the eigenvalues.
    largest = max(
        math.prod(abs(_eigenvalue(offsets(topology, size, round), size, m)) for round in range(num_rounds))
        for m in range(1, size // 2 + 1)  # m and n - m are conjugates
    )
    return float(largest ** (1 / num_rounds))


def _eigenvalue(distances: Sequence[int], size: int, m: int) -> complex:
    return sum((cmath.exp(2j * math.pi * (m * o % size) / size) for o in distances), 1 + 0j) / (1 + len(distances))
