"""The arithmetic of push-sum, one edge's bookkeeping, and what a hostile peer may claim."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gala.errors import MessageError
from gala_worker.gossip import framing
from gala_worker.gossip.fleet import Fleet, small_plan
from gala_worker.gossip.messages import Chunk, Header, Hello, Reason, Refusal, Welcome
from gala_worker.gossip.push_sum import LEAST_WEIGHT, Account, PushSumOutbox, is_acceptable, most_weight, push_sum_mix_
from gala_worker.gossip.slots import Snapshot, SnapshotPool
from gossip_stranger import Stranger

# ------------------------------------------------------------------ arithmetic


@given(
    own=st.floats(1e-6, 1e3),
    weights=st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=4),
    bfloat16=st.booleans(),
    seed=st.integers(0, 99),
)
def test_mixing_is_the_weighted_mean(own, weights, bfloat16, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(7, generator=generator)
    kind = torch.bfloat16 if bfloat16 else torch.float32
    messages = [torch.randn(7, generator=generator).to(kind) for _ in weights]
    rows = np.stack([z.double().numpy(), *(message.double().numpy() for message in messages)])
    total = push_sum_mix_(z, own, messages, weights)
    assert total == pytest.approx(own + sum(weights))
    np.testing.assert_allclose(z.numpy(), np.average(rows, axis=0, weights=[own, *weights]), atol=1e-4)


def test_what_was_added_can_be_taken_away_again():
    z, message = torch.tensor([1.0, 2.0]), torch.tensor([5.0, -4.0])
    weight = push_sum_mix_(z, 1.0, [message], [0.5])
    weight = push_sum_mix_(z, weight, [message], [-0.5])
    assert weight == 1.0
    torch.testing.assert_close(z, torch.tensor([1.0, 2.0]))


# ------------------------------------------------------------------ one edge


@dataclass
class Edge:
    """A sender's outbox beside a receiver whose memory is perfect: nothing may be lost or doubled between them."""

    pool: SnapshotPool = field(default_factory=lambda: SnapshotPool(lambda: Snapshot(torch.zeros(1))))
    version: int = 0
    incarnation: int = 1
    accepted: int = 0
    taken: float = 0.0
    arrived: list = field(default_factory=list)

    def __post_init__(self):
        self.account = Account(self.pool)
        self.box = PushSumOutbox(self.pool, self.account)
        self.z = torch.zeros(1)
        self.open = True
        self.box.settle(0, 1)

    def offer(self):
        self.version += 1
        share = self.account.share(1)
        if self.open and share is not None and self.box.is_free(self.version, may_wait=self.version % 2 == 0):
            snapshot = self.pool.acquire()
            snapshot.buffer.fill_(1.0)
            snapshot.version, snapshot.weight = self.version, share
            self.account.weight = share
            self.box.put(snapshot)
            self.pool.release(snapshot)

    def send(self):
        snapshot = self.box.begin() if self.open else None
        if snapshot is not None:
            self.arrived.append((snapshot.version, snapshot.weight))
            self.box.sent()

    def take(self):
        for version, weight in self.arrived:
            self.accepted = version
            self.taken += weight
        self.arrived.clear()

    def take_and_acknowledge(self):
        self.take()
        if self.open:
            self.box.acknowledge(min(self.accepted, self.box.last_sent))

    def refuse(self):
        for version, _ in self.arrived:
            self.box.refuse(version)
        self.arrived.clear()

    def break_off(self):
        self.box.reset(float(self.version))
        self.open = False

    def reconnect(self):
        if not self.open:
            self.arrived.clear()
            self.box.settle(self.accepted, self.incarnation)
            self.open = True

    def give_up(self):
        self.box.give_up(math.inf)

    def mix(self):
        due = self.account.collect()
        self.account.add_(self.z, due)
        self.account.release(due)

    def farewell(self):
        if self.open:
            self.take_and_acknowledge()
            self.box.withdraw()
            self.break_off()

    def owned(self) -> float:
        outstanding = sum(given.weight for given in self.box.in_transit if given.version > self.accepted)
        return self.account.weight + outstanding + sum(weight for _, weight in self.account.unsettled) + self.taken


STEPS = [
    "offer",
    "send",
    "take",
    "take_and_acknowledge",
    "refuse",
    "break_off",
    "reconnect",
    "give_up",
    "mix",
    "farewell",
]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(STEPS), max_size=60))
def test_whatever_happens_on_an_edge_its_weight_is_neither_lost_nor_doubled(steps):
    edge = Edge()
    for step in steps:
        getattr(edge, step)()
        assert edge.account.weight > 0
    edge.break_off() if edge.open else None
    edge.reconnect()  # until then, what was given up and taken after all is there twice
    assert edge.owned() == pytest.approx(1.0)
    assert edge.pool.allocated <= 4
    edge.mix()
    debts = edge.account.unsettled
    assert edge.account.receipts == 0
    assert len(edge.pool._free) == edge.pool.allocated - len(debts)


def test_an_acceptance_of_what_was_never_sent_is_refused():
    edge = Edge()
    edge.offer()
    edge.send()
    edge.break_off()
    with pytest.raises(MessageError):
        edge.box.settle(2, 1)
    assert edge.box.in_transit  # and nothing is settled by it


# ------------------------------------------------------------------ the wire


@given(st.floats(width=64, allow_nan=False, allow_infinity=False))
def test_a_weight_survives_the_wire_to_the_last_bit(weight):
    chunk = Chunk(1, 0, 1, b"1234", Header(4, 0, weight, 0.0))
    heard = framing.decode(framing.encode(chunk))
    assert isinstance(heard, Chunk)
    assert heard.header is not None
    assert math.copysign(1.0, heard.header.weight) == math.copysign(1.0, weight)
    assert heard.header.weight == weight


@given(st.floats(), st.integers(1, 1024))
def test_a_weight_is_acceptable_if_an_honest_learner_might_send_it(weight, members):
    honest = LEAST_WEIGHT <= weight <= 16 * members
    assert is_acceptable(weight, members) == honest


def attacked(mixing: str = "push-sum") -> tuple[Fleet, Stranger]:
    fleet = Fleet(small_plan(learners=2, gossip={"mixing": mixing}), num_elements=1)
    fleet.learners[0].peer.join()
    stranger = Stranger(fleet)
    said = Hello("a run", 1, 0, 9, 0, "schema", 1, 1)
    assert [type(frame) for frame in stranger.say(said)] == [Welcome]
    return fleet, stranger


def message(weight: float, version: int = 1) -> Chunk:
    return Chunk(version, 0, 1, b"\x00\x00\x80\x3f", Header(4, 0, weight, 0.0))


@pytest.mark.parametrize("weight", [0.0, -1.0, -0.0, 1e-300, 2.0**-31, 32.1, 1e300, float("nan"), float("inf")])
def test_an_absurd_weight_is_refused_before_memory_is_taken(weight):
    fleet, stranger = attacked()
    heard = stranger.say(message(weight))
    assert isinstance(heard[-1], Refusal)
    assert heard[-1].reason is Reason.MALFORMED
    assert fleet.learners[0].mix() is None
    assert fleet.learners[0].peer.weight == 1.0


def test_without_push_sum_a_weight_means_nothing():
    fleet, stranger = attacked("average")
    stranger.say(message(-1.0))
    fleet.learners[0].offer()
    assert fleet.learners[0].mix() is not None
    assert fleet.learners[0].vector.item() == 0.5


def test_the_same_message_on_a_second_stream_is_not_taken_twice():
    fleet, stranger = attacked()
    stranger.say(message(0.5))
    assert fleet.learners[0].mix() is not None
    again = Stranger(fleet)
    heard = again.say(Hello("a run", 1, 0, 9, 0, "schema", 1, 1))
    assert isinstance(heard[0], Welcome)
    assert heard[0].accepted == 1
    assert isinstance(again.say(message(0.5))[-1], Refusal)
    assert fleet.learners[0].mix() is None
    assert fleet.learners[0].peer.weight == 1.5


def test_a_newer_stream_tells_the_truth_about_an_older_one_that_nobody_has_seen_end():
    fleet, stranger = attacked()
    stranger.say(message(0.5))  # lies there, not taken
    heard = Stranger(fleet).say(Hello("a run", 1, 0, 9, 0, "schema", 1, 1))
    assert isinstance(heard[0], Welcome)
    assert heard[0].accepted == 0  # so the sender takes it back
    assert fleet.learners[0].mix() is None
    assert fleet.learners[0].peer.weight == 1.0


def test_whatever_is_poured_into_a_learner_its_own_messages_stay_acceptable():
    fleet, stranger = attacked()
    for version in range(1, 20):
        stranger.say(message(32.0, version))
        fleet.learners[0].mix()
    assert fleet.learners[0].peer.weight == most_weight(2)
