"""Push-sum keeps the mean where plain averaging lets it drift: late, uneven, lost, broken, left and come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gala import topology
from gala_worker.gossip.faults import FaultScript
from gala_worker.gossip.fleet import Fleet
from push_sum_fleet import SHAPES, TIMEOUT, Ledger, fleet_of, kept, pace, radius, start_at_their_own_pace

pytestmark = pytest.mark.usefixtures("carried")

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


# ------------------------------------------------------------------ faults


class Walk:
    """Learners take random steps; knows where the mean would be if nothing but the steps moved it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.weighted = fleet.plan.spec.gossip.mixing == "push-sum"
        self.total, self.weight = fleet.owned() if self.weighted else (fleet.mean(), 1.0)
        self._rng = np.random.default_rng(5)

    def step(self, learner) -> None:
        change = torch.from_numpy(self._rng.normal(size=self.fleet.num_elements).astype(np.float32))
        before = learner.vector.double()
        learner.vector.add_(change)
        share = learner.peer.weight if self.weighted else 1 / len(self.fleet.plan.ranks)
        self.total += share * (learner.vector.double() - before)

    def drift(self) -> float:
        """How far the mean is from there, relative to how far a learner steps."""
        total, weight = self.fleet.owned() if self.weighted else (self.fleet.mean(), 1.0)
        assert weight == pytest.approx(self.weight)
        return float((total / weight - self.total / self.weight).norm()) / self.fleet.num_elements**0.5


def misfortunes(carried: str) -> FaultScript:
    script = FaultScript()
    for rank in range(4):
        to = (rank + 1) % 4
        script.drop(rank, to, times=3).truncate(rank, to).duplicate(rank, to)
        if carried == "chunks":  # a loan does not travel
            script.nan(rank, to)
        script.delay(rank, to, seconds=0.3, times=5).drop_ack(to, rank, times=3)
    return script


@pytest.mark.parametrize("carried", ["chunks", "loans"], indirect=True)
def test_where_messages_are_late_lost_and_streams_break_push_sum_keeps_the_mean_and_averaging_does_not(
    carried,
):
    drifts = {}
    for mixing in ("average", "push-sum"):
        faults = misfortunes(carried)
        fleet = fleet_of(faults=faults, mixing=mixing)
        walk = Walk(fleet)
        for rank in fleet.learners:
            fleet.run(rank, period_seconds=pace(fleet, rank), update=walk.step)
        broken = 0
        for number in range(100):
            fleet.network.advance(0.11)
            broken += fleet.network.sever(number % 4, (number + 1) % 4) if number % 5 == 0 else 0
            drifts[mixing] = max(drifts.get(mixing, 0.0), walk.drift())
        assert not faults.unfired()
        assert broken >= 15
        assert all(len(learner.mixings) > 50 for learner in fleet.learners.values())
    assert drifts["push-sum"] < 1e-4
    assert drifts["average"] > 1.0, drifts


@pytest.mark.parametrize("staleness", [None, 2])
@pytest.mark.parametrize("shape", [{"type": "Ring"}, {"type": "Exponential"}, {"type": "OnePeerExponential"}])
def test_learners_come_and_go_and_what_they_own_comes_and_goes_with_them_and_nothing_else(shape, staleness):
    fleet = fleet_of(6, shape=shape, maxStaleness=staleness)
    ledger = Ledger(fleet)
    start_at_their_own_pace(fleet)
    rng = np.random.default_rng(3)
    for number in range(2, 14):
        fleet.network.advance(0.3 + 0.2 * rng.random())
        ledger.check()
        victim = int(rng.integers(6))
        ledger.kill(victim)
        ledger.check()
        fleet.network.sever(*(int(rank) for rank in rng.permutation([r for r in range(6) if r != victim])[:2]))
        fleet.network.advance(rng.choice([0.1, 1.5 * TIMEOUT]))
        ledger.check()
        ledger.restart(victim, number)
    fleet.network.advance(5.0)
    ledger.check()
    assert fleet.is_connected()
    assert radius(fleet) < 0.05
    assert sum(learner.peer._hood.standing.account.taken_back for learner in fleet.learners.values()) > 0


# ------------------------------------------------------------------ waiting


@pytest.mark.parametrize("how", ["kill", "hang"])
def test_synchronous_learners_wait_for_a_lost_one_no_longer_than_the_timeout(how):
    fleet = fleet_of(4, maxStaleness=0)
    fleet.lockstep(3)
    getattr(fleet, how)(2)
    others = [fleet.learners[rank] for rank in (0, 1, 3)]
    longest = 0.0
    for _ in range(100):
        for learner in others:
            learner.offer()
        for learner in others:
            began = fleet.network.now
            learner.mix()
            longest = max(longest, fleet.network.now - began)
    assert longest <= TIMEOUT + 1e-9
    assert others[0].peer.stats().mixes > 75
    assert fleet.learners[3].peer.stats().in_peers == (1,)


def test_a_staleness_bound_holds_for_every_in_peer_and_not_only_for_the_busiest():
    fleet = fleet_of(3, shape={"type": "Ring", "peers": 2}, maxStaleness=2, peerTimeoutSeconds=1)
    reader, busy, lazy = fleet.learners[0], fleet.learners[1], fleet.learners[2]
    fleet.network.schedule(0.7, lazy.offer)
    for _ in range(2):
        before = fleet.network.now
        busy.offer()
        fleet.network.advance(0.01)
        reader.offer()
        mixing = reader.mix()
        assert mixing is not None
        assert mixing.peers == (1,)
        assert fleet.network.now < before + 0.02
    reader.offer()
    before = fleet.network.now
    mixing = reader.mix()
    assert mixing is not None
    assert mixing.peers == (2,)
    assert 0.5 < fleet.network.now - before < 1.0
