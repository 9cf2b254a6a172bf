"""Learners of one machine that leave each other their words in memory: what need not be said, and what still is."""

from __future__ import annotations

import contextlib
import re

import pytest
import torch

from gala.names import MAX_LEARNERS
from gala_worker.gossip import framing, standing
from gala_worker.gossip.faults import FaultScript
from gala_worker.gossip.fleet import Fleet, small_plan
from gala_worker.gossip.mailbox import OwnMailbox, find_mailbox
from gala_worker.gossip.memory import MemoryNetwork
from gala_worker.gossip.messages import Ack, Chunk, Header, Loan
from gala_worker.gossip.slots import Snapshot

HEARTBEAT = 3.0
"""The longest time between two of a sender's: due after two seconds, looked for every second."""


@pytest.fixture(autouse=True)
def on_one_machine(monkeypatch):
    monkeypatch.setattr(MemoryNetwork, "shares_memory", True)
    monkeypatch.setattr(standing, "KEEPS_ORDER", True)


class Told(FaultScript):
    """Remembers the messages and acknowledgements that went over streams; does nothing to them."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[str] = []

    def deliver(self, source, target, frame):
        if isinstance(frame, (Chunk, Loan, Ack)):
            self.frames.append(type(frame).__name__)
        return super().deliver(source, target, frame)


def pair(faults: FaultScript | None = None, **gossip) -> Fleet:
    fleet = Fleet(small_plan(learners=2, gossip=gossip), num_elements=4, faults=faults)
    fleet.connect()
    return fleet


def box_of(fleet: Fleet, sender: int = 0, receiver: int = 1) -> OwnMailbox:
    session = fleet.learners[sender].peer._hood.out_peers.edges[receiver].session
    assert session is not None
    assert isinstance(session._mailbox, OwnMailbox)
    return session._mailbox


def test_both_sides_read_what_the_other_one_writes():
    own = OwnMailbox()
    found = find_mailbox(own.address)
    assert (found.posted, own.done, found.ack_is_awaited, own.message_is_awaited) == (0, 0, False, False)
    own.post(7, b"a frame", 12.5)
    own.ack_is_awaited = True
    found.done = 5
    found.message_is_awaited = True
    assert (found.posted, found.read(), found.posted_at, found.ack_is_awaited) == (7, b"a frame", 12.5, True)
    assert (own.done, own.message_is_awaited) == (5, True)
    own.post(8, b"short", 13.0)
    assert (found.posted, found.read()) == (8, b"short")


def test_the_loan_of_the_largest_run_fits():
    progress = dict.fromkeys(range(MAX_LEARNERS), (1 << 62) - 1)
    loan = Loan((1 << 62) - 1, Header(1 << 40, 1 << 60, 0.123, 1e9, progress), 1 << 31, 1 << 62)
    own = OwnMailbox()
    own.post(loan.version, framing.encode(loan), 1.0)
    assert framing.decode(find_mailbox(own.address).read()) == loan


def test_learners_in_step_mix_every_message_and_say_nothing_on_their_streams():
    told = Told()
    fleet = pair(told)
    for rank in fleet.learners:
        fleet.run(rank, period_seconds=0.02)
    fleet.network.advance(0.5)  # the first ones may have to be said
    told.frames.clear()
    before = {rank: (learner.updates, len(learner.mixings)) for rank, learner in fleet.learners.items()}
    fleet.network.advance(5.0)
    for rank, learner in fleet.learners.items():
        updates, mixings = before[rank]
        assert learner.updates - updates > 240
        assert len(learner.mixings) - mixings == learner.updates - updates
        versions = [mixing.versions[0] for mixing in learner.mixings[mixings:]]
        assert versions == sorted(set(versions))
        assert {mixing.staleness_updates for mixing in learner.mixings[mixings:]} <= {0, 1}
    assert told.frames == []


def test_where_stores_may_be_seen_out_of_order_all_is_said_aloud(monkeypatch):
    monkeypatch.setattr(standing, "KEEPS_ORDER", False)
    told = Told()
    fleet = pair(told)
    for rank in fleet.learners:
        fleet.run(rank, period_seconds=0.02)
    fleet.network.advance(1.0)
    assert told.frames.count("Loan") > 80
    assert told.frames.count("Ack") > 80


def test_a_learner_that_waits_is_told_at_once():
    fleet = pair(maxStaleness=0)
    waiting, other = fleet.learners[0], fleet.learners[1]
    other.vector.fill_(4.0)
    fleet.network.schedule(0.5, other.offer)
    waiting.offer()
    assert waiting.mix() is not None
    assert fleet.network.now - 0.5 == pytest.approx(0.01, abs=0.01)
    assert waiting.vector.tolist() == [2.0] * 4
    assert not box_of(fleet, 1, 0).message_is_awaited  # and need not be told any more


def test_a_learner_that_begins_to_wait_while_a_message_is_posted_is_told_at_once(monkeypatch):
    fleet = pair()
    sender, receiver = fleet.learners[0], fleet.learners[1]
    box, inbox = box_of(fleet), receiver.peer._hood.in_peers.edges[0].inbox
    post = box.post
    with contextlib.ExitStack() as waiting:

        def post_late(*message):
            """After the sender has seen that nobody waits, and the receiver that nothing is posted."""
            waiting.enter_context(receiver.peer._listening())
            assert not inbox.is_fresh
            post(*message)

        monkeypatch.setattr(box, "post", post_late)
        sender.offer()
        assert fleet.network.run_until(lambda: inbox.is_fresh, HEARTBEAT / 12)


def test_a_learner_that_waits_is_told_at_once_on_a_stream_that_has_opened_since():
    fleet = pair()
    inbox = fleet.learners[0].peer._hood.in_peers.edges[1].inbox
    before = box_of(fleet, 1, 0)
    fleet.network.schedule(0.1, lambda: fleet.network.sever(1, 0))
    fleet.network.schedule(HEARTBEAT / 2, fleet.learners[1].offer)
    assert fleet.learners[0].peer.wait(lambda stats: inbox.is_fresh, HEARTBEAT / 2 + 0.1)
    assert box_of(fleet, 1, 0) is not before
    assert not box_of(fleet, 1, 0).message_is_awaited


def test_a_sender_with_something_newer_is_told_at_once():
    told = Told()
    fleet = pair(told)
    sender, receiver = fleet.learners[0], fleet.learners[1]
    sender.offer()
    sender.offer()
    fleet.network.advance(HEARTBEAT / 6)
    told.frames.clear()
    assert receiver.mix() is not None
    fleet.network.advance(HEARTBEAT / 12)
    assert told.frames == ["Ack", "Loan"]
    assert receiver.mix().versions == (2,)


def test_a_lost_word_to_one_who_waits_costs_a_heartbeat():
    fleet = pair(FaultScript().drop_ack(1, 0))
    sender, receiver = fleet.learners[0], fleet.learners[1]
    for _ in range(2):
        sender.offer()
    assert receiver.mix().versions == (1,)
    fleet.network.advance(HEARTBEAT)
    assert receiver.mix().versions == (2,)
    assert not fleet.network.faults.unfired()


def test_a_message_to_a_learner_that_does_not_look_arrives_with_the_next_heartbeat():
    fleet = pair()
    fleet.learners[0].vector.fill_(3.0)
    fleet.learners[0].offer()
    inbox = fleet.learners[1].peer._hood.in_peers.edges[0].inbox
    fleet.network.advance(HEARTBEAT / 6)
    assert not inbox.is_fresh
    fleet.network.advance(HEARTBEAT)
    assert inbox.is_fresh
    assert fleet.is_connected()
    assert fleet.learners[1].mix().versions == (1,)


def test_nobody_is_woken_while_a_message_waits_to_be_read(monkeypatch):
    fleet = pair()
    sender = fleet.learners[0]
    sender.offer()
    session = sender.peer._hood.out_peers.edges[1].session
    assert session is not None
    monkeypatch.setattr(session.link, "wake", lambda: pytest.fail("woken"))
    for _ in range(3):
        sender.offer()


def test_a_buffer_that_was_read_before_its_stream_broke_is_used_again(monkeypatch):
    fleet = pair()
    lender, reader = fleet.learners[0], fleet.learners[1]
    made, make = [], lender.peer._pool._make
    monkeypatch.setattr(lender.peer._pool, "_make", lambda: made.append(1) or make())
    for _ in range(20):
        lender.offer()
        assert reader.mix() is not None
        fleet.network.sever(0, 1)
        assert fleet.network.run_until(fleet.is_connected, 10.0)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("post", "complaint"),
    [
        (lambda box, loan: box.post(50, b"\xff" * 40, 0.0), "not a Frame"),
        (lambda box, loan: box.post(50, b"", 0.0), "says nothing"),
        (lambda box, loan: box.post(50, framing.encode(Ack(50)), 0.0), "a sender posted Ack"),
        (lambda box, loan: box.post(50, framing.encode(loan), 0.0), "no memory of a learner|cannot be read"),
        (lambda box, loan: box._numbers.__setitem__(slice(2, 6), memoryview(b"\xff" * 32).cast("Q")), "Frame"),
    ],
    ids=["garbage", "nothing", "another-word", "a-loan-of-nothing", "impossible-numbers"],
)
def test_nonsense_in_a_mailbox_ends_that_stream_and_nothing_else(post, complaint, caplog):
    fleet = pair()
    sender, receiver = fleet.learners[0], fleet.learners[1]
    receiver.vector.fill_(1.0)
    post(box_of(fleet), Loan(50, Header(16, 0, 1.0, 0.0), 0, 1))
    assert receiver.mix() is None
    assert receiver.vector.tolist() == [1.0] * 4
    fleet.network.advance(0.1)
    assert receiver.peer.stats().strangers == {"MALFORMED": 1}
    assert len([line for line in caplog.messages if line.startswith("refused rank 0")]) == 1
    assert re.search(complaint, caplog.text)
    assert fleet.network.run_until(fleet.is_connected, 10.0)
    sender.offer()
    assert receiver.mix() is not None


def test_what_is_found_on_a_stream_that_has_just_ended_is_not_mixed():
    fleet = pair()
    sender, receiver = fleet.learners[0], fleet.learners[1]
    edge = receiver.peer._hood.in_peers.edges[0]
    session = edge.session
    assert session is not None
    sender.vector.fill_(9.0)
    sender.offer()
    edge.session = None  # the transport's thread was faster than the learner's
    session.look(fleet.network.now)
    assert not edge.inbox.is_fresh


def test_a_message_for_which_there_is_no_more_memory_travels_in_chunks(monkeypatch):
    told = Told()
    fleet = pair(told)
    sender, receiver = fleet.learners[0], fleet.learners[1]
    monkeypatch.setattr(sender.peer._pool, "_make", lambda: Snapshot(torch.empty(4)))
    sender.vector.fill_(2.0)
    for number in range(1, 4):
        sender.offer()
        fleet.network.advance(0.1)
        assert receiver.mix().versions == (number,)
    assert told.frames.count("Chunk") == 3
