"""The hub's side of one stream: admit or refuse an actor, take its contributions, send it parameters. No I/O."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gala.errors import MessageError
from gala_worker.algorithms.hub.contributions import Contribution
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
from gala_worker.algorithms.hub.parameters import Edition
from gala_worker.algorithms.hub.pieces import split
from gala_worker.algorithms.hub.stats import ActorCounters
from gala_worker.gossip.codec import Reassembler, window
from gala_worker.gossip.messages import Farewell, Leaving, Reason, Refusal
from gala_worker.gossip.transport import Link

if TYPE_CHECKING:
    from gala_worker.algorithms.hub.reception import Reception


class Actor:
    """What the hub knows of one rank that attends, or has attended."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.counters = ActorCounters()
        self.session: Serving | None = None
        """The live stream, if there is one."""
        self.incarnation = 0
        self.received = 0
        """Serial of the last complete contribution of this incarnation."""
        self.gone = False
        """It has broken off without a farewell."""
        self.ended_at = 0.0

    def knows_younger(self, incarnation: int, now: float, memory_seconds: float) -> bool:
        """Whether a younger process of this rank attends, or did until not long ago.

        Not for ever: a process that restarts on a machine whose clock is behind must not be locked out for good.
        """
        if incarnation >= self.incarnation:
            return False
        return self.session is not None or now - self.ended_at < memory_seconds


class Serving:
    """A `Session`: somebody attends."""

    def __init__(self, host: Reception, link: Link, now: float) -> None:
        self.link = link
        self.actor: Actor | None = None
        """None for a stranger, who has not said a proper hello."""
        self.began_at = self.heard_at = now
        self.finished = False
        self.rejected = False
        self.said_farewell = False
        """The actor has."""
        self._host = host
        self._said_at = now
        self._to_say: HubWelcome | Refusal | None = None
        self._leaving: Leaving | None = None
        # Up.
        self._reassembler = Reassembler[HubHeader](host.terms.contribution_bytes)
        self._header: HubHeader | None = None
        self._arriving: bytearray | None = None
        self._taken: deque[Taken] = deque()
        # Down.
        self.wants = True
        self._edition: Edition | None = None
        self._chunks: Iterator[HubChunk] | None = None
        self._last_serial = 0

    def taken(self, serial: int, refused: Reason | None = None) -> None:
        """Tell the actor that it may send another contribution for this one. From either thread."""
        self._taken.append(Taken(serial, refused))
        self.link.wake()

    def leave(self, why: Leaving) -> None:
        """Say farewell after what is being sent, and close."""
        if self._leaving is None:
            self._leaving = why
        self.link.wake()

    def supersede(self) -> None:
        """Its actor has opened a newer stream: this one is of no use any more."""
        self._abandon()
        self.finished = True
        self.link.abort()

    # ---------------------------------------------------------------- what to say

    def next_frame(self, now: float) -> HubFrame | None:
        """Welcome or refusal; then credits, parameters, heartbeats, farewell."""
        frame = self._next_frame(now)
        if frame is not None:
            self._said_at = now
        return frame

    def _next_frame(self, now: float) -> HubFrame | None:
        if self._to_say is not None:
            frame, self._to_say = self._to_say, None
            self.finished = isinstance(frame, Refusal)
            return frame
        if self.finished or self.actor is None:
            self.finished = self.finished or self._leaving is not None
            return None
        if self._taken:
            return self._taken.popleft()
        chunk = self._next_chunk(self.actor)
        if chunk is not None:
            return chunk
        if self._leaving is not None:
            self.finished = True
            return Farewell(self._leaving, self._host.progress())
        if now - self._said_at >= self._host.terms.heartbeat:
            return HubHeartbeat(self._host.progress())
        return None

    def _next_chunk(self, actor: Actor) -> HubChunk | None:
        if self._chunks is not None:
            chunk = next(self._chunks, None)
            if chunk is not None:
                actor.counters.bytes_out += len(chunk.payload)
                return chunk
            actor.counters.parameters += 1
            self._put_down()
        edition = self._host.edition_after(self._last_serial, asked=self.wants)
        if edition is None:
            return None
        self.wants = False
        self._edition, self._last_serial = edition, edition.serial
        payload = window(edition.buffer)
        header = HubHeader(len(payload), edition.version, progress=dict(edition.progress), finished=edition.finished)
        self._chunks = split(Kind.PARAMETERS, edition.serial, payload, header)
        chunk = next(self._chunks)
        actor.counters.bytes_out += len(chunk.payload)
        return chunk

    def _put_down(self) -> None:
        self._chunks = None
        if self._edition is not None:
            self._host.release_edition(self._edition)
            self._edition = None

    # ---------------------------------------------------------------- what is heard

    def receive(self, frame: HubFrame, now: float) -> None:
        """Hello; then contributions, wants, heartbeats, farewell."""
        self.heard_at = now
        if self.finished or isinstance(self._to_say, Refusal):
            return
        actor = self.actor
        if actor is None:
            if not isinstance(frame, HubHello):
                raise MessageError(f"a stranger said {type(frame).__name__} instead of hello")
            self._greet(frame, now)
            return
        match frame:
            case HubChunk(kind=Kind.CONTRIBUTION):
                self._take(actor, frame)
            case Want():
                if frame.serial > self._last_serial:
                    raise MessageError(f"parameters {frame.serial} are not known here")
                self.wants = True
                self.link.wake()
            case HubHeartbeat():
                pass
            case Farewell():
                self.finished = self.said_farewell = True
                self._host.actor_left(actor, frame.why)
                self.link.wake()
            case _:
                raise MessageError(f"an actor said {type(frame).__name__}")

    def _greet(self, hello: HubHello, now: float) -> None:
        verdict = self._host.admit(self, hello, now)
        if isinstance(verdict, Refusal):
            self.rejected = True
        else:
            self._reassembler = Reassembler[HubHeader](self._host.terms.contribution_bytes, verdict.received)
        self._to_say = verdict
        self.link.wake()

    def _take(self, actor: Actor, chunk: HubChunk) -> None:
        if not self._reassembler.in_progress:
            self._header = self._reassembler.begin(chunk)
            if self._host.num_held(actor) >= MAX_UNPROCESSED:
                raise MessageError(f"contribution {chunk.serial} without credit")
            self._arriving = self._host.acquire_buffer()
            self._reassembler.into(chunk.serial, memoryview(self._arriving))
        complete = self._reassembler.add(chunk)
        actor.counters.bytes_in += len(chunk.payload)
        if not complete:
            return
        buffer, header = self._arriving, self._header
        assert buffer is not None
        assert header is not None
        refusal = self._host.inspect(memoryview(buffer))
        if refusal is not None:
            self._abandon()
            actor.counters.refused += 1
            actor.received = chunk.serial
            why = f": {refusal.detail}" if refusal.detail else ""
            self._host.complain(refusal.reason, actor.rank, f"contribution {chunk.serial}{why}")
            self.taken(chunk.serial, refusal.reason)
            return
        self._arriving = None
        self._host.arrived(
            actor,
            Contribution(
                rank=actor.rank,
                incarnation=actor.incarnation,
                serial=chunk.serial,
                version=header.version,
                steps=header.steps,
                payload=memoryview(buffer),
                received_at=time.monotonic(),
                give_back=self._host.give_back_buffer,
                buffer=buffer,
            ),
        )

    def _abandon(self) -> None:
        if self._arriving is not None:
            self._host.give_back_buffer(self._arriving)
            self._arriving = None

    def reject(self, problem: str) -> None:
        """The actor makes no sense: tell it so, and close."""
        if self.finished or self.rejected:
            return
        self.rejected = True
        if self.actor is not None:
            self.actor.counters.refused += 1
        self._put_down()
        self._host.complain(Reason.MALFORMED, None if self.actor is None else self.actor.rank, problem)
        self._to_say = Refusal(Reason.MALFORMED, problem)
        self.link.wake()

    def ended(self, now: float, why: str) -> None:
        """The stream is closed."""
        self.finished = True
        self._abandon()
        self._put_down()
        self._host.ended(self, now, why)
