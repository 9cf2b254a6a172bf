"""The sender's side of an edge: hello, then messages one at a time, until farewell. No input or output."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Protocol

from gala.errors import MessageError
from gala_worker.gossip import codec, framing
from gala_worker.gossip.mailbox import Mailbox, OwnMailbox
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
    Reason,
    Refusal,
    Welcome,
)
from gala_worker.gossip.ring import Backoff
from gala_worker.gossip.slots import Outbox
from gala_worker.gossip.standing import Standing
from gala_worker.gossip.stats import EdgeCounters, EdgeStats
from gala_worker.gossip.transport import Link


class SenderState(enum.Enum):
    """Where the conversation stands."""

    GREETING = "connecting"
    OPEN = "open"
    CLOSED = "closed"


class OutEdge:
    """What this peer knows of one rank that it pushes, or may have to push, to."""

    def __init__(self, rank: int, outbox: Outbox, backoff: Backoff) -> None:
        self.rank = rank
        self.outbox = outbox
        self.counters = EdgeCounters()
        self.backoff = backoff
        self.session: Sending | None = None
        self.dialled_at = 0.0
        self.gone = False
        """It does not answer; somebody else is pushed to instead."""
        self.was_open = False

    @property
    def is_open(self) -> bool:
        """Whether messages can be pushed."""
        return self.session is not None and self.session.state is SenderState.OPEN

    def stats(self) -> EdgeStats:
        """As of now; the caller holds the lock."""
        state = self.session.state.value if self.session else "closed"
        counters = self.counters
        return EdgeStats(
            self.rank, "out", state, counters.messages, counters.bytes, self.outbox.replaced, counters.refused
        )


class SenderHost(Protocol):
    """What the sender's side needs of its peer."""

    standing: Standing
    """Its lock guards the outbox."""

    def welcomed(self, session: Sending, welcome: Welcome, now: float) -> None:
        """The receiver takes our messages."""

    def refused(self, session: Sending, refusal: Refusal) -> None:
        """The receiver does not."""

    def makes_no_sense(self, session: Sending, problem: str) -> None:
        """What the receiver says is not acceptable."""

    def receiver_left(self, session: Sending, why: Leaving) -> None:
        """The receiver said farewell."""

    def sender_ended(self, session: Sending, now: float, why: str) -> None:
        """The stream is closed."""


class Sending:
    """A `Session`: this peer pushes to `rank`."""

    def __init__(
        self,
        host: SenderHost,
        link: Link,
        hello: Hello,
        outbox: Outbox,
        counters: EdgeCounters,
        mailbox: OwnMailbox | None = None,
    ) -> None:
        """`mailbox`: the memory that the hello names."""
        self.rank = hello.receiver
        self.link = link
        self.state = SenderState.GREETING
        self.heard_at: float | None = None
        self.began_at: float | None = None
        self._host = host
        self._standing = host.standing
        self._hello = hello
        self._outbox = outbox
        self._counters = counters
        self._heartbeat = host.standing.membership.heartbeat
        self._said_at = 0.0
        self._greeted = False
        self._chunks: Iterator[Chunk] | None = None
        self._shown = mailbox
        self._lends = False
        self._mailbox: Mailbox | None = None
        """Where loans are posted, if this receiver looks there."""
        self._is_to_tell = False
        """A heartbeat is due at once: it makes the receiver look. Guarded by the lock."""
        self._leaving: Leaving | None = None

    @property
    def finished(self) -> bool:
        """Nothing more will be said."""
        return self.state is SenderState.CLOSED

    @property
    def is_leaving(self) -> bool:
        """Whether this side has ended the conversation."""
        return self._leaving is not None

    def leave(self, why: Leaving) -> None:
        """Say farewell after the message that is being sent, and close."""
        if self._leaving is None:
            self._leaving = why
            if self.state is SenderState.GREETING:
                self.state = SenderState.CLOSED
                self.link.abort()
        self.link.wake()

    def offered(self, now: float) -> None:
        """The outbox has a new message. On the learner's thread."""
        with self._standing.lock:
            posted = self._post(now)
        if not posted:
            self.link.wake()

    def _post(self, now: float) -> bool:
        """Whether nothing is to be said on the stream."""
        mailbox = self._mailbox
        if mailbox is None or self.state is not SenderState.OPEN or self._leaving is not None:
            return False
        self._read_receipt()
        if self._outbox.in_flight:
            return True  # the receiver speaks when it is done
        loan = None if mailbox.message_is_awaited else self._begin(now)
        if loan is None:
            return False
        mailbox.post(loan.version, framing.encode(loan), now)
        # Once more: a receiver that began to wait in between may have looked before the loan was there.
        self._is_to_tell = mailbox.message_is_awaited
        return not self._is_to_tell

    def next_frame(self, now: float) -> Frame | None:
        """Hello; then chunks, heartbeats, farewell."""
        if not self._greeted:
            self._greeted, self.began_at = True, now
            return self._hello
        if self.state is not SenderState.OPEN:
            return None
        frame: Frame | None = self._next_piece(now)
        if frame is None and self._leaving is not None and self._may_go():
            self.state = SenderState.CLOSED
            frame = Farewell(self._leaving, self._standing.progress())
        if frame is None and (self._is_to_tell or now - self._said_at >= self._heartbeat):
            with self._standing.lock:  # or it might name a message that is about to be posted
                self._is_to_tell = False
                frame = Heartbeat(self._outbox.last_sent, self._standing.progress())
        if frame is not None:
            self._said_at = now
        return frame

    def _may_go(self) -> bool:
        # One who stays in the run wants to know what became of its last message; one who ends does not mind.
        return self._leaving is not Leaving.REKNIT or self._outbox.is_settled

    def _next_piece(self, now: float) -> Chunk | Loan | None:
        with self._standing.lock:
            chunk = self._next_chunk()
            if chunk is not None or self._leaving is not None:
                return chunk
            self._read_receipt()
            return self._begin(now) or self._next_chunk()

    def _next_chunk(self) -> Chunk | None:
        """Of the message that travels in chunks, if one does."""
        if self._chunks is None:
            return None
        chunk = next(self._chunks, None)
        if chunk is not None:
            self._counters.bytes += len(chunk.payload)
            return chunk
        self._chunks = None
        self._counters.messages += 1
        self._outbox.sent()
        return None

    def _begin(self, now: float) -> Loan | None:
        """The next message is on its way, if its turn has come: as this loan, or else in chunks."""
        snapshot = self._outbox.begin()
        if snapshot is None:
            return None
        self._standing.notify()  # what was waiting is on its way
        payload = codec.window(snapshot.buffer)
        age = max(0.0, now - snapshot.taken_at)
        header = Header(len(payload), snapshot.round, snapshot.weight, age, self._standing.progress())
        segment = snapshot.segment
        if segment is None or not self._lends:
            self._chunks = codec.split(payload, snapshot.version, header)
            return None
        self._outbox.lend()
        self._counters.bytes += len(payload)
        self._counters.messages += 1
        return Loan(snapshot.version, header, segment.descriptor, segment.serial)

    def _read_receipt(self) -> None:
        """What the receiver is done with; to be told, if another message waits for that."""
        mailbox, outbox = self._mailbox, self._outbox
        if mailbox is None or not outbox.in_flight:
            return
        mailbox.ack_is_awaited = outbox.is_waiting  # before the look: or it might be done in between
        if mailbox.done == outbox.last_sent:
            mailbox.ack_is_awaited = False
            outbox.acknowledge(outbox.last_sent)

    def receive(self, frame: Frame, now: float) -> None:
        """Welcome or refusal; then acknowledgements, heartbeats, farewell."""
        self.heard_at = now
        match frame:
            case Welcome() if self.state is SenderState.GREETING:
                if frame.run_uid != self._hello.run_uid or frame.rank != self.rank:
                    raise MessageError(f"rank {frame.rank} of run {frame.run_uid[:40]!r} answers for rank {self.rank}")
                self.state = SenderState.OPEN
                self._lends = frame.sees_memory and self._shown is not None
                self._mailbox = self._shown if self._lends and self._standing.uses_mailboxes else None
                self._said_at = now
                self._standing.merge_progress(frame.progress)
                self._host.welcomed(self, frame, now)
            case Refusal():
                self.state = SenderState.CLOSED
                self._host.refused(self, frame)
            case Ack() if self.state is SenderState.OPEN:
                self._done_with(frame.version, frame.refused)
                if frame.refused is not None:
                    self._counters.refused += 1
                    self._host.refused(self, Refusal(frame.refused))
            case Heartbeat() if self.state is SenderState.OPEN:
                self._standing.merge_progress(frame.progress)
                self._done_with(frame.version)
            case Farewell():
                self.state = SenderState.CLOSED
                self._standing.merge_progress(frame.progress)
                self._host.receiver_left(self, frame.why)
            case _ if self.state is SenderState.CLOSED:
                pass  # on its way when we said farewell
            case _:
                raise MessageError(f"a receiver said {type(frame).__name__} while {self.state.value}")
        self.link.wake()

    def _done_with(self, version: int, refused: Reason | None = None) -> None:
        if version > self._outbox.last_sent:
            raise MessageError(f"an acknowledgement of message {version}, which was not sent")
        with self._standing.lock:
            if refused is None:
                self._outbox.acknowledge(version)
            else:
                self._outbox.refuse(version)
        self._standing.notify()

    def reject(self, problem: str) -> None:
        """The receiver makes no sense: close and try again later."""
        self.state = SenderState.CLOSED
        self._host.makes_no_sense(self, problem)
        self.link.abort()

    def ended(self, now: float, why: str) -> None:
        """The stream is closed."""
        with self._standing.lock:
            self.state = SenderState.CLOSED
            self._chunks = None
            self._read_receipt()
            self._outbox.reset(now)
        self._host.sender_ended(self, now, why)
