"""The receiver's side of an edge: admit or refuse, check every message, acknowledge. No input or output."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from gala.errors import GossipError, MessageError
from gala_worker.gossip import codec, framing
from gala_worker.gossip.codec import Reassembler
from gala_worker.gossip.mailbox import Mailbox
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
from gala_worker.gossip.shared_memory import Viewer
from gala_worker.gossip.slots import Inbox, Received
from gala_worker.gossip.standing import Standing
from gala_worker.gossip.stats import EdgeCounters, EdgeStats
from gala_worker.gossip.transport import Link

if TYPE_CHECKING:
    from torch import Tensor


class InEdge:
    """What this peer knows of one rank that pushes, or has pushed, to it."""

    def __init__(self, rank: int, inbox: Inbox) -> None:
        self.rank = rank
        self.inbox = inbox
        self.counters = EdgeCounters()
        self.session: Receiving | None = None
        """The live stream, if there is one."""
        self.incarnation = 0
        self.valid_at = 0.0
        """When its last acceptable message was complete, or its hello was."""
        self.gone_at: float | None = None
        """When it went away other than to another neighbour; None while it is here."""
        self.ended_at = 0.0
        """When its last stream ended."""
        self.accepted = 0
        """Push-sum: version of the last message of its present process that our learner took."""
        self.mixed_version = 0
        """Push-sum: our learner's version when it took it, or when the stream was opened."""

    def knows_younger(self, incarnation: int, now: float, memory_seconds: float) -> bool:
        """Whether a younger process of this rank pushes here, or did until not long ago.

        Not for ever: a process that restarts on a machine whose clock is behind must not be locked out for good.
        """
        if incarnation >= self.incarnation:
            return False
        return self.session is not None or now - self.ended_at < memory_seconds

    def stats(self) -> EdgeStats:
        """As of now; the caller holds the lock."""
        state, counters = "live" if self.session else "gone", self.counters
        return EdgeStats(
            self.rank, "in", state, counters.messages, counters.bytes, self.inbox.replaced, counters.refused
        )


class ReceiverHost(Protocol):
    """What the receiver's side needs of its peer."""

    standing: Standing
    """Its lock guards the inbox."""

    def admit(self, session: Receiving, hello: Hello, now: float) -> InEdge | Refusal:
        """May this one push to us?"""

    def welcome(self, edge: InEdge, *, sees_memory: bool) -> Welcome:
        """The answer to one that may."""

    def arrived(self, edge: InEdge, now: float) -> None:
        """A message is complete and acceptable."""

    def message_refused(self, edge: InEdge | None, reason: Reason, text: str) -> None:
        """Something was not acceptable."""

    def sender_left(self, edge: InEdge, why: Leaving) -> None:
        """The sender said farewell."""

    def receiver_ended(self, session: Receiving, now: float, why: str) -> None:
        """The stream is closed."""


class Receiving:
    """A `Session`: somebody pushes to this peer."""

    def __init__(self, host: ReceiverHost, link: Link, now: float) -> None:
        self.link = link
        self.edge: InEdge | None = None
        """None for a stranger, who has not said a proper hello."""
        self.began_at = self.heard_at = now
        self.finished = False
        self.rejected = False
        self._host = host
        self._standing = host.standing
        self._heartbeat = host.standing.membership.heartbeat
        self._said_at = now
        self._reassembler = Reassembler[Header](host.standing.membership.message_bytes)
        self._viewer: Viewer | None = None
        self._mailbox: Mailbox | None = None
        """Where the sender posts what it lends, and looks for acknowledgements."""
        self._looked_at = host.standing.version
        """The learner's version when it looked there: what it finds next has come since."""
        self._turn = threading.Lock()
        """What has arrived is dealt with by one thread at a time: the transport's, or the learner's in `look`."""
        self._header: Header | None = None
        self._arriving: Tensor | None = None
        self._arriving_since = 0.0
        self._done = 0
        self._acknowledged = 0
        self._taken = 0
        self._to_say: Welcome | Refusal | None = None
        self._refused: Ack | None = None
        self._leaving: Leaving | None = None

    def leave(self, why: Leaving) -> None:
        """Say farewell and close."""
        if self._leaving is None:
            self._leaving = why
        self.link.wake()

    def next_frame(self, now: float) -> Frame | None:
        """Welcome or refusal; then acknowledgements, heartbeats, farewell."""
        frame = self._next_frame(now)
        if frame is not None:
            self._said_at = now
        return frame

    def _next_frame(self, now: float) -> Frame | None:
        if self._to_say is not None:
            frame, self._to_say = self._to_say, None
            self.finished = isinstance(frame, Refusal)
            return frame
        if self.finished:
            return None
        unsaid = self._done > self._acknowledged
        if self._leaving is not None and not (unsaid and self._standing.push_sum):
            self.finished = True
            return Farewell(self._leaving, self._standing.progress()) if self.edge else None
        if self.edge is None:
            return None
        if self._refused is not None:
            refused, self._refused = self._refused, None
            self._acknowledged = refused.version
            return refused
        if self._done > self._acknowledged:
            self._acknowledged = self._done
            return Ack(self._done)
        if now - self._said_at >= self._heartbeat:
            version = self._taken if self._standing.push_sum else self._acknowledged
            return Heartbeat(version, self._standing.progress())
        return None

    def look(self, now: float) -> None:
        """Takes what the sender has posted. On the learner's thread, without the host's lock."""
        mailbox = self._mailbox
        if mailbox is None:
            return
        try:
            with self._turn:
                self._look(mailbox, now)
        except MessageError as error:
            self.reject(str(error))
        self._looked_at = self._standing.version

    def tell_whether_awaited(self) -> None:
        """Lets the sender know whether anybody waits for its messages. The caller holds the host's lock."""
        if self._mailbox is not None:
            self._mailbox.message_is_awaited = self._standing.listeners > 0

    def receive(self, frame: Frame, now: float) -> None:
        """Hello; then chunks, heartbeats, farewell."""
        with self._turn:
            self._receive(frame, now)

    def _receive(self, frame: Frame, now: float) -> None:
        self.heard_at = now
        if self.finished or isinstance(self._to_say, Refusal):
            return
        edge = self.edge
        if edge is None:
            if not isinstance(frame, Hello):
                raise MessageError(f"a stranger said {type(frame).__name__} instead of hello")
            self._greet(frame, now)
            return
        match frame:
            case Chunk():
                self._take(edge, frame, now)
            case Loan():
                self._borrow(edge, frame, now, self._standing.version, now)
            case Heartbeat():
                if self._mailbox is not None:
                    self._look(self._mailbox, now)
                if self._reassembler.in_progress or frame.version > self._reassembler.number:
                    raise MessageError(f"message {frame.version} or a part of it was lost on the way")
                self._standing.merge_progress(frame.progress)
            case Farewell():
                self.finished = True
                self._standing.merge_progress(frame.progress)
                self._host.sender_left(edge, frame.why)
            case _:
                raise MessageError(f"a sender said {type(frame).__name__}")

    def supersede(self) -> None:
        """Its sender has opened a newer stream: this one is of no use any more."""
        self._abandon()
        self.finished = True
        self.link.abort()

    def _greet(self, hello: Hello, now: float) -> None:
        verdict = self._host.admit(self, hello, now)
        if isinstance(verdict, Refusal):
            self.rejected = True
            self._to_say = verdict
        else:
            self.edge = verdict
            found = self._standing.buffers.look_into(hello)
            if found is not None:
                mailbox, self._viewer = found
                with self._standing.lock:  # somebody may wait already, or begin to while the stream opens
                    self._mailbox = mailbox if self._standing.uses_mailboxes else None
                    self.tell_whether_awaited()
            self._to_say = self._host.welcome(verdict, sees_memory=found is not None)
        self.link.wake()

    def _take(self, edge: InEdge, chunk: Chunk, now: float) -> None:
        if not self._reassembler.in_progress:
            self._expect(chunk.version)
            self._header = self._reassembler.begin(chunk)
            self._check(edge, chunk.version, self._header)
            self._arriving_since = now
            with self._standing.lock:
                try:
                    self._arriving = edge.inbox.begin()
                except GossipError as error:
                    raise MessageError(str(error)) from error
            self._reassembler.into(chunk.version, codec.window(self._arriving))
        complete = self._reassembler.add(chunk)
        edge.counters.bytes += len(chunk.payload)
        if not complete:
            return
        assert self._arriving is not None
        assert self._header is not None
        since = self._standing.version
        if self._deliver(edge, chunk.version, self._header, self._arriving, now, since, lent=False):
            self._arriving = None
        else:
            self._abandon()

    def _look(self, mailbox: Mailbox, now: float) -> None:
        if self.edge is None or self.finished or self.rejected or mailbox.posted <= self._reassembler.number:
            return
        frame = framing.decode(mailbox.read())
        if not isinstance(frame, Loan):
            raise MessageError(f"a sender posted {type(frame).__name__}")
        self._borrow(self.edge, frame, now, self._looked_at, min(now, mailbox.posted_at))

    def _borrow(self, edge: InEdge, loan: Loan, now: float, since: int, began_at: float) -> None:
        if self._viewer is None:
            raise MessageError("a loan of memory that cannot be seen from here")
        self._expect(loan.version)
        self._reassembler.skip(loan.version, loan.header.num_bytes)
        self._check(edge, loan.version, loan.header)
        try:
            buffer = codec.view(self._viewer, loan, self._standing.membership.precision)
        except GossipError as error:
            raise MessageError(str(error)) from error
        edge.counters.bytes += loan.header.num_bytes
        self._arriving_since = began_at
        self._deliver(edge, loan.version, loan.header, buffer, now, since, lent=True)

    def _expect(self, version: int) -> None:
        if self._reassembler.number > self._done:
            raise MessageError(f"message {version} before message {self._reassembler.number} was acknowledged")

    def _check(self, edge: InEdge, version: int, header: Header) -> None:
        if self._standing.push_sum and version <= edge.accepted:
            raise MessageError(f"message {version} after message {edge.accepted} on another stream")
        if not self._standing.takes_weight(header.weight):
            raise MessageError(f"message {version} with a weight of {header.weight:g}")

    def _deliver(
        self, edge: InEdge, version: int, header: Header, buffer: Tensor, now: float, since: int, *, lent: bool
    ) -> bool:
        """Hands a complete message to the learner; False if it is not acceptable."""
        self._standing.merge_progress(header.progress)
        if not codec.is_finite(buffer):
            edge.counters.refused += 1
            self._refused = Ack(version, Reason.NOT_FINITE)  # first: or the other thread might acknowledge it
            self._done = version
            self._host.message_refused(edge, Reason.NOT_FINITE, f"message {version} is not finite")
            self.link.wake()
            return False
        edge.counters.messages += 1
        received = Received(
            buffer,
            edge.incarnation,
            version,
            header.round,
            header.weight,
            max(0.0, header.age_seconds),
            self._arriving_since,
            since,
            self._message_done,
            lent,
        )
        with self._standing.lock:
            if edge.session is not self:
                return False  # the stream has just ended
            edge.inbox.deliver(received)
        self._host.arrived(edge, now)
        return True

    def _message_done(self, version: int) -> None:
        """The sender may go on: see `Received.done`. From either thread, under the host's lock."""
        self._done = self._taken = version
        if self._mailbox is not None:
            self._mailbox.done = version
            if not self._mailbox.ack_is_awaited:
                self._acknowledged = version  # aloud only with a heartbeat
                return
        self.link.wake()

    def _abandon(self) -> None:
        if self._arriving is not None and self.edge is not None:
            with self._standing.lock:
                self.edge.inbox.abandon(self._arriving)
        self._arriving = None

    def reject(self, problem: str) -> None:
        """The sender makes no sense: tell it so, and close."""
        if self.finished or self.rejected:
            return
        self.rejected = True
        if self.edge is not None:
            self.edge.counters.refused += 1
        self._host.message_refused(self.edge, Reason.MALFORMED, problem)
        self._to_say = Refusal(Reason.MALFORMED, problem)
        self.link.wake()

    def ended(self, now: float, why: str) -> None:
        """The stream is closed."""
        self.finished = True
        self._abandon()
        self._host.receiver_ended(self, now, why)
