"""The parts of the hub that need no network: frames, pieces, the queue's turns, buffers that are used again."""

from __future__ import annotations

import contextlib
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gala.errors import MessageError
from gala.wire import hub_pb2
from gala_worker.algorithms.hub import framing
from gala_worker.algorithms.hub.contributions import BufferPool, Contribution, ContributionQueue
from gala_worker.algorithms.hub.messages import (
    MAX_UNPROCESSED,
    HubChunk,
    HubHeader,
    HubHeartbeat,
    HubHello,
    HubWelcome,
    Kind,
    Taken,
    Want,
)
from gala_worker.algorithms.hub.parameters import Press
from gala_worker.algorithms.hub.pieces import split
from gala_worker.gossip.codec import Reassembler
from gala_worker.gossip.messages import CHUNK_BYTES, Farewell, Leaving, Precision, Reason, Refusal

words = st.text(max_size=50)
u32 = st.integers(0, 2**32 - 1)
u62 = st.integers(0, 2**62 - 1)
u64 = st.integers(0, 2**64 - 1)
progress = st.dictionaries(st.integers(0, 1023), u62, max_size=5)
headers = st.builds(HubHeader, u64, u62, u62, progress, st.booleans())
chunks = st.builds(
    HubChunk, st.sampled_from(Kind), u64, u32, u32, st.binary(min_size=1, max_size=300), st.none() | headers
)
frames = st.one_of(
    st.builds(HubHello, words, u32, u64, u64, words, u64, st.sampled_from([int(p) for p in Precision]), u64),
    st.builds(HubWelcome, words, u64, u64, u64, st.lists(u64, max_size=MAX_UNPROCESSED).map(tuple)),
    st.builds(Refusal, st.sampled_from(Reason), words),
    chunks,
    st.builds(Want, u64),
    st.builds(Taken, u64, st.none() | st.sampled_from(Reason)),
    st.builds(HubHeartbeat, progress),
    st.builds(Farewell, st.sampled_from(Leaving), progress),
)


@given(frames)
def test_what_is_said_to_the_hub_or_by_it_is_what_is_heard(frame):
    assert framing.decode(framing.encode(frame)) == frame


@given(chunks)
def test_a_chunk_of_the_hub_is_what_protobuf_writes_and_reads(chunk):
    message = hub_pb2.HubFrame.FromString(framing.encode(chunk))
    assert message.WhichOneof("kind") == chunk.kind.name.lower()
    assert getattr(message, chunk.kind.name.lower()).payload == chunk.payload
    assert framing.decode(message.SerializeToString()) == chunk


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x0a", b"\x12"]))
def test_random_bytes_are_a_frame_of_the_hub_or_a_message_error(data, prefix):
    with contextlib.suppress(MessageError):
        framing.decode(prefix + data)


@given(chunks, st.integers(1, 400))
def test_a_truncated_chunk_of_the_hub_is_refused(chunk, cut):
    data = framing.encode(chunk)
    with pytest.raises(MessageError):
        framing.decode(data[: max(0, len(data) - cut)])


def test_a_welcome_that_holds_more_than_the_credit_is_refused():
    with pytest.raises(MessageError, match="3 contributions held"):
        framing.decode(framing.encode(HubWelcome("a run", 1, 1, 9, (7, 8, 9))))


# ------------------------------------------------------------------ pieces


def whole(size: int, serial: int = 1) -> list[HubChunk]:
    payload = memoryview(random.Random(size).randbytes(size))
    return list(split(Kind.CONTRIBUTION, serial, payload, HubHeader(size, 5, 6)))


def put_together(chunks: list[HubChunk], size: int) -> bytes:
    reassembler = Reassembler[HubHeader](size)
    target = bytearray(size)
    for chunk in chunks:
        if not reassembler.in_progress:
            reassembler.begin(chunk)
            reassembler.into(chunk.serial, memoryview(target))
        if reassembler.add(chunk):
            return bytes(target)
    raise AssertionError("not complete")


@pytest.mark.parametrize("size", [1, 100, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 7])
def test_what_is_split_is_put_together(size):
    assert put_together(whole(size), size) == random.Random(size).randbytes(size)


SIZE = 2 * CHUNK_BYTES + 7


@pytest.mark.parametrize(
    "spoil",
    [
        lambda chunks: chunks[1:],
        lambda chunks: [chunks[0], chunks[2], chunks[1]],
        lambda chunks: [chunks[0], chunks[0], chunks[1]],
        lambda chunks: [chunks[0], *whole(SIZE, 2)],
        lambda chunks: whole(SIZE - 7),
        lambda chunks: whole(SIZE + 1),
        lambda chunks: [*chunks[:2], HubChunk(Kind.CONTRIBUTION, 1, 2, 3, b"short")],
        lambda chunks: whole(SIZE, 0),
    ],
    ids=["headless", "swapped", "twice", "nested", "too small", "too large", "short end", "old"],
)
def test_pieces_out_of_order_or_size_are_refused(spoil):
    with pytest.raises(MessageError):
        put_together(spoil(whole(SIZE)), SIZE)


# ------------------------------------------------------------------ turns


def contribution(rank: int, serial: int, at: float, incarnation: int = 1) -> Contribution:
    return Contribution(rank, incarnation, serial, 0, 1, memoryview(b""), at, lambda buffer: None, bytearray(1))


@given(st.lists(st.integers(1, 4), max_size=60), st.randoms(use_true_random=False))
def test_turns_are_fair_and_an_actor_s_own_order_is_kept(arrivals, dice):
    queue, taken, serials = ContributionQueue(), [], dict.fromkeys(range(1, 5), 0)
    for at, rank in enumerate(arrivals):
        if len(queue.held(rank, 1)) < MAX_UNPROCESSED:
            serials[rank] += 1
            queue.put(contribution(rank, serials[rank], at))
        if dice.random() < 0.4 and len(queue):
            taken.append(queue.take())
    while len(queue):
        taken.append(queue.take())
    for rank in serials:
        assert [c.serial for c in taken if c.rank == rank] == list(range(1, serials[rank] + 1))
    assert queue.dropped == 0


def test_between_two_turns_of_an_actor_every_other_that_waits_has_one():
    queue, at = ContributionQueue(), 0.0
    served: list[int] = []
    serials = dict.fromkeys((1, 2, 3), 0)
    for _ in range(30):
        for rank in serials:  # all of them always have as much here as they may
            while len(queue.held(rank, 1)) < MAX_UNPROCESSED:
                at, serials[rank] = at + 1.0, serials[rank] + 1
                queue.put(contribution(rank, serials[rank], at))
        served.append(queue.take().rank)
    assert served == [1, 2, 3] * 10


def test_what_a_dead_process_left_is_used_or_displaced_and_never_piles_up():
    queue = ContributionQueue()
    for incarnation in range(1, 6):
        for serial in (1, 2):
            queue.put(contribution(1, serial, incarnation + serial / 10, incarnation))
    assert len(queue) == MAX_UNPROCESSED
    assert queue.dropped == 8
    assert queue.held(1, 5) == (1, 2)
    assert queue.held(1, 4) == ()


# ------------------------------------------------------------------ buffers


def test_a_released_contribution_s_memory_is_used_again_once():
    pool = BufferPool(10)
    pool.keep = 1
    first = pool.acquire()
    used = Contribution(1, 1, 1, 0, 1, memoryview(first), 0.0, pool.give_back, first)
    used.release()
    used.release()
    assert pool.acquire() is first
    assert pool.acquire() is not first


def test_editions_are_as_many_as_slow_streams_need_and_no_more():
    press = Press(lambda: torch.empty(4))
    slow = None
    for version in range(100):
        edition = press.begin()
        edition.version = version
        press.publish(edition)
        if version == 3:
            slow = press.hold(press.newest)
    assert slow is not None
    assert (press.allocated, press.newest.version, slow.version) == (3, 99, 3)
    press.release(slow)
    assert press.begin() is slow
