"""Hub frames to protobuf bytes and back, and the hub's `Wire`.

A payload is copied once when it is written, never when it is read.
"""

from __future__ import annotations

from typing import Any, Final

from gala.errors import MessageError
from gala.names import COUNT_LIMIT
from gala.wire import hub_pb2
from gala_worker.algorithms.hub.messages import (
    MAX_UNPROCESSED,
    HubChunk,
    HubFrame,
    HubHeader,
    HubHeartbeat,
    HubHello,
    HubWelcome,
    Kind,
    Taken,
    Want,
)
from gala_worker.gossip import framing
from gala_worker.gossip.conversation import Wire
from gala_worker.gossip.messages import Farewell, Refusal

pb: Any = hub_pb2
"""Messages are made and read by attribute; the checks of what arrives are here, not in their types."""

_LENGTH_DELIMITED: Final = 2
_TAGS: Final = {kind << 3 | _LENGTH_DELIMITED: kind for kind in Kind}
"""First byte of a frame that is a chunk -> its kind."""


def encode(frame: HubFrame) -> bytes:
    """The frame as the bytes of one `HubFrame` message."""
    if isinstance(frame, HubChunk):
        return _encode_chunk(frame)
    return bytes(_to_message(frame).SerializeToString())


def decode(data: bytes) -> HubFrame:
    """The frame in the bytes of one `HubFrame` message. A chunk's payload is a window into `data`.

    Raises: MessageError for anything that is not one well-formed frame.
    """
    kind = _TAGS.get(data[0]) if data else None
    if kind is not None:
        return _decode_chunk(kind, memoryview(data))
    return _from_message(framing.parse(pb.HubFrame(), data))


WIRE: Final = Wire("gala.wire.v1.Hub", "Attend", encode, decode, gives_state=False)


def _encode_chunk(chunk: HubChunk) -> bytes:
    head = pb.HubChunk(serial=chunk.serial, index=chunk.index, count=chunk.count)
    if chunk.header is not None:
        header = chunk.header
        head.header.num_bytes = header.num_bytes
        head.header.version = header.version
        head.header.steps = header.steps
        head.header.progress.update(header.progress)
        head.header.finished = header.finished
    return framing.join(chunk.kind << 3 | _LENGTH_DELIMITED, head.SerializeToString(), chunk.payload)


def _decode_chunk(kind: Kind, data: memoryview) -> HubChunk:
    encoded, payload = framing.part(data)
    head = framing.parse(pb.HubChunk(), encoded)
    header = None
    if head.HasField("header"):
        said = head.header
        if max(said.version, said.steps) >= COUNT_LIMIT:
            raise MessageError("an impossible version or number of steps")
        progress = framing.progress_map(said.progress)
        header = HubHeader(said.num_bytes, said.version, said.steps, progress, said.finished)
    return HubChunk(kind, head.serial, head.index, head.count, payload, header)


def _to_message(frame: HubFrame) -> Any:
    match frame:
        case HubHello():
            return pb.HubFrame(
                hello=pb.HubHello(
                    run_uid=frame.run_uid,
                    rank=frame.rank,
                    incarnation=frame.incarnation,
                    epoch=frame.epoch,
                    schema_hash=frame.schema_hash,
                    num_elements=frame.num_elements,
                    precision=frame.precision,
                    contribution_bytes=frame.contribution_bytes,
                )
            )
        case HubWelcome():
            return pb.HubFrame(
                welcome=pb.HubWelcome(
                    run_uid=frame.run_uid,
                    incarnation=frame.incarnation,
                    epoch=frame.epoch,
                    received=frame.received,
                    held=frame.held,
                )
            )
        case Refusal():
            return pb.HubFrame(refusal=framing.refusal_message(frame))
        case Want():
            return pb.HubFrame(want=pb.Want(serial=frame.serial))
        case Taken():
            return pb.HubFrame(taken=pb.Taken(serial=frame.serial, refused=int(frame.refused or 0)))
        case HubHeartbeat():
            return pb.HubFrame(heartbeat=pb.HubHeartbeat(progress=frame.progress))
        case Farewell():
            return pb.HubFrame(farewell=framing.farewell_message(frame))
        case _:
            raise TypeError(f"not a frame: {type(frame).__name__}")


def _from_message(message: Any) -> HubFrame:
    match message.WhichOneof("kind"):
        case "hello":
            said = message.hello
            return HubHello(
                said.run_uid,
                said.rank,
                said.incarnation,
                said.epoch,
                said.schema_hash,
                said.num_elements,
                said.precision,
                said.contribution_bytes,
            )
        case "welcome":
            welcome = message.welcome
            if len(welcome.held) > MAX_UNPROCESSED:
                raise MessageError(f"{len(welcome.held)} contributions held")
            return HubWelcome(
                welcome.run_uid, welcome.incarnation, welcome.epoch, welcome.received, tuple(welcome.held)
            )
        case "refusal":
            return framing.refusal_of(message.refusal)
        case "want":
            return Want(message.want.serial)
        case "taken":
            refused = message.taken.refused
            return Taken(message.taken.serial, framing.reason_of(refused) if refused else None)
        case "heartbeat":
            return HubHeartbeat(framing.progress_map(message.heartbeat.progress))
        case "farewell":
            return framing.farewell_of(message.farewell)
        case _:
            raise MessageError("a frame that says nothing")
