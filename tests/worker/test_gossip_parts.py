"""Payloads, slots, mixing and the successor list, each on its own."""

from __future__ import annotations

import logging
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gala.complaints import LOG_AGAIN_SECONDS
from gala.errors import GossipError, MessageError
from gala_worker.gossip import codec, ring
from gala_worker.gossip.journal import MAX_EVENTS, Journal
from gala_worker.gossip.messages import CHUNK_BYTES, Chunk, Header, Precision
from gala_worker.gossip.mixing import distance, mix_
from gala_worker.gossip.slots import Inbox, Outbox, Received, Snapshot, SnapshotPool

# ------------------------------------------------------------------ payload


def chunks_of(payload: bytes, version: int = 1) -> list[Chunk]:
    header = Header(len(payload), 0, 1.0, 0.0)
    return [
        Chunk(c.version, c.index, c.count, bytes(c.payload), c.header)
        for c in codec.split(memoryview(payload), version, header)
    ]


def receive(reassembler: codec.Reassembler, target: bytearray, chunks: list[Chunk]) -> bool:
    complete = False
    for chunk in chunks:
        if not reassembler.in_progress:
            reassembler.begin(chunk)
            reassembler.into(chunk.version, memoryview(target))
        complete = reassembler.add(chunk)
    return complete


sizes = st.one_of(st.integers(0, 40), st.integers(CHUNK_BYTES - 4, CHUNK_BYTES + 4), st.just(3 * CHUNK_BYTES + 8))


@settings(max_examples=40)
@given(size=sizes, seed=st.integers(0, 99))
def test_a_message_is_put_together_as_it_was(size, seed):
    payload = random.Random(seed).randbytes(size)
    chunks = chunks_of(payload)
    assert all(len(chunk.payload) <= CHUNK_BYTES for chunk in chunks)
    target = bytearray(size)
    reassembler = codec.Reassembler(size)
    assert receive(reassembler, target, chunks)
    assert target == payload
    assert receive(reassembler, target, chunks_of(payload, version=2))  # and the next one after it


FIVE = chunks_of(bytes(4 * CHUNK_BYTES + 4))


@settings(max_examples=200)
@given(st.lists(st.sampled_from(range(5)), max_size=8))
def test_every_order_of_chunks_but_the_right_one_is_refused_or_incomplete(order):
    reassembler, target = codec.Reassembler(4 * CHUNK_BYTES + 4), bytearray(4 * CHUNK_BYTES + 4)
    right = list(range(5))
    if order == right[: len(order)]:
        assert receive(reassembler, target, [FIVE[i] for i in order]) == (order == right)
    else:
        with pytest.raises(MessageError):
            receive(reassembler, target, [FIVE[i] for i in order])


@given(st.integers(0, 4), st.integers(-8, 8).filter(bool))
def test_a_chunk_of_another_length_is_refused(index, difference):
    chunk = FIVE[index]
    payload = bytes(max(0, len(chunk.payload) + difference))
    wrong = Chunk(chunk.version, chunk.index, chunk.count, payload, chunk.header)
    with pytest.raises(MessageError):
        receive(codec.Reassembler(4 * CHUNK_BYTES + 4), bytearray(4 * CHUNK_BYTES + 4), [*FIVE[:index], wrong])


@pytest.mark.parametrize(
    "first",
    [
        Chunk(1, 0, 1, b"1234", None),
        Chunk(1, 0, 1, b"1234", Header(5, 0, 1.0, 0.0)),
        Chunk(1, 0, 2**31, b"1234", Header(4, 0, 1.0, 0.0)),
        Chunk(1, 0, 1, b"1234", Header(2**60, 0, 1.0, 0.0)),
        Chunk(0, 0, 1, b"1234", Header(4, 0, 1.0, 0.0)),
    ],
    ids=["no header", "other size", "too many chunks", "huge", "not newer"],
)
def test_a_message_that_announces_something_else_is_refused_before_memory_is_taken(first):
    with pytest.raises(MessageError):
        codec.Reassembler(4).begin(first)


@given(st.lists(st.floats(width=32), max_size=50))
def test_a_buffer_is_finite_if_all_its_numbers_are(numbers):
    expected = bool(np.isfinite(np.array(numbers, dtype=np.float32)).all())
    assert codec.is_finite(torch.tensor(numbers, dtype=torch.float32)) == expected


@pytest.mark.parametrize("precision", list(Precision))
def test_large_numbers_whose_sum_overflows_are_finite(precision):
    buffer = codec.new_buffer(4, precision)
    buffer.fill_(3e38)
    assert codec.is_finite(buffer)
    buffer[2] = float("-inf")
    assert not codec.is_finite(buffer)


def test_the_wire_is_little_endian():
    buffer = codec.new_buffer(1, Precision.FLOAT32)
    buffer.fill_(1.0)
    assert bytes(codec.window(buffer)) == b"\x00\x00\x80\x3f"
    short = codec.new_buffer(1, Precision.BFLOAT16)
    short.fill_(1.0)
    assert bytes(codec.window(short)) == b"\x80\x3f"


# ------------------------------------------------------------------ slots


def outbox() -> tuple[Outbox, SnapshotPool]:
    pool = SnapshotPool(lambda: Snapshot(torch.zeros(1)))
    return Outbox(pool), pool


def offer(box: Outbox, pool: SnapshotPool, version: int) -> None:
    snapshot = pool.acquire()
    snapshot.version = version
    box.put(snapshot)
    pool.release(snapshot)


def test_the_newest_of_what_waits_is_sent_and_never_more_than_one_is_in_flight():
    box, pool = outbox()
    offer(box, pool, 1)
    assert box.begin().version == 1
    for version in range(2, 50):
        offer(box, pool, version)
        assert box.begin() is None
    box.sent()
    assert box.begin() is None  # written, and not acknowledged
    box.acknowledge(1)
    assert box.begin().version == 49
    assert box.replaced == 47
    assert pool.allocated <= 3


def test_an_acknowledgement_of_something_older_does_not_open_the_edge():
    box, pool = outbox()
    for version in (1, 2):
        offer(box, pool, version)
        box.begin()
        box.sent()
        box.acknowledge(version)
    offer(box, pool, 3)
    box.begin()
    box.sent()
    box.acknowledge(2)
    offer(box, pool, 4)
    assert box.begin() is None


@given(st.lists(st.sampled_from(["offer", "begin", "sent", "ack", "reset"]), max_size=60))
def test_buffers_are_never_lost_and_never_more_than_three(steps):
    box, pool = outbox()
    version = 0
    for step in steps:
        if step == "offer":
            version += 1
            offer(box, pool, version)
        elif step == "begin":
            box.begin()
        elif step == "sent":
            box.sent()
        elif step == "ack":
            box.acknowledge(version)
        else:
            box.reset(0.0)
    assert pool.allocated <= 3
    box.reset(0.0)
    assert len(pool._free) == pool.allocated


def received(version: int, buffer: torch.Tensor, done: list[int]) -> Received:
    return Received(buffer, 1, version, 0, 1.0, 0.0, 0.0, 0, done.append)


def test_an_inbox_keeps_the_newest_and_tells_the_sender_of_the_replaced():
    done: list[int] = []
    box = Inbox(lambda: torch.zeros(1))
    box.deliver(received(1, box.begin(), done))
    box.deliver(received(2, box.begin(), done))
    assert done == [1]
    assert box.take().version == 2
    assert done == [1, 2]
    assert (box.replaced, box.allocated) == (1, 2)


def test_an_inbox_takes_no_third_buffer():
    box = Inbox(lambda: torch.zeros(1))
    box.begin()
    box.begin()
    with pytest.raises(GossipError):
        box.begin()


# ------------------------------------------------------------------ mixing


@given(peers=st.integers(1, 4), size=st.integers(1, 40), seed=st.integers(0, 99), bfloat16=st.booleans())
def test_mixing_is_the_uniform_average(peers, size, seed, bfloat16):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=generator)
    kind = torch.bfloat16 if bfloat16 else torch.float32
    messages = [torch.randn(size, generator=generator).to(kind) for _ in range(peers)]
    before = x.clone()
    rows = [before.double().numpy(), *(m.double().numpy() for m in messages)]
    apart = distance(x, messages)
    mix_(x, messages)
    np.testing.assert_allclose(x.double().numpy(), np.mean(rows, axis=0), rtol=1e-5, atol=1e-6)
    expected = np.sqrt(np.mean([np.sum((rows[0] - row) ** 2) for row in rows[1:]]))
    assert apart.disagreement == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert apart.relative == pytest.approx(expected / np.linalg.norm(rows[0]), rel=1e-4, abs=1e-5)


def test_the_distance_of_large_vectors_is_summed_over_blocks():
    x, m = torch.zeros(600_000), torch.ones(600_000)
    assert distance(x, [m]).disagreement == pytest.approx(600_000**0.5)
    assert distance(x, [m]).relative == 0.0  # there is nothing to be relative to


# ------------------------------------------------------------------ the successor list


@given(size=st.integers(2, 12), peers=st.integers(1, 4), data=st.data())
def test_the_healed_ring_uses_live_ranks_once_and_the_nearest_first(size, peers, data):
    members = list(range(0, 3 * size, 3))  # ranks need not be without gaps
    rank = data.draw(st.sampled_from(members))
    gone = set(data.draw(st.lists(st.sampled_from(members)))) - {rank}
    here = members.index(rank)
    nominal = [members[(here + o) % size] for o in range(1, min(peers, size - 1) + 1)]
    chosen = ring.choose(nominal, members, rank, gone)
    live = [peer for peer in chosen if peer is not None]
    assert len(set(live)) == len(live)
    assert not {rank, *gone} & set(live)
    after = [members[(here + o) % size] for o in range(1, size)]
    assert set(live) == set([peer for peer in after if peer not in gone][: len(nominal)])
    tried = ring.nearer(nominal, chosen, members, rank)
    assert tried <= gone
    assert {peer for peer in nominal if peer in gone} <= tried


def test_attempts_become_rare_and_are_not_simultaneous():
    def attempts(seed: int) -> list[float]:
        backoff, now, times = ring.Backoff(random.Random(seed)), 0.0, []
        while now < 100:
            if backoff.due(now):
                times.append(now)
                backoff.failed(now)
            now += 0.01
        return times

    first, second = attempts(1), attempts(2)
    assert first[1] <= ring.FIRST_RETRY_SECONDS + 0.01
    assert max(np.diff(first)) <= ring.LONGEST_RETRY_SECONDS + 0.01
    assert 20 <= len(first) <= 60
    assert first != second


# ------------------------------------------------------------------ what is told about neighbours


def test_a_refusal_is_counted_each_time_and_told_once_in_a_while(caplog):
    journal = Journal(logging.getLogger("test"))
    for now in (0.0, 1.0, LOG_AGAIN_SECONDS + 1.0):
        journal.refusal("WRONG_RUN", 3, "refused rank 3", now, direction="in")
    journal.refusal("WRONG_RUN", 4, "refused rank 4", 1.0, direction="in")
    refused = [{"event": "refused", "peer": peer, "reason": "WRONG_RUN", "direction": "in"} for peer in (3, 3, 4)]
    assert journal.collect() == refused
    assert journal.collect() == []
    assert journal.counts == {"WRONG_RUN": 4}
    assert [record.message for record in caplog.records] == ["refused rank 3", "refused rank 3", "refused rank 4"]


def test_no_refusal_is_lost_where_two_threads_refuse_at_once():
    journal = Journal(logging.getLogger("test"))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            for _ in range(2):
                threads.submit(lambda: [journal.refusal("WRONG_RUN", 3, "refused", 0.0) for _ in range(300_000)])
    finally:
        sys.setswitchinterval(interval)
    assert journal.counts == {"WRONG_RUN": 600_000}


def test_a_journal_that_nobody_collects_forgets_the_oldest_events():
    journal = Journal(logging.getLogger("test"))
    for number in range(MAX_EVENTS + 2):
        journal.note("ring", number=number)
    assert [event["number"] for event in journal.collect()] == list(range(2, MAX_EVENTS + 2))
