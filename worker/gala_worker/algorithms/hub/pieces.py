"""Messages in pieces of at most 1 MiB, and whole again."""

from __future__ import annotations

from collections.abc import Iterator

from gala.errors import MessageError
from gala_worker.algorithms.hub.messages import HubChunk, HubHeader, Kind
from gala_worker.gossip.codec import num_chunks
from gala_worker.gossip.messages import CHUNK_BYTES


def split(kind: Kind, serial: int, payload: memoryview, header: HubHeader) -> Iterator[HubChunk]:
    """The chunks of a message, in order, as windows into `payload`."""
    count = num_chunks(len(payload))
    for index in range(count):
        piece = payload[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        yield HubChunk(kind, serial, index, count, piece, header if index == 0 else None)


class Assembler:
    """Puts the chunks of one message after another together; refuses everything out of order or size.

    After a MessageError the stream cannot be trusted any more: the caller closes it.
    """

    def __init__(self, kind: Kind, num_bytes: int, after: int = 0) -> None:
        """`num_bytes`: the only size that a message may have. `after`: serials begin above it."""
        self._kind = kind
        self._num_bytes = num_bytes
        self._count = num_chunks(num_bytes)
        self._target: memoryview | None = None
        self._next = 0
        self.serial = after
        """Of the message in progress, or of the last one."""

    @property
    def in_progress(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._target is not None

    def begin(self, chunk: HubChunk) -> HubHeader:
        """Checks what a message's first chunk says of the whole, before any memory is taken for it.

        To be followed by `into` and `add`. Raises: MessageError.
        """
        self._check_kind(chunk)
        if chunk.index != 0 or chunk.header is None:
            raise MessageError(f"message {chunk.serial} begins with its chunk {chunk.index}")
        if chunk.header.num_bytes != self._num_bytes or chunk.count != self._count:
            size = f"{chunk.header.num_bytes} bytes in {chunk.count} chunks"
            raise MessageError(f"a message of {size}, not {self._num_bytes} in {self._count}")
        if chunk.serial <= self.serial:
            raise MessageError(f"message {chunk.serial} after message {self.serial}")
        return chunk.header

    def into(self, serial: int, target: memoryview) -> None:
        """The buffer for the message that has begun."""
        self.serial, self._target, self._next = serial, target, 0

    def add(self, chunk: HubChunk) -> bool:
        """Stores a chunk; True when the message is complete.

        Raises: MessageError.
        """
        self._check_kind(chunk)
        target, start = self._target, self._next * CHUNK_BYTES
        if target is None or chunk.serial != self.serial or chunk.index != self._next or chunk.count != self._count:
            raise MessageError(f"chunk {chunk.index} of message {chunk.serial} is not the next one")
        if chunk.index and chunk.header is not None:
            raise MessageError("a second header in one message")
        end = min(start + CHUNK_BYTES, self._num_bytes)
        if len(chunk.payload) != end - start:
            raise MessageError(f"a chunk of {len(chunk.payload)} bytes, not {end - start}")
        target[start:end] = chunk.payload
        self._next += 1
        if self._next == self._count:
            self._target = None
            return True
        return False

    def _check_kind(self, chunk: HubChunk) -> None:
        if chunk.kind is not self._kind:
            raise MessageError(f"{chunk.kind.name.lower()} in the wrong direction")
