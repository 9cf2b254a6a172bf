"""Whose state a starting learner begins with: whom it asks, how often, and what it is told."""

from __future__ import annotations

import pytest

from gala_worker.gossip.fleet import Fleet, small_plan
from gala_worker.gossip.messages import Reason
from running_fleet import GOSSIP, running_fleet


def test_nobody_gives_state_before_its_first_update():
    fleet = Fleet(small_plan(learners=3, gossip=GOSSIP))
    assert fleet.learners[0].peer.fetch_state(5.0) is None
    assert fleet.network.now == 0.0  # and says so at once


def test_a_neighbour_whose_learner_hangs_costs_a_joiner_a_part_of_its_patience():
    fleet = running_fleet(3)
    fleet.kill(0)
    fleet.learners[2].stopped = True  # in-peer of 0, and its process lives
    began = fleet.network.now
    joiner = fleet.restart(0)
    assert joiner.peer.fetch_state(8.0) == b"state of 1"
    assert fleet.network.now - began < 3.0


def test_a_joiner_waits_for_neighbours_whose_updates_take_longer_than_its_patience_with_each():
    fleet = Fleet(small_plan(learners=3, gossip=GOSSIP))
    fleet.connect()
    for rank in fleet.plan.ranks:
        fleet.run(rank, period_seconds=8.0)
    fleet.network.advance(8.1)  # all have just made an update: their next one is as far away as can be
    fleet.kill(0)
    assert fleet.restart(0).peer.fetch_state(10.0) in (b"state of 1", b"state of 2")


def test_a_joiner_asks_again_those_that_are_busy(monkeypatch):
    fleet = running_fleet(3)
    fleet.kill(0)
    began = fleet.network.now
    for rank in (1, 2):
        hood = fleet.learners[rank].peer._hood

        def asked(request, answer, served=hood.state_requested):
            served(request, answer) if fleet.network.now - began > 4.0 else answer(Reason.TOO_BUSY)

        monkeypatch.setattr(hood, "state_requested", asked)
    assert fleet.restart(0).peer.fetch_state(10.0) in (b"state of 1", b"state of 2")
    assert fleet.network.now - began < 5.0


def test_a_busy_neighbour_is_asked_again_though_another_one_hangs(monkeypatch):
    fleet = running_fleet(3)
    fleet.kill(0)
    fleet.learners[1].stopped = True  # the last that is asked
    hood, served, times = fleet.learners[2].peer._hood, fleet.learners[2].peer._hood.state_requested, []

    def asked(request, answer):
        times.append(fleet.network.now)
        served(request, answer) if len(times) > 1 else answer(Reason.TOO_BUSY)

    monkeypatch.setattr(hood, "state_requested", asked)
    assert fleet.restart(0).peer.fetch_state(8.0) == b"state of 2"
    assert len(times) == 2


@pytest.mark.parametrize("reason", [Reason.WRONG_SCHEMA, Reason.NOT_MY_PEER, Reason.NOTHING_YET])
def test_a_joiner_asks_nobody_again_who_will_not_change_its_mind(monkeypatch, reason):
    fleet = running_fleet(3)
    fleet.kill(0)
    asked = []
    for rank in (1, 2):

        def refuse(request, answer, rank=rank):
            asked.append(rank)
            answer(reason)

        monkeypatch.setattr(fleet.learners[rank].peer._hood, "state_requested", refuse)
    assert fleet.restart(0).peer.fetch_state(10.0) is None
    assert sorted(asked) == [1, 2]


def test_a_learner_without_a_past_waits_for_one_that_resumes():
    fleet = Fleet(small_plan(learners=3))
    for rank in (1, 2):
        fleet.learners[rank].peer._own.resumes = True  # as `start` is told
    begun = fleet.network.now + 4.0

    def resume(rank: int) -> None:
        learner = fleet.learners[rank]
        learner.updates = 500
        learner.peer.join(version=500)
        fleet.run(rank, period_seconds=0.1)

    for rank in (1, 2):
        fleet.network.schedule(4.0, lambda rank=rank: resume(rank))
    assert fleet.learners[0].peer.fetch_state(10.0) in (b"state of 1", b"state of 2")
    assert begun <= fleet.network.now < begun + 2.0


def test_two_that_resume_do_not_wait_for_each_other():
    fleet = Fleet(small_plan(learners=2))
    for learner in fleet.learners.values():
        learner.peer._own.resumes = True
    began = fleet.network.now
    assert fleet.learners[0].peer.fetch_state(10.0) is None
    assert fleet.network.now - began < 0.5


def test_a_learner_that_has_resumed_has_a_state_to_give_before_its_first_update():
    fleet = Fleet(small_plan(learners=2))
    fleet.learners[1].peer.join(version=500)
    fleet.network.schedule(1.0, lambda: fleet.learners[1].peer.answer_state_requests(lambda: b"its checkpoint"))
    assert fleet.learners[0].peer.fetch_state(5.0) == b"its checkpoint"


@pytest.mark.parametrize("hindrance", ["an older plan", "not started"])
def test_a_learner_that_a_newer_plan_adds_waits_for_those_who_do_not_know_it_yet(hindrance):
    fleet = running_fleet(3)
    grown = small_plan(learners=4, epoch=1)
    fleet.plan = grown
    if hindrance == "not started":
        for rank in range(3):
            fleet.network.hang(rank)
        fleet.network.schedule(3.0, lambda: [fleet.network.resume(rank) for rank in range(3)])
    fleet.network.schedule(3.0, lambda: [fleet.learners[rank].peer.set_plan(grown) for rank in range(3)])
    began = fleet.network.now
    assert str(fleet.restart(3).peer.fetch_state(10.0)).startswith("b'state of ")
    assert 3.0 <= fleet.network.now - began < 5.0


def test_a_joiner_that_is_stopped_asks_no_more(monkeypatch):
    fleet = running_fleet(2)
    fleet.kill(0)
    asked = []

    def busy(request, answer):
        asked.append(fleet.network.now)
        answer(Reason.TOO_BUSY)

    monkeypatch.setattr(fleet.learners[1].peer._hood, "state_requested", busy)
    assert fleet.restart(0).peer.fetch_state(10.0, give_up=lambda: len(asked) == 3) is None
    assert len(asked) == 3
