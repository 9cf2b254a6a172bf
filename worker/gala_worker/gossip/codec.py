"""Parameters to payload bytes and back: number format, chunks, and the checks before anything may be mixed.

Shapes: N elements of the flat vector.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from gala.errors import MessageError
from gala_worker.gossip.messages import CHUNK_BYTES, Chunk, Header, Loan, Precision
from gala_worker.gossip.shared_memory import Segment, Viewer

if sys.byteorder != "little":
    raise ImportError("the wire is little-endian and copied as it lies in memory; this machine is big-endian")

_TYPES = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}


def new_buffer(num_elements: int, precision: Precision, *, pinned: bool = False) -> Tensor:
    """An uninitialised vector [N] of the wire's number format; pinned for fast copies from a GPU."""
    return torch.empty(num_elements, dtype=_TYPES[precision], pin_memory=pinned)


def new_segment(num_elements: int, precision: Precision) -> tuple[Tensor, Segment]:
    """As `new_buffer`, in memory that neighbours on this machine may read. Raises: OSError when there is none."""
    segment = Segment(num_elements * precision.itemsize)
    return segment.tensor(_TYPES[precision]), segment


def view(viewer: Viewer, loan: Loan, precision: Precision) -> Tensor:
    """The vector [N] that a neighbour has lent; to be read only. Raises: GossipError when it cannot be seen."""
    return viewer.view(loan.descriptor, loan.serial, loan.header.num_bytes, _TYPES[precision])


def window(buffer: Tensor) -> memoryview:
    """The bytes of a CPU vector as they go over the wire, without a copy; writable."""
    octets: Any = buffer.view(torch.uint8).numpy()
    return memoryview(octets)


def is_finite(buffer: Tensor) -> bool:
    """Whether no element is NaN or infinite. One pass over [N] without a temporary, in the usual case."""
    # A NaN or an infinity anywhere makes the sum one; only a sum that overflows needs the exact look.
    # In the buffer's own type: to sum bfloat16 as float32 would first convert all of it.
    total = torch.sum(buffer)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(buffer).all())


def num_chunks(num_bytes: int) -> int:
    """How many chunks a message of so many bytes takes; an empty one takes one."""
    return max(1, -(-num_bytes // CHUNK_BYTES))


def split(payload: memoryview, version: int, header: Header) -> Iterator[Chunk]:
    """The chunks of a message, in order, as windows into `payload`."""
    count = num_chunks(len(payload))
    for index in range(count):
        piece = payload[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        yield Chunk(version, index, count, piece, header if index == 0 else None)


class Sized(Protocol):
    """What the first piece of a message says of the whole."""

    @property
    def num_bytes(self) -> int:
        """Of all pieces together."""


H = TypeVar("H", bound=Sized)
H_co = TypeVar("H_co", bound=Sized, covariant=True)


class Piece(Protocol[H_co]):
    """One of `count` consecutive parts of a message; those of one message have its number."""

    @property
    def number(self) -> int:
        """Of the message: it grows from one to the next."""

    @property
    def index(self) -> int:
        """From 0."""

    @property
    def count(self) -> int:
        """Pieces of the message."""

    @property
    def payload(self) -> bytes | memoryview:
        """At most 1 MiB."""

    @property
    def header(self) -> H_co | None:
        """With index 0 only."""


class Reassembler(Generic[H]):
    """Puts the chunks of one message after another into a buffer; refuses everything out of order or size.

    After a MessageError the stream cannot be trusted any more: the caller closes it.
    """

    def __init__(self, num_bytes: int, after: int = 0) -> None:
        """`num_bytes`: the only size that a message may have. `after`: messages have larger numbers than this."""
        self._num_bytes = num_bytes
        self._count = num_chunks(num_bytes)
        self._target: memoryview | None = None
        self._next = 0
        self.number = after
        """Of the message in progress, or of the last one."""

    @property
    def in_progress(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._target is not None

    def begin(self, chunk: Piece[H]) -> H:
        """Checks what a message's first chunk says of the whole, before any memory is taken for it.

        To be followed by `into` and `add`. Raises: MessageError.
        """
        if self._target is not None:
            raise MessageError(f"message {chunk.number} begins inside message {self.number}")
        if chunk.index != 0 or chunk.header is None:
            raise MessageError(f"message {chunk.number} begins with its chunk {chunk.index}")
        if chunk.header.num_bytes != self._num_bytes or chunk.count != self._count:
            size = f"{chunk.header.num_bytes} bytes in {chunk.count} chunks"
            raise MessageError(f"a message of {size}, not {self._num_bytes} in {self._count}")
        if chunk.number <= self.number:
            raise MessageError(f"message {chunk.number} after message {self.number}")
        return chunk.header

    def skip(self, number: int, num_bytes: int) -> None:
        """A message has come another way, as a whole. Raises: MessageError if it could not have come this way."""
        if self._target is not None or number <= self.number:
            raise MessageError(f"message {number} after message {self.number}, or inside it")
        if num_bytes != self._num_bytes:
            raise MessageError(f"a message of {num_bytes} bytes, not {self._num_bytes}")
        self.number = number

    def into(self, number: int, target: memoryview) -> None:
        """The buffer for the message that has begun."""
        self.number, self._target, self._next = number, target, 0

    def add(self, chunk: Piece[H]) -> bool:
        """Stores a chunk; True when the message is complete.

        Raises: MessageError.
        """
        target, start = self._target, self._next * CHUNK_BYTES
        if target is None or chunk.number != self.number or chunk.index != self._next or chunk.count != self._count:
            raise MessageError(f"chunk {chunk.index} of message {chunk.number} is not the next one")
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
