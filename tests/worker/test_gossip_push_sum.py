"""Push-sum keeps the mean where plain averaging lets it drift: late, uneven, lost, broken, left and come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gala import topology
from gala_worker.gossip.faults import FaultScript
from gala_worker.gossip.fleet import Fleet, small_plan
from gala_worker.gossip.push_sum import MAX_RECEIPTS

TIMEOUT = 2.0
SHAPES = [
    pytest.param({"type": "Ring"}, 4, id="ring"),
    pytest.param({"type": "Ring", "peers": 2}, 5, id="ring-of-two"),
    pytest.param({"type": "Exponential"}, 8, id="exponential"),
    pytest.param({"type": "OnePeerExponential"}, 8, id="one-peer"),
    pytest.param({"type": "Complete"}, 4, id="complete"),
]


def fleet_of(learners: int = 4, *, shape=None, mixing="push-sum", faults=None, num_elements: int = 8, **gossip) -> Fleet:
    plan = small_plan(
        learners=learners,
        topology=shape or {"type": "Ring"},
        gossip={"peerTimeoutSeconds": TIMEOUT, "mixing": mixing, **gossip},
    )
    fleet = Fleet(plan, faults=faults, num_elements=num_elements)
    fleet.connect()
    scatter(fleet)
    return fleet


def scatter(fleet: Fleet) -> None:
    generator = torch.Generator().manual_seed(0)
    for learner in fleet.learners.values():
        learner.vector.copy_(torch.randn(fleet.num_elements, generator=generator) + learner.rank)


def kept(fleet: Fleet) -> np.ndarray:
    """The weighted mean [N] of everything, on its way or not."""
    total, weight = fleet.owned()
    return (total / weight).numpy()


def radius(fleet: Fleet) -> float:
    vectors = torch.stack([learner.vector for learner in fleet.learners.values()])
    return float((vectors - vectors.mean(dim=0)).norm(dim=1).max())


def settled(fleet: Fleet) -> bool:
    return not any(fleet._on_the_way(learner) for learner in fleet.learners.values())


# ------------------------------------------------------------------ in lock step


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_synchronous_push_sum_on_a_regular_graph_is_averaging(shape, size):
    vectors = {}
    for mixing in ("average", "push-sum"):
        fleet = fleet_of(size, shape=shape, mixing=mixing, maxStaleness=0)
        fleet.lockstep(20)
        vectors[mixing] = torch.stack([learner.vector for learner in fleet.learners.values()])
        assert all(len(learner.mixings) == 20 for learner in fleet.learners.values())
        assert [learner.peer.weight for learner in fleet.learners.values()] == pytest.approx([1.0] * size)
    torch.testing.assert_close(vectors["push-sum"], vectors["average"], rtol=1e-6, atol=1e-6)


def test_synchronous_push_sum_with_updates_equals_the_product_of_the_mixing_matrices():
    fleet = fleet_of(6, shape={"type": "Exponential"}, maxStaleness=0)
    matrix = np.array(topology.mixing_matrix(fleet.plan.spec.topology, 6))
    expected = torch.stack([learner.vector for learner in fleet.learners.values()]).double().numpy()
    rng = np.random.default_rng(1)
    for _ in range(30):
        updates = rng.normal(size=expected.shape).astype(np.float32)
        fleet.lockstep(1, lambda learner, u=updates: learner.vector.add_(torch.from_numpy(u[learner.rank])))
        expected = matrix @ (expected + updates)
    found = torch.stack([learner.vector for learner in fleet.learners.values()]).double().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_messages_carry_the_weight_that_their_sender_no_longer_has():
    fleet = fleet_of(4, shape={"type": "Complete"})
    giver = fleet.learners[0]
    giver.offer()
    assert giver.peer.weight == pytest.approx(0.25)
    fleet.network.advance(0.1)
    taker = fleet.learners[1]
    taker.offer()
    assert taker.mix() is not None
    assert taker.peer.weight == pytest.approx(0.5)
    assert taker.peer.stats().weight == taker.peer.weight


def test_mixing_weighs_what_has_arrived_and_needs_no_message_from_every_in_peer():
    fleet = fleet_of(3, shape={"type": "Ring", "peers": 2}, num_elements=1)
    for learner, number in zip(fleet.learners.values(), (0.0, 6.0, 100.0), strict=True):
        learner.vector.fill_(number)
    fleet.learners[1].offer()  # gives a third to 2 and to 0
    fleet.network.advance(0.1)
    mixing = fleet.learners[0].mix()
    assert mixing is not None
    assert mixing.peers == (1,)
    assert fleet.learners[0].vector.item() == pytest.approx(6.0 / 3 / (1 + 1 / 3))


# ------------------------------------------------------------------ asynchrony


def start_at_their_own_pace(fleet: Fleet) -> None:
    """Learners whose paces differ by up to a factor of four."""
    for rank in fleet.learners:
        fleet.run(rank, period_seconds=pace(fleet, rank))


def pace(fleet: Fleet, rank: int) -> float:
    return 0.02 * (1 + 3 * rank / len(fleet.plan.ranks))


@pytest.mark.parametrize(("shape", "size"), SHAPES)
@pytest.mark.parametrize("staleness", [None, 3])
def test_the_weighted_mean_is_kept_at_every_moment_whatever_the_pace_of_the_learners(shape, size, staleness):
    fleet = fleet_of(size, shape=shape, maxStaleness=staleness)
    before = kept(fleet)
    start_at_their_own_pace(fleet)
    for _ in range(40):
        fleet.network.advance(0.1)
        np.testing.assert_allclose(kept(fleet), before, atol=1e-5)
        assert fleet.owned()[1] == pytest.approx(size)
    assert radius(fleet) < 0.02
