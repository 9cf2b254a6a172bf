"""Whatever goes wrong with one neighbour, the others go on, in bounded memory; and it did go wrong."""

from __future__ import annotations

import pytest
import torch

from gala_worker.gossip.faults import FaultScript
from gala_worker.gossip.fleet import Fleet, small_plan
from gala_worker.gossip.slots import BUFFERS_PER_IN_EDGE

pytestmark = pytest.mark.usefixtures("carried")

PERIOD = 0.02
TIMEOUT = 2.0
FOUR_CHUNKS = 900_000
"""Elements of a message of four chunks: order and loss of chunks then mean something."""


def running_fleet(
    faults: FaultScript | None = None, learners: int = 4, num_elements: int = 8, period: float = PERIOD, **gossip
) -> Fleet:
    plan = small_plan(learners=learners, gossip={"peerTimeoutSeconds": TIMEOUT, **gossip})
    fleet = Fleet(plan, faults=faults, num_elements=num_elements)
    fleet.connect()
    for rank in plan.ranks:
        fleet.run(rank, period_seconds=period)
    return fleet


def mixes(fleet: Fleet) -> dict[int, int]:
    return {rank: len(learner.mixings) for rank, learner in fleet.learners.items()}


def edge(fleet: Fleet, rank: int, peer: int, direction: str):
    return next(e for e in fleet.learners[rank].peer.stats().edges if (e.peer, e.direction) == (peer, direction))


def assert_memory_is_bounded(fleet: Fleet) -> None:
    for learner in fleet.learners.values():
        hood = learner.peer._hood
        assert all(edge.inbox.allocated <= BUFFERS_PER_IN_EDGE for edge in hood.in_peers.edges.values())
        assert learner.peer._pool.allocated <= 2 * max(1, len(hood.out_peers.edges)) + 1
        assert len(hood.in_peers.sessions) <= len(fleet.learners) + 1


def assert_all_mix(fleet: Fleet, ranks, seconds: float = 1.0) -> None:
    """Every one of the ranks makes updates, and mixes in at least half of them."""
    before, updates = mixes(fleet), {rank: fleet.learners[rank].updates for rank in ranks}
    fleet.network.advance(seconds)
    after = mixes(fleet)
    for rank in ranks:
        made = fleet.learners[rank].updates - updates[rank]
        assert made >= 4, f"rank {rank} has stopped"
        assert after[rank] - before[rank] >= 0.5 * made, f"rank {rank} has stopped mixing"


@pytest.mark.parametrize(
    ("script", "num_elements", "refused"),
    [
        pytest.param(lambda: FaultScript().drop(0, 1, version=5), 8, True, id="drop"),
        pytest.param(lambda: FaultScript().drop(0, 1, version=5), FOUR_CHUNKS, True, id="drop-one-chunk-of-four"),
        pytest.param(lambda: FaultScript().delay(0, 1, seconds=0.5, times=3), 8, False, id="delay"),
        pytest.param(lambda: FaultScript().duplicate(0, 1, version=5), 8, True, id="duplicate"),
        pytest.param(lambda: FaultScript().duplicate(0, 1), FOUR_CHUNKS, True, id="duplicate-one-chunk-of-four"),
        pytest.param(lambda: FaultScript().truncate(0, 1, version=5), 8, True, id="truncate"),
        pytest.param(lambda: FaultScript().garbage(0, 1, data=b"\xff" * 100), 8, True, id="garbage"),
        pytest.param(lambda: FaultScript().garbage(0, 1, data=b""), 8, True, id="nothing"),
    ],
)
@pytest.mark.parametrize("carried", ["chunks", "loans"], indirect=True)
def test_a_bad_message_costs_no_more_than_itself(script, num_elements, refused, carried):
    faults = script()
    # Messages of several chunks are real work even in virtual time: fewer of them will do.
    fleet = running_fleet(faults, num_elements=num_elements, period=PERIOD if num_elements < FOUR_CHUNKS else 0.2)
    fleet.network.advance(3.0)
    assert not faults.unfired()
    assert (edge(fleet, 1, 0, "in").refused > 0) == refused
    assert fleet.is_connected()
    assert_all_mix(fleet, range(4))
    assert_memory_is_bounded(fleet)
    assert all(torch.isfinite(learner.vector).all() for learner in fleet.learners.values())


@pytest.mark.parametrize("carried", ["chunks"], indirect=True)
def test_a_message_poisoned_on_its_way_costs_no_more_than_itself(carried):
    faults = FaultScript().nan(0, 1, times=3)
    fleet = running_fleet(faults)
    fleet.network.advance(3.0)
    assert not faults.unfired()
    assert edge(fleet, 1, 0, "in").refused == 3
    assert_all_mix(fleet, range(4))
    assert all(torch.isfinite(learner.vector).all() for learner in fleet.learners.values())


def test_a_learner_whose_parameters_are_not_finite_harms_nobody():
    fleet = running_fleet()
    fleet.learners[0].vector[-1] = float("nan")
    fleet.network.advance(1.0)
    refused_by_receiver, refused_at_sender = edge(fleet, 1, 0, "in").refused, edge(fleet, 0, 1, "out").refused
    assert refused_by_receiver > 10
    assert refused_by_receiver - refused_at_sender <= 1
    assert mixes(fleet)[1] == 0
    assert_all_mix(fleet, [0, 2, 3])
    assert_memory_is_bounded(fleet)
    events = [event for event in fleet.learners[1].peer.events() if event["event"] == "refused"]
    assert events == [{"event": "refused", "peer": 0, "direction": "in", "reason": "NOT_FINITE"}]  # said once
    fleet.learners[0].vector[-1] = 0.0  # it mends
    assert_all_mix(fleet, range(4))


def test_a_learner_of_another_model_is_refused_and_taken_back_when_it_mends():
    faults = FaultScript().wrong_schema(0, 1, times=3)
    plan = small_plan(gossip={"peerTimeoutSeconds": TIMEOUT})
    fleet = Fleet(plan, faults=faults)
    fleet.connect(seconds=30.0)
    assert faults.faults[0].fired == 3
    events = fleet.learners[0].peer.events()
    assert [e for e in events if e["event"] == "refused"] == [
        {"event": "refused", "peer": 1, "direction": "out", "reason": "WRONG_SCHEMA"}
    ]
    assert fleet.learners[1].peer.stats().strangers == {"WRONG_SCHEMA": 3}


def test_while_a_learner_is_refused_its_parameters_go_to_the_next_one():
    faults = FaultScript().wrong_schema(0, 1, times=None)
    fleet = Fleet(small_plan(gossip={"peerTimeoutSeconds": TIMEOUT}), faults=faults)
    for learner in fleet.learners.values():
        learner.peer.join()
    fleet.network.advance(1.0)
    assert fleet.learners[0].peer.stats().out_peers == (2,)
    assert not faults.unfired()


def test_a_ten_times_slower_peer_slows_nobody_and_holds_back_its_sender():
    fleet = Fleet(small_plan(gossip={"peerTimeoutSeconds": TIMEOUT}))
    fleet.network.slowness[2] = 10.0
    fleet.connect()
    for rank in range(4):
        fleet.run(rank, period_seconds=PERIOD * (10 if rank == 2 else 1))
    fleet.network.advance(10.0)
    updates = {rank: learner.updates for rank, learner in fleet.learners.items()}
    assert updates[2] < updates[0] / 9
    assert updates[0] == updates[1] == updates[3]
    to_slow, to_fast = edge(fleet, 1, 2, "out"), edge(fleet, 0, 1, "out")
    assert to_slow.messages <= updates[2] + 2  # throttled to what the slow one takes
    assert to_slow.replaced > 8 * to_slow.messages
    assert to_fast.messages > 0.5 * updates[0]
    assert mixes(fleet)[2] > 0.9 * updates[2]
    assert_memory_is_bounded(fleet)


def test_the_ring_closes_without_a_dead_peer_at_once_and_takes_it_back():
    fleet = running_fleet()
    fleet.network.advance(1.0)
    fleet.kill(2)
    fleet.network.advance(0.5)
    assert fleet.learners[1].peer.stats().out_peers == (3,)
    assert fleet.learners[3].peer.stats().in_peers == (1,)
    assert_all_mix(fleet, [0, 1, 3])
    assert {"event": "peer-gone", "peer": 2, "direction": "out", "reason": "unavailable"} in fleet.learners[
        1
    ].peer.events()

    reborn = fleet.restart(2)
    assert reborn.peer.fetch_state(2.0) in (b"state of 1", b"state of 3")
    reborn.peer.join()
    fleet.run(2, period_seconds=PERIOD)
    assert fleet.network.run_until(fleet.is_connected, 6.0)
    assert_all_mix(fleet, range(4))
    assert {"event": "peer-back", "peer": 2, "direction": "out"} in fleet.learners[1].peer.events()
    assert {"event": "peer-back", "peer": 2, "direction": "in"} in fleet.learners[3].peer.events()
    assert_memory_is_bounded(fleet)


def test_a_peer_that_hangs_without_closing_is_found_out_by_its_silence_on_both_sides():
    fleet = running_fleet()
    fleet.network.advance(1.0)
    fleet.hang(2)
    hung_at = fleet.network.now

    def healed() -> bool:
        return fleet.learners[1].peer.stats().out_peers == (3,) and fleet.learners[3].peer.stats().in_peers == (1,)

    assert fleet.network.run_until(healed, 1.5 * TIMEOUT)
    assert fleet.network.now - hung_at > 0.5 * TIMEOUT  # by silence, and not because something broke
    assert_all_mix(fleet, [0, 1, 3])
    assert_memory_is_bounded(fleet)
    assert "silent" in [event.get("reason") for event in fleet.learners[1].peer.events()]
    assert "silent" in [event.get("reason") for event in fleet.learners[3].peer.events()]

    fleet.network.advance(5 * TIMEOUT)
    fleet.resume(2)
    fleet.run(2, period_seconds=PERIOD)
    assert fleet.network.run_until(fleet.is_connected, 10.0)
    assert_all_mix(fleet, range(4))


@pytest.mark.parametrize("how", ["kill", "hang"])
def test_synchronous_learners_wait_for_a_lost_one_no_longer_than_the_timeout(how):
    fleet = Fleet(small_plan(gossip={"peerTimeoutSeconds": TIMEOUT, "maxStaleness": 0}))
    fleet.connect()
    fleet.lockstep(3)
    getattr(fleet, how)(2)
    others = [fleet.learners[rank] for rank in (0, 1, 3)]
    longest = 0.0
    for _ in range(200):
        for learner in others:
            learner.offer()
        fleet.network.advance(0.001)  # for the ring to close: those who find messages do not wait
        for learner in others:
            began = fleet.network.now
            learner.mix()
            longest = max(longest, fleet.network.now - began)
    assert longest <= TIMEOUT + 1e-9
    assert others[0].peer.stats().mixes > 150
    assert fleet.learners[3].peer.stats().in_peers == (1,)


def test_a_learner_that_hangs_while_its_process_lives_is_waited_for_once():
    """Its heartbeats go on; its messages do not."""
    fleet = Fleet(small_plan(learners=2, gossip={"peerTimeoutSeconds": TIMEOUT, "maxStaleness": 0}))
    fleet.connect()
    fleet.lockstep(2)
    alone = fleet.learners[0]
    for _ in range(100):
        alone.offer()
        alone.mix()
        fleet.network.advance(0.01)
    assert alone.peer.stats().in_peers == (1,)  # live all the time
    assert fleet.network.now < 3 * TIMEOUT
    fleet.learners[1].offer()
    fleet.network.advance(0.1)
    alone.offer()
    assert alone.mix() is not None  # and is mixed with again when it sends


def test_a_receiver_that_takes_nothing_is_waited_for_once():
    fleet = Fleet(small_plan(learners=3, gossip={"peerTimeoutSeconds": TIMEOUT, "maxStaleness": 0}))
    fleet.connect()
    fleet.lockstep(2)
    sender, feeder = fleet.learners[0], fleet.learners[2]  # learner 1, between them, makes no more updates
    for _ in range(50):
        for learner in (sender, feeder):
            learner.offer()
            fleet.network.advance(0.01)
        for learner in (sender, feeder):
            learner.mix()
    assert sender.peer.stats().out_peers == (1,)  # live all the time
    assert sender.mixings[-1].versions == (52,)
    assert fleet.network.now < 4 * TIMEOUT


def test_half_of_the_ring_may_die_at_once():
    fleet = running_fleet(learners=8)
    fleet.network.advance(1.0)
    for rank in (1, 2, 3, 6):
        fleet.kill(rank)
    fleet.network.advance(1.0)
    rings = {rank: fleet.learners[rank].peer.stats().out_peers for rank in (0, 4, 5, 7)}
    assert rings == {0: (4,), 4: (5,), 5: (7,), 7: (0,)}
    assert_all_mix(fleet, [0, 4, 5, 7])


def test_the_last_one_goes_on_alone():
    fleet = running_fleet(learners=3)
    fleet.network.advance(0.5)
    fleet.kill(0)
    fleet.kill(1)
    fleet.network.advance(0.5)
    before = fleet.learners[2].updates
    fleet.network.advance(1.0)
    assert fleet.learners[2].updates - before >= 45
    assert fleet.learners[2].peer.stats().out_peers == ()


def test_two_identical_runs_have_identical_histories():
    def history():
        faults = FaultScript().drop(0, 1, version=5).truncate(2, 3, times=2)
        fleet = running_fleet(faults)
        fleet.network.advance(2.0)
        fleet.kill(1)
        fleet.network.advance(2.0)
        return [learner.mixings for learner in fleet.learners.values()]

    assert history() == history()


@pytest.mark.parametrize(("ticks", "gone"), [((5.0,), False), ((0.4, 0.8, 1.2), True)])
def test_silence_is_not_the_neighbours_while_a_learner_was_not_listening_itself(ticks, gone):
    fleet = Fleet(small_plan(gossip={"peerTimeoutSeconds": TIMEOUT}))
    fleet.connect()
    fleet.network.advance(TIMEOUT)
    learner, now = fleet.learners[0], fleet.network.now
    learner.peer.events()
    for timeouts in ticks:
        learner.peer._hood.tick(now + timeouts * TIMEOUT)
    fleet.network.advance(0.01)
    told = [event for event in learner.peer.events() if event["event"] != "ring"]
    expected = [{"event": "peer-gone", "peer": 3, "direction": "in", "reason": "silent"}] if gone else []
    assert [event for event in told if event["direction"] == "in"] == expected
    assert [event["reason"] for event in told if event["direction"] == "out"] == ["silent"] * gone
