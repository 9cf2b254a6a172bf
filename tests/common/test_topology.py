"""The graphs keep what the theory asks of them, for every type, size and set of survivors."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gala import topology
from gala.spec import Topology

TYPES = ("Ring", "Exponential", "OnePeerExponential", "Complete")
SIZES = st.integers(1, 40)
ROUNDS = st.integers(0, 20)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    kind = draw(st.sampled_from(TYPES))
    chooses = kind in ("Ring", "Exponential")
    return Topology(type=kind, peers=draw(st.none() | st.integers(1, 12)) if chooses else None)


def product_over_a_period(graph: Topology, size: int) -> np.ndarray:
    product = np.eye(size)
    for round in range(topology.period(graph, size)):
        product = np.array(topology.mixing_matrix(graph, size, round)) @ product
    return product


def spread(matrix: np.ndarray) -> float:
    """||P - J||, by singular values."""
    size = len(matrix)
    return float(np.linalg.norm(matrix - np.full((size, size), 1 / size), ord=2))


@pytest.mark.parametrize(
    ("graph", "size", "expected"),
    [
        pytest.param(Topology(type="Ring"), 4, [(1,), (2,), (3,), (0,)], id="ring"),
        pytest.param(Topology(type="Ring", peers=2), 4, [(1, 2), (2, 3), (3, 0), (0, 1)], id="ring with two peers"),
        pytest.param(
            Topology(type="Exponential"), 5, [(1, 2, 4), (2, 3, 0), (3, 4, 1), (4, 0, 2), (0, 1, 3)], id="exponential"
        ),
        pytest.param(
            Topology(type="Exponential", peers=2), 5, [(1, 2), (2, 3), (3, 4), (4, 0), (0, 1)], id="capped exponential"
        ),
        pytest.param(Topology(type="Complete"), 3, [(1, 2), (2, 0), (0, 1)], id="complete"),
        pytest.param(Topology(type="Ring"), 1, [()], id="alone"),
        pytest.param(
            Topology(type="Ring", peers=7), 3, [(1, 2), (2, 0), (0, 1)], id="more peers than there are others"
        ),
    ],
)
def test_out_peers_are_as_drawn(graph: Topology, size: int, expected: list[tuple[int, ...]]) -> None:
    assert [topology.out_peers(graph, rank, size) for rank in range(size)] == expected


def test_one_peer_exponential_takes_the_powers_in_turn() -> None:
    graph = Topology(type="OnePeerExponential")
    assert [topology.out_peers(graph, 0, 6, round) for round in range(4)] == [(1,), (2,), (4,), (1,)]
    assert topology.period(graph, 6) == 3
    assert topology.all_out_peers(graph, 5, 6) == (0, 1, 3)


@given(topologies(), SIZES, ROUNDS)
def test_every_rank_has_as_many_in_peers_as_out_peers_and_never_itself(graph: Topology, size: int, round: int) -> None:
    degrees = set()
    for rank in range(size):
        out, into = topology.out_peers(graph, rank, size, round), topology.in_peers(graph, rank, size, round)
        assert rank not in out + into
        assert len(set(out)) == len(out)
        degrees |= {len(out), len(into)}
    assert len(degrees) == 1


@given(topologies(), SIZES, ROUNDS)
def test_in_peers_are_the_out_peers_seen_from_the_other_end(graph: Topology, size: int, round: int) -> None:
    pushed = {(i, j) for i in range(size) for j in topology.out_peers(graph, i, size, round)}
    heard = {(i, j) for j in range(size) for i in topology.in_peers(graph, j, size, round)}
    assert pushed == heard


@given(topologies(), SIZES)
def test_every_rank_reaches_every_other_within_a_period(graph: Topology, size: int) -> None:
    reached, frontier = {0}, [0]
    while frontier:
        here = frontier.pop()
        new = set(topology.all_out_peers(graph, here, size)) - reached
        reached |= new
        frontier += new
    # From rank 0 to all is enough: every graph here looks the same from each rank.
    assert reached == set(range(size))


@given(topologies(), SIZES, ROUNDS)
def test_mixing_matrices_are_doubly_stochastic_and_uniform(graph: Topology, size: int, round: int) -> None:
    matrix = np.array(topology.mixing_matrix(graph, size, round))
    assert matrix.shape == (size, size)
    np.testing.assert_allclose(matrix.sum(axis=0), 1)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    assert len(np.unique(matrix[matrix > 0])) == 1
    assert (matrix.diagonal() > 0).all()


@given(topologies(), SIZES)
def test_beta_is_the_norm_that_singular_values_give(graph: Topology, size: int) -> None:
    periods = topology.period(graph, size)
    assert topology.beta(graph, size) ** periods == pytest.approx(spread(product_over_a_period(graph, size)), abs=1e-9)


@pytest.mark.parametrize("size", [2, 4, 8, 16, 64])
def test_beta_of_the_ring_is_the_cosine(size: int) -> None:
    assert topology.beta(Topology(type="Ring"), size) == pytest.approx(math.cos(math.pi / size), abs=1e-12)


@pytest.mark.parametrize(("size", "beta"), [(4, 1 / 3), (8, 1 / 2), (16, 0.6), (32, 2 / 3), (64, 5 / 7)])
def test_beta_of_the_exponential_graph_is_the_measured_one(size: int, beta: float) -> None:
    assert topology.beta(Topology(type="Exponential"), size) == pytest.approx(beta, abs=1e-12)


@pytest.mark.parametrize("kind", TYPES)
def test_a_learner_alone_has_nobody_to_disagree_with(kind: str) -> None:
    assert topology.beta(Topology(type=kind), 1) == 0
    assert topology.mixing_matrix(Topology(type=kind), 1) == [[1.0]]


def test_beta_of_the_complete_graph_is_zero() -> None:
    assert topology.beta(Topology(type="Complete"), 7) == 0


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32])
def test_one_peer_exponential_averages_exactly_in_log2_rounds(size: int) -> None:
    graph = Topology(type="OnePeerExponential")
    assert topology.period(graph, size) == math.log2(size)
    np.testing.assert_allclose(product_over_a_period(graph, size), 1 / size)
    assert topology.beta(graph, size) == 0


@given(topologies(), st.sets(st.integers(0, 60), min_size=1, max_size=20), ROUNDS)
def test_the_healed_graph_is_the_same_graph_over_the_survivors(graph: Topology, members: set[int], round: int) -> None:
    ring = sorted(members)
    for index, rank in enumerate(ring):
        expected = tuple(ring[peer] for peer in topology.out_peers(graph, index, len(ring), round))
        assert topology.successors(graph, list(members), rank, round) == expected
        for peer in expected:
            assert rank in topology.predecessors(graph, list(members), peer, round)


@given(st.sets(st.integers(0, 60), min_size=2, max_size=20))
def test_the_healed_ring_is_one_cycle_through_all_survivors(members: set[int]) -> None:
    graph = Topology(type="Ring")
    here, walk = min(members), []
    for _ in members:
        walk.append(here)
        (here,) = topology.successors(graph, list(members), here)
    assert walk == sorted(members)
    assert here == min(members)


@given(st.integers(2, 40))
def test_a_larger_ring_mixes_more_slowly(size: int) -> None:
    betas = [topology.beta(Topology(type="Ring"), n) for n in (size, size + 1)]
    assert all(smaller < larger for smaller, larger in pairwise(betas))


@pytest.mark.parametrize(("size", "round"), [(0, 0), (-1, 0), (4, -1)])
def test_impossible_sizes_and_rounds_are_refused(size: int, round: int) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        topology.offsets(Topology(), size, round)


def test_a_rank_that_is_no_member_is_refused() -> None:
    with pytest.raises(ValueError, match="is not in list"):
        topology.successors(Topology(), [0, 2], 1)
