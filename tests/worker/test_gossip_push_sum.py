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


def fleet_of(
    learners: int = 4, *, shape=None, mixing="push-sum", faults=None, num_elements: int = 8, **gossip
) -> Fleet:
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


def misfortunes() -> FaultScript:
    script = FaultScript()
    for rank in range(4):
        to = (rank + 1) % 4
        script.drop(rank, to, times=3).truncate(rank, to).nan(rank, to).duplicate(rank, to)
        script.delay(rank, to, seconds=0.3, times=5).drop_ack(to, rank, times=3)
    return script


def test_where_messages_are_late_lost_and_streams_break_push_sum_keeps_the_mean_and_averaging_does_not():
    drifts = {}
    for mixing in ("average", "push-sum"):
        faults = misfortunes()
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


class Ledger:
    """What a fleet of learners that come and go should own. The rules of docs/protocol.md, written down again."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.total, self.weight = fleet.owned()

    def check(self) -> None:
        total, weight = self.fleet.owned()
        assert weight == pytest.approx(self.weight, rel=1e-9)
        np.testing.assert_allclose((total / weight).numpy(), (self.total / self.weight).numpy(), atol=1e-4)

    def _add(self, vector: torch.Tensor, weight: float) -> None:
        self.total = self.total + weight * vector.double()
        self.weight += weight

    def kill(self, rank: int) -> None:
        """Its own weight leaves with it, and what it had given and nobody took; what it took without saying so is back
        at the sender's."""
        fleet, victim = self.fleet, self.fleet.learners[rank]
        self._add(victim.vector, -victim.peer.weight)
        for snapshot, weight in fleet._on_the_way(victim):
            self._add(snapshot.buffer, -weight)
        taken = {peer: edge.accepted for peer, edge in victim.peer._hood.in_edges.items()}
        for peer, learner in fleet.learners.items():
            edge = learner.peer._hood.out_edges.get(rank)
            for snapshot in edge.outbox.in_transit if edge is not None and peer != rank and not learner.stopped else []:
                if snapshot.version <= taken.get(peer, 0):
                    self._add(snapshot.buffer, snapshot.weight)
        orphans = {
            peer: (edge.outbox.in_transit, fleet.learners[peer].peer._hood.in_edges.get(rank))
            for peer, edge in victim.peer._hood.out_edges.items()
            if not fleet.learners[peer].stopped
        }
        before = {peer: edge.accepted for peer, (_, edge) in orphans.items() if edge is not None}
        fleet.kill(rank)
        fleet.network.advance(0.1)  # until everybody has noticed
        for peer, (given, edge) in orphans.items():
            for snapshot in given:
                if edge is not None and before[peer] < snapshot.version <= edge.accepted:
                    self._add(snapshot.buffer, snapshot.weight)

    def restart(self, rank: int, incarnation: int) -> None:
        """It begins where a neighbour is, with a weight of its own."""
        fleet = self.fleet
        source = next(learner for learner in fleet.learners.values() if not learner.stopped)
        reborn = fleet.restart(rank, incarnation)
        reborn.vector.copy_(source.vector)
        self._add(reborn.vector, 1.0)
        reborn.peer.join()
        fleet.run(rank, period_seconds=pace(fleet, rank))


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
    assert sum(learner.peer._hood.account.taken_back for learner in fleet.learners.values()) > 0


# ------------------------------------------------------------------ what becomes of one message


def pair(**kwargs) -> tuple[Fleet, Ledger]:
    """Learner 0, at 0, gives to learner 1, at 10; nothing else happens by itself."""
    fleet = fleet_of(2, num_elements=1, **kwargs)
    for learner, number in zip(fleet.learners.values(), (0.0, 10.0), strict=True):
        learner.vector.fill_(number)
    return fleet, Ledger(fleet)


def weights(fleet: Fleet) -> list[float]:
    return [learner.peer.weight for learner in fleet.learners.values()]


def reconnect(fleet: Fleet) -> None:
    assert fleet.network.run_until(fleet.is_connected, 10.0)


def settle(fleet: Fleet, rank: int = 0) -> None:
    """One more update of the learner, which gives nothing away."""
    fleet.learners[rank].mix()


def test_a_message_that_was_not_taken_when_the_stream_broke_is_taken_back():
    fleet, ledger = pair()
    fleet.learners[0].offer()
    fleet.network.advance(0.1)  # it lies at the receiver's
    assert weights(fleet) == [0.5, 1.0]
    assert fleet.network.sever(0, 1) == 2
    assert fleet.learners[1].mix() is None  # and is gone from there
    reconnect(fleet)
    settle(fleet)
    assert weights(fleet) == [1.0, 1.0]
    ledger.check()


def test_a_message_whose_acknowledgement_was_lost_with_the_stream_is_not_taken_back():
    fleet, ledger = pair()
    fleet.learners[0].offer()
    fleet.network.advance(0.1)
    assert fleet.learners[1].mix() is not None
    fleet.network.sever(0, 1)  # before the acknowledgement has arrived
    reconnect(fleet)
    settle(fleet)
    assert weights(fleet) == [0.5, 1.5]
    ledger.check()


def test_a_lost_acknowledgement_is_made_good_by_the_next_heartbeat():
    faults = FaultScript().drop_ack(1, 0)
    fleet, ledger = pair(faults=faults)
    fleet.learners[0].offer()
    fleet.network.advance(0.1)
    fleet.learners[1].mix()
    fleet.network.advance(TIMEOUT)
    assert not faults.unfired()
    assert settled(fleet)
    ledger.check()


def test_a_refused_message_is_taken_back_and_the_stream_stays():
    faults = FaultScript().nan(0, 1)
    fleet, ledger = pair(faults=faults)
    fleet.learners[0].offer()
    fleet.network.advance(TIMEOUT)
    settle(fleet)
    assert not faults.unfired()
    assert weights(fleet) == [1.0, 1.0]
    assert fleet.is_connected()
    ledger.check()


def test_a_learner_whose_parameters_were_not_finite_gets_its_weight_back_without_them():
    fleet, _ = pair()
    fleet.learners[0].vector.fill_(float("nan"))
    fleet.learners[0].offer()
    fleet.learners[0].vector.fill_(3.0)
    fleet.network.advance(0.1)
    settle(fleet)
    assert weights(fleet) == [1.0, 1.0]
    assert fleet.learners[0].vector.item() == 3.0


def test_a_receiver_that_leaves_gives_back_what_it_has_not_taken_and_keeps_what_it_has():
    for takes in (False, True):
        fleet, _ = pair()
        fleet.learners[0].offer()
        fleet.network.advance(0.1)
        if takes:
            fleet.learners[1].mix()
        fleet.learners[1].peer.close()
        fleet.network.advance(0.1)
        settle(fleet)
        assert fleet.learners[0].peer.weight == (0.5 if takes else 1.0)


def test_a_receiver_of_another_process_has_nothing():
    fleet, _ = pair()
    fleet.learners[0].offer()
    fleet.network.advance(0.1)
    fleet.kill(1)
    fleet.restart(1).peer.join()
    reconnect(fleet)
    settle(fleet)
    assert weights(fleet) == [1.0, 1.0]


def test_a_sender_that_leaves_takes_with_it_what_nobody_has_taken():
    fleet, _ = pair()
    fleet.learners[0].offer()
    fleet.network.advance(0.1)
    fleet.learners.pop(0).peer.close()
    fleet.network.advance(0.1)
    assert fleet.learners[1].mix() is None
    assert weights(fleet) == [1.0]


def test_a_process_that_comes_back_may_begin_its_versions_anew():
    fleet, _ = pair()
    for _ in range(3):
        fleet.learners[0].offer()
        fleet.network.advance(0.1)
        fleet.learners[1].mix()
        fleet.network.advance(0.1)
    fleet.kill(0)
    fleet.restart(0).peer.join()
    reconnect(fleet)
    fleet.learners[0].offer()  # version 1
    fleet.network.advance(0.1)
    assert fleet.learners[1].mix() is not None


def test_a_receiver_that_falls_silent_is_given_up_after_the_timeout():
    fleet, ledger = pair()
    fleet.learners[0].offer()
    fleet.network.advance(0.1)
    fleet.hang(1)
    fleet.network.advance(1.5 * TIMEOUT)
    settle(fleet)
    assert fleet.learners[0].peer.weight == 0.5  # it may be back any moment
    fleet.network.advance(TIMEOUT)
    settle(fleet)
    assert fleet.learners[0].peer.weight == 1.0
    fleet.resume(1)
    reconnect(fleet)
    settle(fleet)
    assert weights(fleet) == [1.0, 1.0]
    ledger.check()


def test_a_message_taken_back_from_a_silent_receiver_that_took_it_after_all_is_paid_for():
    fleet, ledger = pair()
    fleet.learners[0].offer()
    fleet.network.advance(0.1)
    fleet.hang(1)
    fleet.network.advance(3 * TIMEOUT)
    settle(fleet)
    assert fleet.learners[1].mix() is not None  # its learner wakes up before its network does
    assert weights(fleet) == [1.0, 1.5]
    fleet.learners[0].vector.fill_(4.0)
    ledger.total = ledger.total + 4.0
    fleet.resume(1)
    reconnect(fleet)
    settle(fleet)
    assert weights(fleet) == [0.5, 1.5]
    assert fleet.learners[0].vector.item() == pytest.approx(8.0)  # 1 of 4.0 without 0.5 of 0.0
    ledger.check()


def test_receipts_are_few():
    fleet = fleet_of(8, shape={"type": "Complete"})
    fleet.learners[0].offer()
    fleet.network.advance(0.1)
    for rank in range(1, 8):
        fleet.hang(rank)
    fleet.network.advance(3 * TIMEOUT)
    account = fleet.learners[0].peer._hood.account
    assert account.receipts == MAX_RECEIPTS
    assert account.taken_back == 7
    settle(fleet)
    assert fleet.learners[0].peer.weight == pytest.approx(1.0)
    for rank in range(1, 8):
        fleet.resume(rank)
    assert fleet.network.run_until(fleet.is_connected, 20.0)
    assert account.receipts == 0
    assert fleet.learners[0].peer._pool.allocated <= 3


def test_a_stand_in_is_left_only_when_it_has_said_what_became_of_its_message():
    fleet = fleet_of(3, num_elements=1)
    ledger = Ledger(fleet)
    ledger.kill(1)
    giver = fleet.learners[0]
    assert giver.peer.stats().out_peers == (2,)
    giver.offer()
    fleet.network.advance(0.1)
    ledger.total, ledger.weight = ledger.total + fleet.learners[0].vector.double(), ledger.weight + 1.0
    reborn = fleet.restart(1)
    reborn.vector.copy_(giver.vector)
    reborn.peer.join()
    fleet.network.advance(10.0)
    assert giver.peer.stats().out_peers == (1,)
    ledger.check()
    assert fleet.learners[2].mix() is not None  # long after it was replaced as a neighbour
    fleet.network.advance(0.5)
    assert settled(fleet)
    ledger.check()


def test_an_edge_carries_one_message_until_it_is_taken():
    fleet, _ = pair()
    for _ in range(50):
        fleet.learners[0].offer()
        fleet.network.advance(0.01)
    assert weights(fleet) == [0.5, 1.0]
    assert fleet.learners[0].peer._pool.allocated == 1


def test_a_learner_from_which_others_only_take_stops_giving_before_it_has_nothing():
    fleet, _ = pair()
    for _ in range(100):
        fleet.learners[0].offer()
        fleet.network.advance(0.01)
        fleet.learners[1].mix()
        fleet.network.advance(0.01)
    assert fleet.learners[0].peer.weight == 2.0**-30
    assert sum(weights(fleet)) == 2.0


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
