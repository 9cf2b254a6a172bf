"""The actor's side of its stream: hello, then contributions up and parameters down, until farewell. No I/O."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from gala.errors import MessageError
from gala_worker.algorithms.hub.messages import (
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
from gala_worker.algorithms.hub.pieces import split
from gala_worker.gossip.codec import Reassembler, is_finite, window
from gala_worker.gossip.messages import Farewell, Leaving, Reason, Refusal
from gala_worker.gossip.transport import Link

if TYPE_CHECKING:
    from gala_worker.algorithms.hub.attendance import Attendance


class State(enum.Enum):
    """Where the conversation stands."""

    GREETING = "connecting"
    OPEN = "open"
    CLOSED = "closed"


class Attending:
    """A `Session`: this actor attends."""

    def __init__(self, host: Attendance, link: Link, hello: HubHello) -> None:
        self.link = link
        self.state = State.GREETING
        self.heard_at: float | None = None
        self.lineage = 0
        """Incarnation of the hub's process, once it has said welcome."""
        self._host = host
        self._hello = hello
        self._heartbeat = host.terms.heartbeat
        self._said_at = 0.0
        self._greeted = False
        self._leaving: Leaving | None = None
        self._left = False
        # Up.
        self._chunks: Iterator[HubChunk] | None = None
        self._sending = 0
        """Serial of the contribution that `_chunks` are of."""
        self._last_sent = 0
        # Down.
        self.outstanding = True
        """Parameters have been asked for and are not here yet. The first come unasked."""
        self._ask = False
        self._reassembler = Reassembler[HubHeader](host.terms.parameters_bytes)
        self._header: HubHeader | None = None
        self._arriving: Tensor | None = None

    @property
    def finished(self) -> bool:
        """Nothing more will be said."""
        return self.state is State.CLOSED

    @property
    def is_leaving(self) -> bool:
        """Whether this side has ended the conversation."""
        return self._leaving is not None

    def ask(self) -> None:
        """Ask for the newest parameters, unless an answer is under way. From either thread, under the host's lock."""
        if self.state is State.OPEN and not self.outstanding:
            self.outstanding = self._ask = True
            self.link.wake()

    def leave(self, why: Leaving) -> None:
        """Say farewell after the contribution that is being sent, and close."""
        if self._leaving is None:
            self._leaving = why
            if self.state is State.GREETING:
                self.state = State.CLOSED
                self.link.abort()
        self.link.wake()

    # ---------------------------------------------------------------- what to say

    def next_frame(self, now: float) -> HubFrame | None:
        """Hello; then wants, contributions, heartbeats, farewell."""
        if not self._greeted:
            self._greeted = True
            return self._hello
        if self.state is not State.OPEN:
            return None
        frame: HubFrame | None = None
        if self._ask:
            self._ask = False
            frame = Want(self._reassembler.number)
        frame = frame or self._next_chunk()
        if frame is None and self._leaving is not None:
            self.state = State.CLOSED
            frame = Farewell(self._leaving)
        if frame is None and now - self._said_at >= self._heartbeat:
            frame = HubHeartbeat()
        if frame is not None:
            self._said_at = now
        return frame

    def _next_chunk(self) -> HubChunk | None:
        if self._chunks is not None:
            chunk = next(self._chunks, None)
            if chunk is not None:
                self._host.bytes_out += len(chunk.payload)
                return chunk
            self._chunks = None
            self._last_sent = self._sending
            self._host.contributions += 1
        if self._leaving is not None:
            return None
        parcel = self._host.next_parcel(self._last_sent)
        if parcel is None:
            return None
        self._sending = parcel.serial
        header = HubHeader(len(parcel.buffer), parcel.version, parcel.steps)
        self._chunks = split(Kind.CONTRIBUTION, parcel.serial, memoryview(parcel.buffer), header)
        chunk = next(self._chunks)
        self._host.bytes_out += len(chunk.payload)
        return chunk

    # ---------------------------------------------------------------- what is heard

    def receive(self, frame: HubFrame, now: float) -> None:
        """Welcome or refusal; then parameters, credits, heartbeats, farewell."""
        self.heard_at = now
        match frame:
            case HubWelcome() if self.state is State.GREETING:
                if frame.run_uid != self._hello.run_uid:
                    raise MessageError(f"a hub of run {frame.run_uid[:40]!r} answers")
                self.state = State.OPEN
                self.lineage = frame.incarnation
                self._said_at = now
                self._last_sent = self._host.welcomed(self, frame)
            case Refusal():
                self.state = State.CLOSED
                self._host.refused(frame)
            case HubChunk(kind=Kind.PARAMETERS) if self.state is State.OPEN:
                self._take(frame)
            case Taken() if self.state is State.OPEN:
                if frame.serial > max(self._last_sent, self._sending):
                    raise MessageError(f"contribution {frame.serial} is said to be taken, and was not sent")
                self._host.taken(frame.serial, frame.refused)
            case HubHeartbeat() if self.state is State.OPEN:
                self._host.heard_progress(frame.progress)
            case Farewell():
                self.state = State.CLOSED
                self._left = True
                self._host.hub_left(frame.why, frame.progress)
            case _ if self.state is State.CLOSED:
                pass  # on its way when we said farewell
            case _:
                raise MessageError(f"the hub said {type(frame).__name__} while {self.state.value}")
        self.link.wake()

    def _take(self, chunk: HubChunk) -> None:
        if not self._reassembler.in_progress:
            self._header = self._reassembler.begin(chunk)
            self._arriving = self._host.acquire_buffer()
            self._reassembler.into(chunk.serial, window(self._arriving))
        complete = self._reassembler.add(chunk)
        self._host.bytes_in += len(chunk.payload)
        if not complete:
            return
        buffer, header = self._arriving, self._header
        assert buffer is not None
        assert header is not None
        if not is_finite(buffer):
            self._abandon()
            self._host.not_finite(header.version)
            self.outstanding = False  # worth another try when somebody asks
            return
        self._arriving = None
        self._host.arrived(self, buffer, header)

    def _abandon(self) -> None:
        if self._arriving is not None:
            self._host.give_back_buffer(self._arriving)
            self._arriving = None

    def reject(self, problem: str) -> None:
        """The hub makes no sense: close and try again later."""
        self.state = State.CLOSED
        self._host.refused(Refusal(Reason.MALFORMED, problem))
        self.link.abort()

    def ended(self, now: float, why: str) -> None:
        """The stream is closed."""
        self.state = State.CLOSED
        self._chunks = None
        self._abandon()
        self._host.ended(self, now, why)
