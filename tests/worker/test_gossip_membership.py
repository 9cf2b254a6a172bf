"""Plans change, learners leave and join, progress spreads: without a centre."""

from __future__ import annotations

import pytest

from gala.errors import GossipError
from gala_worker.gossip import patience
from gala_worker.gossip.fleet import Fleet, FleetLearner, small_plan
from gala_worker.gossip.messages import Farewell, Heartbeat, Hello, Leaving, Reason, Refusal, StateRequest, Welcome
from gossip_stranger import Stranger
from running_fleet import GOSSIP, running_fleet


def set_plan(fleet: Fleet, plan) -> None:
    fleet.plan = plan
    for learner in fleet.learners.values():
        learner.peer.set_plan(plan)


def events(learner: FleetLearner, kind: str) -> list[dict]:
    return [event for event in learner.peer.events() if event["event"] == kind]


# ------------------------------------------------------------------ epochs


def test_a_grown_plan_knits_newcomers_into_the_ring_of_the_running():
    fleet = running_fleet(2)
    set_plan(fleet, small_plan(learners=4, gossip=GOSSIP, epoch=1))
    for rank in (2, 3):
        fleet.learners[rank] = FleetLearner(fleet, rank, 1)
        assert fleet.learners[rank].peer.fetch_state(2.0) is not None
        fleet.learners[rank].peer.join()
        fleet.run(rank, period_seconds=0.02)
    assert fleet.network.run_until(fleet.is_connected, 6.0)
    fleet.network.advance(1.0)
    assert all(len(learner.mixings) > 10 for learner in fleet.learners.values())


def test_a_shrunken_plan_closes_the_ring_and_nobody_waits_for_those_who_left():
    fleet = running_fleet(4)
    smaller = small_plan(learners=2, gossip=GOSSIP, epoch=1)
    set_plan(fleet, smaller)
    for rank in (2, 3):
        fleet.learners[rank].stopped = True
        fleet.learners.pop(rank).peer.close()
    assert fleet.network.run_until(fleet.is_connected, 1.0)
    assert fleet.learners[0].peer.progress().keys() == {0, 1, 2, 3}  # what the leavers did still counts


def test_an_older_plan_and_a_plan_of_another_run_change_nothing():
    fleet = running_fleet(3)
    learner = fleet.learners[0]
    learner.peer.set_plan(small_plan(learners=2, gossip=GOSSIP, epoch=0))
    learner.peer.set_plan(small_plan(learners=2, gossip=GOSSIP, epoch=7, uid="another run"))
    fleet.network.advance(0.5)
    assert fleet.is_connected()


def test_who_follows_an_older_plan_is_refused_until_it_has_read_the_newer():
    fleet = Fleet(small_plan(learners=2, gossip=GOSSIP))
    fleet.learners[1].peer.set_plan(small_plan(learners=2, gossip=GOSSIP, epoch=1))
    for learner in fleet.learners.values():
        learner.peer.join()
    fleet.network.advance(1.0)
    assert fleet.learners[0].peer.stats().out_peers == ()
    assert fleet.learners[1].peer.stats().out_peers == (0,)  # the newer may speak to the older
    assert events(fleet.learners[0], "refused")[0]["reason"] == "STALE_EPOCH"
    fleet.learners[0].peer.set_plan(fleet.learners[1].peer._hood.standing.plan)
    assert fleet.network.run_until(fleet.is_connected, 6.0)


# ------------------------------------------------------------------ incarnations and strangers


def hello(**changes) -> Hello:
    proper = {
        "run_uid": "a run",
        "rank": 1,
        "receiver": 0,
        "incarnation": 1,
        "epoch": 0,
        "schema_hash": "schema",
        "num_elements": 8,
        "precision": 1,
    }
    return Hello(**{**proper, **changes})


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (hello(run_uid="another run"), Reason.WRONG_RUN),
        (hello(receiver=1), Reason.WRONG_RECEIVER),
        (hello(rank=0), Reason.NOT_MY_PEER),
        (hello(rank=7), Reason.NOT_MY_PEER),
        (hello(schema_hash="other"), Reason.WRONG_SCHEMA),
        (hello(num_elements=9), Reason.WRONG_SCHEMA),
        (hello(precision=2), Reason.WRONG_PRECISION),
        (hello(precision=77), Reason.WRONG_PRECISION),
        (hello(incarnation=0), Reason.STALE_INCARNATION),
        (Heartbeat(0), Reason.MALFORMED),
        (Farewell(Leaving.STOPPED), Reason.MALFORMED),
    ],
)
def test_a_hello_that_is_not_acceptable_is_refused_with_its_reason_and_disturbs_nobody(said, reason):
    fleet = running_fleet(2)
    stranger = Stranger(fleet)
    heard = stranger.say(said)
    assert [type(frame) for frame in heard] == [Refusal]
    assert heard[0].reason is reason
    assert stranger.closed
    assert fleet.learners[0].peer.stats().strangers == {reason.name: 1}
    assert fleet.is_connected()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"receiver": 5}, Reason.WRONG_RECEIVER),
        ({"epoch": -1}, Reason.STALE_EPOCH),
        ({"run_uid": "x"}, Reason.WRONG_RUN),
    ],
)
def test_a_stranger_that_claims_many_ranks_is_named_once_and_as_a_stranger(changes, reason, caplog):
    fleet = running_fleet(2)
    fleet.learners[0].peer.events()
    for rank in range(2, 100):
        in_peers = fleet.learners[0].peer._hood.in_peers
        assert isinstance(in_peers.admit(None, hello(rank=rank, **changes), fleet.network.now), Refusal)
    refused = [{"event": "refused", "peer": None, "reason": reason.name, "direction": "in"}]
    assert fleet.learners[0].peer.events() == refused
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("refused a stranger: ")


@pytest.mark.parametrize(
    ("uid", "reason"), [("another run", Reason.WRONG_RUN), ("a run", Reason.NOT_MY_PEER)], ids=["run", "rank"]
)
def test_a_stranger_that_asks_for_state_under_many_ranks_is_named_once_and_as_a_stranger(uid, reason):
    fleet = running_fleet(2)
    fleet.learners[0].peer.events()
    heard = []
    for rank in range(2, 100):
        fleet.learners[0].peer._hood.state_requested(StateRequest(uid, rank, "schema", 1), heard.append)
    assert heard == [reason] * 98
    refused = [{"event": "refused", "peer": None, "reason": reason.name, "direction": "in"}]
    assert fleet.learners[0].peer.events() == refused


def test_a_member_that_is_refused_is_named():
    fleet = running_fleet(2)
    fleet.learners[0].peer.events()
    fleet.learners[0].peer._hood.state_requested(StateRequest("a run", 1, "other", 1), lambda answer: None)
    assert [event["peer"] for event in fleet.learners[0].peer.events()] == [1]


def test_a_younger_process_of_a_rank_takes_its_place():
    fleet = running_fleet(2)
    stranger = Stranger(fleet)
    assert isinstance(stranger.say(hello(incarnation=2))[0], Welcome)
    assert fleet.learners[0].peer.stats().in_peers == (1,)
    older = Stranger(fleet)
    assert older.say(hello(incarnation=1))[0] == Refusal(Reason.STALE_INCARNATION, Reason.STALE_INCARNATION.text)


def test_a_restart_whose_clock_is_behind_is_let_in_after_the_timeout():
    fleet = running_fleet(2)
    fleet.kill(1)
    fleet.network.advance(0.1)
    assert isinstance(Stranger(fleet).say(hello(incarnation=0))[0], Refusal)
    fleet.network.advance(2.0)
    assert isinstance(Stranger(fleet).say(hello(incarnation=0))[0], Welcome)


def test_a_crowd_at_the_door_is_turned_away_and_forgotten():
    fleet = running_fleet(2)
    crowd = [Stranger(fleet) for _ in range(3 * patience.MAX_STRANGERS)]
    fleet.network.advance(0.1)
    assert sum(stranger.closed for stranger in crowd) == 2 * patience.MAX_STRANGERS
    fleet.network.advance(patience.HELLO_SECONDS + 1)
    assert all(stranger.closed for stranger in crowd)
    assert len(fleet.learners[0].peer._hood.in_peers.sessions) == 1
    assert fleet.is_connected()


def test_a_port_that_is_taken_is_a_clear_error():
    fleet = running_fleet(2)
    with pytest.raises(GossipError, match="cannot listen on rank-0:1"):
        FleetLearner(fleet, 0, 5)


# ------------------------------------------------------------------ farewell


@pytest.mark.parametrize("staleness", [None, 0])
def test_after_a_farewell_nobody_waits(staleness):
    fleet = Fleet(small_plan(learners=3, gossip={**GOSSIP, "maxStaleness": staleness}))
    fleet.connect()
    fleet.lockstep(3)
    fleet.learners.pop(1).peer.close()
    began = fleet.network.now
    fleet.network.advance(0.1)
    for _ in range(10):
        fleet.lockstep(1)
        fleet.network.advance(0.01)
    assert fleet.network.now - began < 0.5
    assert fleet.learners[0].peer.stats().out_peers == (2,)
    assert {"event": "peer-gone", "peer": 1, "direction": "out", "reason": "stopped"} in fleet.learners[0].peer.events()
    assert fleet.learners[2].mixings[-1].peers == (0,)


def test_a_finished_run_says_so():
    fleet = running_fleet(2)
    fleet.learners[1].peer.merge_progress({1: 10**9})
    fleet.learners[1].peer.close()
    fleet.network.advance(0.1)
    assert [event["reason"] for event in events(fleet.learners[0], "peer-gone")] == ["finished", "finished"]
    assert fleet.learners[0].peer.progress()[1] == 10**9  # the farewell carries the last progress


def test_closing_twice_is_closing_once():
    fleet = running_fleet(2)
    fleet.learners[1].peer.close()
    fleet.learners[1].peer.close()


# ------------------------------------------------------------------ progress


def test_everybody_learns_what_everybody_has_done():
    fleet = running_fleet(6)
    for rank in range(6):
        fleet.learners[rank].stopped = True
    fleet.network.advance(5.0)  # heartbeats carry it when messages do not
    done = {rank: learner.updates for rank, learner in fleet.learners.items()}
    for learner in fleet.learners.values():
        assert learner.peer.progress() == done
        assert learner.peer.global_steps() == sum(done.values())


def test_progress_never_shrinks():
    fleet = running_fleet(2)
    peer = fleet.learners[0].peer
    peer.merge_progress({1: 10**6, 5: 3})
    peer.merge_progress({1: 10, 5: 2})
    assert (peer.progress()[1], peer.progress()[5]) == (10**6, 3)
    fleet.learners[0].updates = 0  # resumed from an older checkpoint
    before = peer.progress()[0]
    fleet.learners[0].offer()
    assert peer.progress()[0] == before


def test_progress_of_impossible_ranks_is_refused():
    fleet = running_fleet(2)
    stranger = Stranger(fleet)
    heard = stranger.say(hello(incarnation=9), Heartbeat(0, {5000: 1}))
    assert heard[-1].reason is Reason.MALFORMED
    assert 5000 not in fleet.learners[0].peer.progress()
