"""Latest-wins slots between the learner thread and the loop thread, with reusable buffers.

Nothing here locks: the owner holds its lock around every call, and never during a copy of parameters or a network
operation. Memory per edge is bounded: at most one message streaming and one waiting at the sender, one ready (or being
mixed) and one arriving at the receiver.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from gala.errors import GossipError
from gala_worker.gossip.shared_memory import Segment

BUFFERS_PER_IN_EDGE: Final = 2


@dataclass(slots=True, eq=False)
class Snapshot:
    """The parameters at one version, shared by the edges that they are to travel on."""

    buffer: Tensor
    segment: Segment | None = None
    """What the buffer is a view of, if neighbours may read it themselves."""
    version: int = 0
    round: int = 0
    taken_at: float = 0.0
    weight: float = 1.0
    """Push-sum: what each of the edges carries; else 1.0."""
    holders: int = 0
    spoiled: bool = False
    """Lent on a stream that broke: its receiver may still be reading it."""


class SnapshotPool:
    """Buffers for snapshots, used again and again."""

    def __init__(self, make: Callable[[], Snapshot]) -> None:
        self._make = make
        self._free: list[Snapshot] = []
        self.allocated = 0
        """Buffers in existence; at most two per out-edge and one being filled."""

    def acquire(self) -> Snapshot:
        """A snapshot with one holder, to be filled."""
        if self._free:
            snapshot = self._free.pop()
        else:
            snapshot = self._make()
            self.allocated += 1
        snapshot.holders = 1
        return snapshot

    def release(self, snapshot: Snapshot) -> None:
        """One holder less; the last one gives the buffer back, unless it must not be written to again."""
        snapshot.holders -= 1
        if snapshot.holders > 0:
            return
        if snapshot.spoiled:
            self.allocated -= 1
        else:
            self._free.append(snapshot)

    def trim(self, edges: int) -> None:
        """Frees buffers beyond what so many out-edges can use."""
        while self._free and self.allocated > 2 * edges + 1:
            self._free.pop()
            self.allocated -= 1


class Outbox:
    """What one out-edge has to send: at most one message in flight and one waiting."""

    def __init__(self, pool: SnapshotPool) -> None:
        self._pool = pool
        self._waiting: Snapshot | None = None
        self._streaming: Snapshot | None = None
        self.last_sent = 0
        """Version of the newest message that began to travel on the present stream."""
        self._unacknowledged = False
        self._lent = False
        self.replaced = 0
        self.excused = False
        """The receiver let this learner wait for the full time: not waited for until its next acknowledgement."""

    @property
    def is_waiting(self) -> bool:
        """Whether a message waits for the one before it."""
        return self._waiting is not None

    @property
    def in_flight(self) -> bool:
        """Whether a message is on its way, or has arrived and is not taken."""
        return self._unacknowledged

    def put(self, snapshot: Snapshot) -> None:
        """The newest parameters; what was waiting is replaced."""
        snapshot.holders += 1
        if self._waiting is not None:
            self._pool.release(self._waiting)
            self.replaced += 1
        self._waiting = snapshot

    def begin(self) -> Snapshot | None:
        """The message to send now, if there is one and the one before is acknowledged."""
        if self._waiting is None or self._unacknowledged or self._streaming is not None:
            return None
        if self._waiting.version <= self.last_sent:  # the learner went back to an older state: this stream cannot
            self._pool.release(self._waiting)
            self._waiting = None
            return None
        self._streaming, self._waiting = self._waiting, None
        self._unacknowledged = True
        self.last_sent = self._streaming.version
        return self._streaming

    def lend(self) -> None:
        """The receiver reads the message that `begin` gave where it lies: the buffer is free when it says so."""
        self._lent = True

    def sent(self) -> None:
        """All chunks have been written, or the loan is over: the buffer is free again."""
        self._lent = False
        if self._streaming is not None:
            self._pool.release(self._streaming)
            self._streaming = None

    def acknowledge(self, version: int) -> None:
        """The receiver is done with everything up to `version`."""
        if version >= self.last_sent:
            self._unacknowledged = False
            self.excused = False
            if self._lent:
                self.sent()

    @property
    def is_settled(self) -> bool:
        """Whether the stream may end without leaving a question open."""
        return True

    def refuse(self, version: int) -> None:
        """The receiver does not take this message."""
        self.acknowledge(version)

    def settle(self, accepted: int, receiver: int) -> None:
        """Called for every new stream, with what the receiver says it took.

        Without push-sum there is nothing to settle, and nothing to do in `withdraw` and `give_up`.
        """

    def withdraw(self) -> None:
        """The receiver has left."""

    def give_up(self, before: float) -> None:
        """The receiver is gone if the stream broke before this moment."""

    def reset(self, now: float) -> None:
        """The stream is gone: nothing is in flight any more, nothing waits."""
        if self._lent and self._streaming is not None:
            self._streaming.spoiled = True
        self.sent()
        if self._waiting is not None:
            self._pool.release(self._waiting)
            self._waiting = None
        self._unacknowledged = self.excused = False
        self.last_sent = 0


@dataclass(slots=True, eq=False)
class Received:
    """A complete, checked message, ready to be mixed."""

    buffer: Tensor
    incarnation: int
    """Of its sender."""
    version: int
    round: int
    weight: float
    age_seconds: float
    """How old it was when it began to arrive."""
    began_at: float
    """Receiver's clock."""
    updates_then: int
    """The receiver's own version when it was complete."""
    done: Callable[[int], None]
    """To be called with `version` when it has been taken or replaced; of a loan, when it has been read or replaced."""
    lent: bool = False
    """The buffer is the sender's, who does not write to it before `done`."""


@dataclass(slots=True, eq=False)
class Inbox:
    """What one in-edge has delivered: the newest message, and the buffers for it and for the next one."""

    make: Callable[[], Tensor]
    exact: bool = False
    """Push-sum: a message that is not taken is not acknowledged, so that its sender takes it back."""
    allocated: int = 0
    replaced: int = 0
    _free: list[Tensor] = field(default_factory=list)
    _ready: Received | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether there is a message that has not been mixed."""
        return self._ready is not None

    @property
    def round(self) -> int | None:
        """Of the message that has not been mixed, if there is one."""
        return None if self._ready is None else self._ready.round

    def begin(self) -> Tensor:
        """A buffer for an arriving message.

        Raises: GossipError when both are in use, which a sender that waits for acknowledgements cannot bring about.
        """
        if self._free:
            return self._free.pop()
        if self.allocated < BUFFERS_PER_IN_EDGE:
            self.allocated += 1
            return self.make()
        if self._ready is not None and not self._ready.lent:
            buffer = self._ready.buffer  # left over from an earlier stream, and the learner is mixing the other one
            self._replace(self._ready)
            return buffer
        raise GossipError("both buffers of an edge are in use")

    def deliver(self, received: Received) -> None:
        """A message is complete; one that waits is replaced."""
        self._drop()
        self._ready = received

    def take(self) -> Received | None:
        """The message, to be mixed; its sender may send the next one, unless it has lent this one. `give_back` it."""
        received, self._ready = self._ready, None
        if received is not None and not received.lent:
            received.done(received.version)
        return received

    def give_back(self, received: Received) -> None:
        """A message from `take` has been read."""
        if received.lent:
            received.done(received.version)
        else:
            self._free.append(received.buffer)

    def abandon(self, buffer: Tensor) -> None:
        """What a buffer from `begin` was for will not arrive."""
        self._free.append(buffer)

    def clear(self) -> None:
        """Forgets the message and frees the memory that is not in use right now."""
        self._drop()
        self.allocated -= len(self._free)
        self._free.clear()

    def _drop(self) -> None:
        old = self._ready
        if old is not None:
            self._replace(old)
            if not old.lent:
                self._free.append(old.buffer)

    def _replace(self, old: Received) -> None:
        self._ready = None
        self.replaced += 1
        if not self.exact:
            old.done(old.version)
