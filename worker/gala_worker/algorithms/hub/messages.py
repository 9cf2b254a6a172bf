"""What actors and the hub say to each other, as plain values; protobuf stays behind `framing`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

from gala_worker.gossip.messages import Farewell, Progress, Reason, Refusal

MAX_UNPROCESSED: Final = 2
"""Contributions of one actor that are on their way or wait at the hub: the credit of an actor."""


class Kind(enum.IntEnum):
    """What a chunk is a piece of; the numbers are those of the fields in hub.proto."""

    CONTRIBUTION = 1
    PARAMETERS = 2


@dataclass(frozen=True, slots=True)
class HubHello:
    """Actor to hub, first of all."""

    run_uid: str
    rank: int
    incarnation: int
    epoch: int
    schema_hash: str
    num_elements: int
    precision: int
    """A `Precision`, or whatever a stranger claims."""
    contribution_bytes: int


@dataclass(frozen=True, slots=True)
class HubWelcome:
    """Hub to actor, in answer to an acceptable hello."""

    run_uid: str
    incarnation: int
    epoch: int
    received: int = 0
    """Serial of the last contribution that is here as a whole, from this process of the actor."""
    held: tuple[int, ...] = ()
    """Those among them that are still to be taken."""


@dataclass(frozen=True, slots=True)
class HubHeader:
    """What the first chunk says about the whole."""

    num_bytes: int
    version: int
    """Of a contribution: of the parameters it was made with. Of parameters: their own."""
    steps: int = 0
    """Agent decisions in a contribution."""
    progress: Progress = field(default_factory=dict)
    """With parameters: decisions of each rank that have been learned from."""
    finished: bool = False
    """With parameters: these are the last."""


@dataclass(frozen=True, slots=True)
class HubChunk:
    """Piece `index` of `count` of message `serial` of its kind. The header comes with index 0."""

    kind: Kind
    serial: int
    index: int
    count: int
    payload: bytes | memoryview
    """May be a window into a buffer that is reused: valid until the next frame is asked for."""
    header: HubHeader | None = None

    @property
    def number(self) -> int:
        """What a message is told apart by."""
        return self.serial


@dataclass(frozen=True, slots=True)
class Want:
    """Actor to hub: the newest parameters after this serial, as soon as there are any."""

    serial: int


@dataclass(frozen=True, slots=True)
class Taken:
    """Hub to actor: this contribution has been taken, or it was not acceptable; another one may come for it."""

    serial: int
    refused: Reason | None = None


@dataclass(frozen=True, slots=True)
class HubHeartbeat:
    """Either way: still here."""

    progress: Progress = field(default_factory=dict)


HubFrame = HubHello | HubWelcome | Refusal | HubChunk | Want | Taken | HubHeartbeat | Farewell
