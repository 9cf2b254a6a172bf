"""Frames survive the wire; bytes that are no frame are refused and nothing worse."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gala.errors import MessageError
from gala.wire import gossip_pb2
from gala_worker.gossip import framing
from gala_worker.gossip.messages import (
    Ack,
    Chunk,
    Farewell,
    Header,
    Heartbeat,
    Hello,
    Leaving,
    Precision,
    Reason,
    Refusal,
    StateRequest,
    Welcome,
)

words = st.text(max_size=50)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
progress = st.dictionaries(st.integers(0, 1023), st.integers(0, 2**62 - 1), max_size=5)
headers = st.builds(Header, u64, u64, floats, floats, progress)
frames = st.one_of(
    st.builds(Hello, words, u32, u32, u64, u64, words, u64, st.sampled_from([int(p) for p in Precision])),
    st.builds(Welcome, words, u32, u64, u64, progress, u64),
    st.builds(Refusal, st.sampled_from(Reason), words),
    st.builds(Chunk, u64, u32, u32, st.binary(max_size=300), st.none() | headers),
    st.builds(Heartbeat, u64, progress),
    st.builds(Ack, u64, st.none() | st.sampled_from(Reason)),
    st.builds(Farewell, st.sampled_from(Leaving), progress),
)


@given(frames)
def test_what_is_said_is_what_is_heard(frame):
    assert framing.decode(framing.encode(frame)) == frame


@given(st.builds(Chunk, u64, u32, u32, st.binary(max_size=300), st.none() | headers))
def test_a_chunk_encoded_by_hand_is_what_protobuf_reads(chunk):
    message = gossip_pb2.Frame.FromString(framing.encode(chunk)).chunk
    assert (message.version, message.index, message.count) == (chunk.version, chunk.index, chunk.count)
    assert message.payload == chunk.payload
    assert message.HasField("header") == (chunk.header is not None)


@given(st.builds(Chunk, u64, u32, u32, st.binary(min_size=1, max_size=300), st.none() | headers))
def test_a_chunk_that_protobuf_wrote_is_read_without_it(chunk):
    ours = gossip_pb2.Frame.FromString(framing.encode(chunk))
    assert framing.decode(ours.SerializeToString()) == chunk


@given(st.binary(max_size=200))
def test_random_bytes_are_a_frame_or_a_message_error(data):
    with contextlib.suppress(MessageError):
        framing.decode(data)


@given(st.binary(max_size=127))
def test_random_bytes_that_begin_like_a_chunk_are_a_chunk_or_a_message_error(data):
    with contextlib.suppress(MessageError):
        framing.decode(b"\x12" + bytes([len(data)]) + data)


@given(frame=st.builds(Chunk, u64, u32, u32, st.binary(min_size=1), headers), cut=st.integers(1, 400))
def test_a_truncated_chunk_is_refused(frame, cut):
    data = framing.encode(frame)
    with pytest.raises(MessageError):
        framing.decode(data[: max(0, len(data) - cut)])


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"\x12",
        b"\x12" + b"\xff" * 20,
        b"\x12\x02\x7a\x05",
        b"\x12\x03\x7a\x00\x08",  # a payload that is not the end
        b"\x12\x05\x0d\x00\x00\x00\x00",  # fixed32
        framing.encode(Heartbeat(1, {1024: 1})),
        framing.encode(Heartbeat(1, {1: 2**63})),
        framing.encode(Chunk(1, 0, 1, b"", Header(0, 0, float("nan"), 0.0))),
        framing.encode(Chunk(1, 0, 1, b"", Header(0, 0, 1.0, float("inf")))),
        framing.encode(Heartbeat(1, dict.fromkeys(range(1025), 1))),
    ],
)
def test_hostile_bytes_are_refused(hostile):
    with pytest.raises(MessageError):
        framing.decode(hostile)


def test_words_of_a_newer_protocol_are_understood_as_far_as_possible():
    assert framing.decode(gossip_pb2.Frame(farewell={"why": 99}).SerializeToString()) == Farewell(Leaving.STOPPED)
    assert framing.decode(gossip_pb2.Frame(refusal={"reason": 99}).SerializeToString()) == Refusal(Reason.MALFORMED)


def test_a_long_story_in_a_refusal_is_cut():
    assert len(framing.decode(framing.encode(Refusal(Reason.WRONG_RUN, "x" * 10_000))).detail) == framing.MAX_DETAIL


def test_enums_are_those_of_the_wire():
    for ours, theirs in ((Reason, gossip_pb2.Reason), (Leaving, gossip_pb2.Leaving), (Precision, gossip_pb2.Precision)):
        assert {m.name: int(m) for m in ours} == {name: n for name, n in theirs.items() if n}
    assert all(reason.text for reason in Reason)


@given(st.builds(StateRequest, words, u32, words, u64))
def test_a_request_for_state_survives_the_wire(request):
    assert framing.decode_request(framing.encode_request(request)) == request


def test_a_piece_of_state_or_a_refusal_survives_the_wire():
    assert framing.decode_state(framing.encode_state(10, 4, b"abc")) == (10, 4, b"abc")
    refusal = framing.decode_state(framing.encode_state_refusal(Reason.NOTHING_YET))
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.NOTHING_YET
    with pytest.raises(MessageError):
        framing.decode_state(b"\xff\xff")
    with pytest.raises(MessageError):
        framing.decode_request(b"\xff\xff")
