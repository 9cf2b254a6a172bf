"""What actors have sent and the learner has not taken: bounded, fair, with buffers that are used again.

Nothing here locks: the owner holds its lock around every call. Memory: at most `MAX_UNPROCESSED` buffers per actor
here, and those that the learner has taken and not released.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gala_worker.algorithms.hub.messages import MAX_UNPROCESSED


@dataclass(slots=True, eq=False)
class Contribution:
    """One gradient or rollout, complete. `release` it when done: its memory is then used again."""

    rank: int
    incarnation: int
    """Of the actor's process, which may be gone."""
    serial: int
    version: int
    """Of the parameters it was made with."""
    steps: int
    """Agent decisions in it."""
    payload: memoryview
    """Exactly `contribution_bytes`, writable; of no use after `release`."""
    received_at: float
    """`time.monotonic()` when it was complete."""
    give_back: Callable[[bytearray], None]
    buffer: bytearray | None

    def release(self) -> None:
        """The payload is no longer needed. Optional, thread-safe, and without effect when called again."""
        buffer, self.buffer = self.buffer, None
        if buffer is not None:
            self.payload = memoryview(b"")
            self.give_back(buffer)


class BufferPool:
    """Buffers of one size; keeps as many as the actors can fill."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._free: list[bytearray] = []
        self.keep = 0
        """Free buffers that are not given up."""

    def acquire(self) -> bytearray:
        """A buffer with whatever was in it before."""
        return self._free.pop() if self._free else bytearray(self._num_bytes)

    def give_back(self, buffer: bytearray) -> None:
        """It is no longer needed."""
        if len(self._free) < self.keep:
            self._free.append(buffer)


class ContributionQueue:
    """Complete contributions, first come first served within an actor, in turn between actors."""

    def __init__(self) -> None:
        self._waiting: dict[int, deque[Contribution]] = {}
        self._served: dict[int, int] = {}
        self._turn = 0
        self.dropped = 0
        """Left by dead processes, and displaced by what their successors sent."""

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    def held(self, rank: int, incarnation: int) -> tuple[int, ...]:
        """Serials of what this process of an actor has here."""
        return tuple(c.serial for c in self._waiting.get(rank, ()) if c.incarnation == incarnation)

    def put(self, contribution: Contribution) -> Contribution | None:
        """Adds one. Returns what it displaces: the oldest left by an earlier process, where there would be too many."""
        queue = self._waiting.setdefault(contribution.rank, deque())
        displaced = queue.popleft() if len(queue) >= MAX_UNPROCESSED else None
        self.dropped += displaced is not None
        queue.append(contribution)
        return displaced

    def take(self) -> Contribution | None:
        """Of the actor whose turn is longest ago; among those that never had one, of whoever was first."""
        waiting = [queue for queue in self._waiting.values() if queue]
        if not waiting:
            return None
        queue = min(waiting, key=lambda queue: (self._served.get(queue[0].rank, 0), queue[0].received_at))
        contribution = queue.popleft()
        self._turn += 1
        self._served[contribution.rank] = self._turn
        return contribution
