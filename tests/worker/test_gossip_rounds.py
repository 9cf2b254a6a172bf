"""Synchronous gossip is the mixing matrix, and the epsilon-ball is where the theory says it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gala import topology
from gala_worker.gossip.fleet import Fleet, small_plan

pytestmark = pytest.mark.usefixtures("carried")

TOPOLOGIES = [
    pytest.param({"type": "Ring"}, 5, id="ring"),
    pytest.param({"type": "Ring", "peers": 2}, 6, id="ring-of-two"),
    pytest.param({"type": "Exponential"}, 8, id="exponential"),
    pytest.param({"type": "OnePeerExponential"}, 8, id="one-peer"),
    pytest.param({"type": "OnePeerExponential"}, 5, id="one-peer-of-5"),
    pytest.param({"type": "Complete"}, 4, id="complete"),
    pytest.param({"type": "Ring"}, 2, id="pair"),
    pytest.param({"type": "Ring"}, 1, id="alone"),
]


def synchronous_fleet(shape, size, **kwargs):
    gossip = {"maxStaleness": 0, **kwargs.pop("gossip", {})}
    fleet = Fleet(small_plan(learners=size, topology=shape, gossip=gossip), **kwargs)
    fleet.connect()
    return fleet


def matrix(fleet, round):
    return np.array(topology.mixing_matrix(fleet.plan.spec.topology, len(fleet.learners), round))


def stacked(fleet):
    return torch.stack([learner.vector for learner in fleet.learners.values()]).double().numpy()


def scatter(fleet, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for learner in fleet.learners.values():
        learner.vector.copy_(torch.randn(fleet.num_elements, generator=generator))


@pytest.mark.parametrize(("shape", "size"), TOPOLOGIES)
def test_fifty_synchronous_rounds_equal_the_product_of_the_mixing_matrices(shape, size):
    fleet = synchronous_fleet(shape, size, num_elements=16)
    scatter(fleet)
    expected = stacked(fleet)
    rng = np.random.default_rng(1)
    for round in range(1, 51):
        updates = rng.normal(size=expected.shape).astype(np.float32)
        fleet.lockstep(1, lambda learner, u=updates: learner.vector.add_(torch.from_numpy(u[learner.rank])))
        expected = matrix(fleet, round) @ (expected + updates)
        np.testing.assert_allclose(stacked(fleet), expected, rtol=1e-5, atol=1e-5)
    if size > 1:
        assert all(len(learner.mixings) == 50 for learner in fleet.learners.values())


def test_the_one_peer_exponential_graph_averages_exactly_in_log2_n_rounds():
    fleet = synchronous_fleet({"type": "OnePeerExponential"}, 8, num_elements=4)
    scatter(fleet)
    mean = stacked(fleet).mean(axis=0)
    fleet.lockstep(3)
    np.testing.assert_allclose(stacked(fleet), np.tile(mean, (8, 1)), atol=1e-6)


def test_messages_of_several_chunks_mix_like_small_ones():
    fleet = synchronous_fleet({"type": "Ring"}, 2, num_elements=700_001)
    scatter(fleet)
    mean = stacked(fleet).mean(axis=0)
    fleet.lockstep(1)
    np.testing.assert_allclose(stacked(fleet), np.tile(mean, (2, 1)), atol=1e-6)


def test_bfloat16_on_the_wire_mixes_to_its_precision():
    fleet = synchronous_fleet({"type": "Ring"}, 4, num_elements=64, gossip={"precision": "bfloat16"})
    scatter(fleet)
    expected = matrix(fleet, 1) @ stacked(fleet)
    fleet.lockstep(1)
    error = np.abs(stacked(fleet) - expected).max()
    assert 0 < error < 4 * 2**-8


@settings(max_examples=20)
@given(
    shape=st.sampled_from([{"type": "Ring"}, {"type": "Ring", "peers": 2}, {"type": "Exponential"}]),
    size=st.integers(3, 9),
    alpha=st.floats(0.01, 10),
    seed=st.integers(0, 2**16),
)
def test_the_radius_stays_within_the_bound_of_the_theory(shape, size, alpha, seed):
    """||X(k) - mean|| <= alpha * sum over s < k of beta^(k-s) ||G(s)|| from a common start."""
    fleet = synchronous_fleet(shape, size, num_elements=6)
    beta = topology.beta(fleet.plan.spec.topology, size)
    rng = np.random.default_rng(seed)
    norms: list[float] = []
    for _ in range(12):
        gradients = rng.normal(size=(size, 6)).astype(np.float32) * rng.choice([0.0, 1.0, 5.0])
        norms.append(float(np.linalg.norm(gradients)))
        fleet.lockstep(
            1, lambda learner, g=gradients: learner.vector.add_(torch.from_numpy(g[learner.rank]), alpha=alpha)
        )
        x = stacked(fleet)
        k = len(norms)
        bound = alpha * sum(beta ** (k - s) * norm for s, norm in enumerate(norms))
        assert np.linalg.norm(x - x.mean(axis=0)) <= bound * (1 + 1e-4) + 1e-4 * alpha


def test_the_disagreement_is_measured_before_mixing():
    fleet = synchronous_fleet({"type": "Ring"}, 2, num_elements=4)
    fleet.learners[0].vector.fill_(3.0)
    fleet.learners[1].vector.fill_(5.0)
    fleet.lockstep(1)
    mixing = fleet.learners[0].mixings[0]
    assert mixing.disagreement == pytest.approx(4.0)
    assert mixing.relative_disagreement == pytest.approx(4.0 / 6.0)
    assert (mixing.peers, mixing.versions) == ((1,), (1,))


def test_the_disagreement_leaves_out_what_is_no_parameter_but_mixing_does_not():
    fleet = Fleet(small_plan(learners=2), num_elements=4, num_parameters=1)
    fleet.connect()
    fleet.learners[0].vector.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    fleet.learners[1].vector.copy_(torch.tensor([4.0, 100.0, 100.0, 100.0]))
    for learner in fleet.learners.values():
        learner.offer()
    assert fleet.network.run_until(lambda: fleet.learners[0].mix() is not None, 5.0)
    assert fleet.learners[0].mixings[0].disagreement == pytest.approx(3.0)
    assert fleet.learners[0].vector.tolist() == [2.5, 50.0, 50.0, 50.0]


def test_a_learner_that_never_waits_skips_mixing_until_every_in_peer_has_sent():
    fleet = Fleet(small_plan(learners=3, topology={"type": "Ring", "peers": 2}))
    fleet.connect()
    reader, first, second = fleet.learners[0], fleet.learners[1], fleet.learners[2]
    first.offer()
    fleet.network.advance(0.1)
    reader.offer()
    assert reader.mix() is None
    second.offer()
    fleet.network.advance(0.1)
    mixing = reader.mix()
    assert mixing is not None
    assert mixing.peers == (1, 2)
    assert reader.mix() is None  # neither message is fresh any more


def test_a_staleness_bound_lets_so_many_updates_pass_and_then_waits():
    fleet = Fleet(small_plan(learners=2, gossip={"maxStaleness": 2, "peerTimeoutSeconds": 1}))
    fleet.connect()
    fast, slow = fleet.learners[0], fleet.learners[1]
    fleet.network.schedule(0.7, slow.offer)
    for _ in range(2):
        before = fleet.network.now
        fast.offer()
        assert fast.mix() is None
        assert fleet.network.now == before
    fast.offer()
    before = fleet.network.now
    mixing = fast.mix()
    assert mixing is not None
    assert 0.5 < fleet.network.now - before < 1.0


def test_staleness_is_counted_in_updates_and_seconds():
    fleet = Fleet(small_plan(learners=2))
    fleet.connect()
    fleet.learners[1].offer()
    fleet.network.advance(0.5)
    for _ in range(3):
        fleet.learners[0].offer()
    mixing = fleet.learners[0].mix()
    assert mixing is not None
    assert mixing.staleness_updates == 3
    assert mixing.staleness_seconds == pytest.approx(0.5, abs=0.01)


def test_an_update_every_few_offers_makes_the_round_of_a_time_varying_graph():
    fleet = Fleet(
        small_plan(learners=4, topology={"type": "OnePeerExponential"}, gossip={"everyUpdates": 3, "maxStaleness": 2})
    )
    fleet.connect()
    scatter(fleet)
    expected = matrix(fleet, 2) @ matrix(fleet, 1) @ stacked(fleet)
    for _ in range(2):  # versions 3 and 6, rounds 1 and 2
        for learner in fleet.learners.values():
            learner.updates += 2
            learner.offer()
        for learner in fleet.learners.values():
            learner.mix()
    np.testing.assert_allclose(stacked(fleet), expected, atol=1e-6)
