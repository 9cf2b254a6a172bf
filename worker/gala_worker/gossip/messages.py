"""What neighbours say to each other, as plain values.

The protocol's rules (`membership`, `sending`, `receiving`) know these; protobuf stays behind `framing`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

CHUNK_BYTES: Final = 1 << 20
"""The most payload that one frame carries."""
MAX_FRAME_BYTES: Final = CHUNK_BYTES + (64 << 10)
"""The most that a frame may take on the wire: a payload, and a progress map of the largest run."""

Progress = Mapping[int, int]
"""rank -> agent decisions done; never shrinks, merged by maximum."""


class Reason(enum.IntEnum):
    """Why a peer refuses; numbers are those of gossip.proto, texts are what it says."""

    WRONG_RUN = 1
    WRONG_SCHEMA = 2
    WRONG_PRECISION = 3
    WRONG_RECEIVER = 4
    STALE_EPOCH = 5
    STALE_INCARNATION = 6
    NOT_MY_PEER = 7
    MALFORMED = 8
    NOT_FINITE = 9
    TOO_BUSY = 10
    NOTHING_YET = 11
    RESUMING = 12

    @property
    def text(self) -> str:
        """The refusal in the words of the one who refuses."""
        return _TEXTS[self]


_TEXTS: Final = {
    Reason.WRONG_RUN: "you belong to another run",
    Reason.WRONG_SCHEMA: "your parameters have other names, shapes or types than mine",
    Reason.WRONG_PRECISION: "our run exchanges numbers of another width",
    Reason.WRONG_RECEIVER: "you are looking for somebody else",
    Reason.STALE_EPOCH: "I know a newer plan than you do",
    Reason.STALE_INCARNATION: "I already know a younger process of your rank",
    Reason.NOT_MY_PEER: "my plan does not have you",
    Reason.MALFORMED: "I cannot make sense of what you say",
    Reason.NOT_FINITE: "there is a NaN or an infinity in your message",
    Reason.TOO_BUSY: "too many strangers stand at my door",
    Reason.NOTHING_YET: "I have only just started myself",
    Reason.RESUMING: "I am about to go on from a checkpoint",
}


class Precision(enum.IntEnum):
    """Number format of the payload, both little-endian."""

    FLOAT32 = 1
    BFLOAT16 = 2

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return 4 if self is Precision.FLOAT32 else 2


class Leaving(enum.IntEnum):
    """Why a peer says farewell on an edge."""

    FINISHED = 1
    STOPPED = 2
    REKNIT = 3


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """Where another process of the machine finds memory of the sender, and what it finds there."""

    process: int
    descriptor: int
    token: bytes


@dataclass(frozen=True, slots=True)
class Hello:
    """Sender to receiver, first of all."""

    run_uid: str
    rank: int
    receiver: int
    incarnation: int
    epoch: int
    schema_hash: str
    num_elements: int
    precision: int
    """A `Precision`, or whatever a stranger claims."""
    memory: SharedMemory | None = None
    """Given where the receiver may run on the same machine."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """Receiver to sender, in answer to an acceptable hello."""

    run_uid: str
    rank: int
    incarnation: int
    epoch: int
    progress: Progress = field(default_factory=dict)
    accepted: int = 0
    """Push-sum: version of the last message of the sender's process that the receiver's learner took; 0 = none."""
    sees_memory: bool = False
    """The receiver has found the sender's token: messages come as loans."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Receiver to sender; the stream ends with it."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Header:
    """What the first chunk says about the whole message."""

    num_bytes: int
    round: int
    weight: float
    """Push-sum: what the sender gives away with the message; else 1.0."""
    age_seconds: float
    """How long the message waited at the sender."""
    progress: Progress = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Sender to receiver: piece `index` of `count` of the message `version`. The header comes with index 0."""

    version: int
    index: int
    count: int
    payload: bytes | memoryview
    """May be a window into a buffer that is reused: valid until the next frame is asked for."""
    header: Header | None = None

    @property
    def number(self) -> int:
        """What a message is told apart by."""
        return self.version


@dataclass(frozen=True, slots=True)
class Loan:
    """Sender to receiver, in place of chunks: the message lies in the sender's memory until it is acknowledged."""

    version: int
    header: Header
    descriptor: int
    serial: int
    """Of the memory; never used again, as a descriptor's number is."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Either way. `version`: the last message sent (sender), or done with (receiver)."""

    version: int
    progress: Progress = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ack:
    """Receiver to sender: done with this message, the next may come."""

    version: int
    refused: Reason | None = None


@dataclass(frozen=True, slots=True)
class Farewell:
    """Either way, last of all: do not wait for me."""

    why: Leaving
    progress: Progress = field(default_factory=dict)


Frame = Hello | Welcome | Refusal | Chunk | Loan | Heartbeat | Ack | Farewell


@dataclass(frozen=True, slots=True)
class StateRequest:
    """Joiner to a neighbour: may I begin where you are?"""

    run_uid: str
    rank: int
    schema_hash: str
    incarnation: int
