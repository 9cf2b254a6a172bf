"""Push-sum: what becomes of one message and of its weight, whatever becomes of the stream."""

from __future__ import annotations

import pytest

from gala_worker.gossip.faults import FaultScript
from gala_worker.gossip.fleet import Fleet
from gala_worker.gossip.push_sum import MAX_RECEIPTS
from push_sum_fleet import TIMEOUT, Ledger, fleet_of, settled

pytestmark = pytest.mark.usefixtures("carried")

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


@pytest.mark.parametrize("carried", ["chunks"], indirect=True)
def test_a_refused_message_is_taken_back_and_the_stream_stays(carried):
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


def test_a_sender_keeps_at_most_so_many_receipts():
    fleet = fleet_of(8, shape={"type": "Complete"})
    fleet.learners[0].offer()
    fleet.network.advance(0.1)
    for rank in range(1, 8):
        fleet.hang(rank)
    fleet.network.advance(3 * TIMEOUT)
    account = fleet.learners[0].peer._hood.standing.account
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
