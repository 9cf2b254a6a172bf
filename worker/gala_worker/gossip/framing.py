"""Frames to protobuf bytes and back; with the generated modules, the only place that knows protobuf.

Parameter chunks are most of the traffic, and every copy of a megabyte is time that the learner does not get. Their
payload is therefore joined to the encoded rest in one copy, and found again without one. The bytes are those that any
protobuf implementation would write and read.
"""

from __future__ import annotations

import math
from typing import Any, Final

from google.protobuf.message import DecodeError

from gala.errors import MessageError
from gala.names import COUNT_LIMIT, MAX_LEARNERS
from gala.wire import gossip_pb2
from gala_worker.gossip.messages import (
    Ack,
    Chunk,
    Farewell,
    Frame,
    Header,
    Heartbeat,
    Hello,
    Leaving,
    Loan,
    Progress,
    Reason,
    Refusal,
    SharedMemory,
    StateRequest,
    Welcome,
)

pb: Any = gossip_pb2
"""Messages are made and read by attribute; the checks of what arrives are here, not in their types."""

_CHUNK_TAG: Final = 0x12
"""Frame.chunk: field 2, length-delimited."""
_PAYLOAD_TAG: Final = 0x7A
"""Chunk.payload: field 15, length-delimited."""
MAX_DETAIL: Final = 200
"""Characters of a stranger's text that are kept."""
MAX_TOKEN_BYTES: Final = 64
"""Of shared memory."""


def encode(frame: Frame) -> bytes:
    """The frame as the bytes of one `Frame` message."""
    if isinstance(frame, Chunk):
        return _encode_chunk(frame)
    return bytes(_to_message(frame).SerializeToString())


def decode(data: bytes) -> Frame:
    """The frame in the bytes of one `Frame` message. A chunk's payload is a window into `data`.

    Raises: MessageError for anything that is not one well-formed frame.
    """
    if data and data[0] == _CHUNK_TAG:
        return _decode_chunk(memoryview(data))
    return _from_message(parse(pb.Frame(), data))


def encode_request(request: StateRequest) -> bytes:
    """The bytes of one `StateRequest` message."""
    message = pb.StateRequest(
        run_uid=request.run_uid, rank=request.rank, schema_hash=request.schema_hash, incarnation=request.incarnation
    )
    return bytes(message.SerializeToString())


def decode_request(data: bytes) -> StateRequest:
    """Raises: MessageError."""
    message = parse(pb.StateRequest(), data)
    return StateRequest(message.run_uid, message.rank, message.schema_hash, message.incarnation)


def encode_state(num_bytes: int, offset: int, payload: bytes | memoryview) -> bytes:
    """One piece of a state of `num_bytes`."""
    message = pb.StateChunk(num_bytes=num_bytes, offset=offset, payload=bytes(payload))
    return bytes(message.SerializeToString())


def encode_state_refusal(reason: Reason) -> bytes:
    """Instead of a state."""
    return bytes(pb.StateChunk(refusal=refusal_message(Refusal(reason, reason.text))).SerializeToString())


def decode_state(data: bytes) -> tuple[int, int, bytes] | Refusal:
    """(size of the whole, offset, payload), or the neighbour's refusal.

    Raises: MessageError.
    """
    message = parse(pb.StateChunk(), data)
    if message.HasField("refusal"):
        return refusal_of(message.refusal)
    return message.num_bytes, message.offset, message.payload


def parse(message: Any, data: bytes) -> Any:
    """Fills a protobuf message.

    Raises: MessageError.
    """
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise MessageError(f"{len(data)} bytes that are not a {message.DESCRIPTOR.name}") from error
    return message


def _encode_chunk(chunk: Chunk) -> bytes:
    head = pb.Chunk(version=chunk.version, index=chunk.index, count=chunk.count)
    if chunk.header is not None:
        _fill_header(head.header, chunk.header)
    return join(_CHUNK_TAG, head.SerializeToString(), chunk.payload)


def _decode_chunk(data: memoryview) -> Chunk:
    encoded, payload = part(data)
    head = parse(pb.Chunk(), encoded)
    header = None
    if head.HasField("header"):
        header = _header_of(head.header)
    return Chunk(head.version, head.index, head.count, payload, header)


def _fill_header(message: Any, header: Header) -> None:
    message.num_bytes = header.num_bytes
    message.round = header.round
    message.weight = header.weight
    message.age_seconds = header.age_seconds
    message.progress.update(header.progress)


def _header_of(message: Any) -> Header:
    if not (math.isfinite(message.weight) and math.isfinite(message.age_seconds)):
        raise MessageError("a message with a weight or age that is not a finite number")
    return Header(message.num_bytes, message.round, message.weight, message.age_seconds, progress_map(message.progress))


def join(tag: int, head: bytes, payload: bytes | memoryview) -> bytes:
    """A frame whose only field is a message with a payload in its field 15, in one copy of the payload.

    Args:
        tag: of the frame's field, length-delimited.
        head: the message without its payload.
    """
    prefix = head + bytes([_PAYLOAD_TAG]) + _varint(len(payload))
    start = bytes([tag]) + _varint(len(prefix) + len(payload))
    return b"".join((start, prefix, payload))


def part(data: memoryview) -> tuple[bytes, bytes | memoryview]:
    """What `join` joined: (head, payload), the payload as a window into `data`.

    Raises: MessageError.
    """
    size, start = _read_varint(data, 1)
    if start + size != len(data):
        raise MessageError("a chunk of another length than it says")
    payload: memoryview | bytes = b""
    end = position = start
    while position < len(data):
        tag, after = _read_varint(data, position)
        kind = tag & 7
        if kind == 0:
            _, after = _read_varint(data, after)
        elif kind == 2:
            length, after = _read_varint(data, after)
            if tag == _PAYLOAD_TAG:
                if after + length != len(data):
                    raise MessageError("a chunk whose payload is not its end")
                payload = data[after:]
            after += length
        else:
            raise MessageError("a chunk with a field of an unknown kind")
        end = position if tag == _PAYLOAD_TAG else after
        position = after
    if position != len(data):
        raise MessageError("a truncated chunk")
    return bytes(data[start:end]), payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise MessageError("a number without an end")


def _to_message(frame: Frame) -> Any:
    match frame:
        case Hello(memory=memory):
            return pb.Frame(
                hello=pb.Hello(
                    run_uid=frame.run_uid,
                    rank=frame.rank,
                    receiver=frame.receiver,
                    incarnation=frame.incarnation,
                    epoch=frame.epoch,
                    schema_hash=frame.schema_hash,
                    num_elements=frame.num_elements,
                    precision=frame.precision,
                    memory=memory
                    and pb.SharedMemory(process=memory.process, descriptor=memory.descriptor, token=memory.token),
                )
            )
        case Welcome():
            return pb.Frame(
                welcome=pb.Welcome(
                    run_uid=frame.run_uid,
                    rank=frame.rank,
                    incarnation=frame.incarnation,
                    epoch=frame.epoch,
                    progress=frame.progress,
                    accepted=frame.accepted,
                    sees_memory=frame.sees_memory,
                )
            )
        case Loan():
            loan = pb.Loan(version=frame.version, descriptor=frame.descriptor, serial=frame.serial)
            _fill_header(loan.header, frame.header)
            return pb.Frame(loan=loan)
        case Refusal():
            return pb.Frame(refusal=refusal_message(frame))
        case Heartbeat():
            return pb.Frame(heartbeat=pb.Heartbeat(version=frame.version, progress=frame.progress))
        case Ack():
            return pb.Frame(ack=pb.Ack(version=frame.version, refused=int(frame.refused or 0)))
        case Farewell():
            return pb.Frame(farewell=farewell_message(frame))
        case _:
            raise TypeError(f"not a frame: {type(frame).__name__}")


def _from_message(message: Any) -> Frame:
    match message.WhichOneof("kind"):
        case "hello":
            said = message.hello
            return Hello(
                said.run_uid,
                said.rank,
                said.receiver,
                said.incarnation,
                said.epoch,
                said.schema_hash,
                said.num_elements,
                said.precision,
                _memory_of(said.memory) if said.HasField("memory") else None,
            )
        case "welcome":
            welcome = message.welcome
            return Welcome(
                welcome.run_uid,
                welcome.rank,
                welcome.incarnation,
                welcome.epoch,
                progress_map(welcome.progress),
                welcome.accepted,
                welcome.sees_memory,
            )
        case "loan":
            loan = message.loan
            return Loan(loan.version, _header_of(loan.header), loan.descriptor, loan.serial)
        case "refusal":
            return refusal_of(message.refusal)
        case "heartbeat":
            return Heartbeat(message.heartbeat.version, progress_map(message.heartbeat.progress))
        case "ack":
            refused = message.ack.refused
            return Ack(message.ack.version, reason_of(refused) if refused else None)
        case "farewell":
            return farewell_of(message.farewell)
        case _:
            raise MessageError("a frame that says nothing")


def _memory_of(message: Any) -> SharedMemory:
    if len(message.token) > MAX_TOKEN_BYTES:
        raise MessageError(f"a token of {len(message.token)} bytes")
    return SharedMemory(message.process, message.descriptor, message.token)


def refusal_message(refusal: Refusal) -> Any:
    """What `refusal_of` reads."""
    return pb.Refusal(reason=int(refusal.reason), detail=refusal.detail[:MAX_DETAIL])


def farewell_message(farewell: Farewell) -> Any:
    """What `farewell_of` reads."""
    return pb.Farewell(why=int(farewell.why), progress=farewell.progress)


def refusal_of(message: Any) -> Refusal:
    """What a `Refusal` message says, in bounds."""
    return Refusal(reason_of(message.reason), message.detail[:MAX_DETAIL])


def farewell_of(message: Any) -> Farewell:
    """What a `Farewell` message says.

    Raises: MessageError.
    """
    try:
        why = Leaving(message.why)
    except ValueError:
        why = Leaving.STOPPED  # a newer peer's word for leaving is still a farewell
    return Farewell(why, progress_map(message.progress))


def reason_of(number: int) -> Reason:
    """The reason of this number."""
    try:
        return Reason(number)
    except ValueError:
        return Reason.MALFORMED  # a newer peer's reason: a refusal all the same


def progress_map(entries: Any) -> Progress:
    """A map rank -> decisions as it arrived.

    Raises: MessageError for more ranks, or other ones, than a run can have, and for impossible amounts.
    """
    if len(entries) > MAX_LEARNERS:
        raise MessageError(f"progress of {len(entries)} ranks")
    progress = dict(entries)
    if progress and (max(progress) >= MAX_LEARNERS or max(progress.values()) >= COUNT_LIMIT):
        raise MessageError("progress of an impossible rank, or an impossible amount")
    return progress
