"""Messages in pieces of at most 1 MiB; `gossip.codec.Reassembler` makes them whole again."""

from __future__ import annotations

from collections.abc import Iterator

from gala_worker.algorithms.hub.messages import HubChunk, HubHeader, Kind
from gala_worker.gossip.codec import num_chunks
from gala_worker.gossip.messages import CHUNK_BYTES


def split(kind: Kind, serial: int, payload: memoryview, header: HubHeader) -> Iterator[HubChunk]:
    """The chunks of a message, in order, as windows into `payload`."""
    count = num_chunks(len(payload))
    for index in range(count):
        piece = payload[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        yield HubChunk(kind, serial, index, count, piece, header if index == 0 else None)
