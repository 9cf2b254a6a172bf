"""What the two ends of a stream tell each other in memory that both see, instead of a word on the stream.

A word takes a turn of two threads in both processes, and a message has two words: itself and its acknowledgement.
Neither need be heard before the other side has a use for it. So a sender posts its loan here, where the receiver's
learner looks when it is about to mix; and the receiver writes here what it is done with, where the sender's learner
looks when it has something new. Whoever waits says so here, and is then told aloud.

Two that act at once must not miss each other: who posts, or is done, while the other one begins to wait. So each side
first writes its own number and then reads the other's, with a fence between the two; whatever the order, one of them
at least reads what the other has written. A processor may keep a store to itself while later loads go ahead (x86-64
does, and moves nothing else), and a fence is what makes the store visible first.

`sending` and `receiving` use it; `shared_memory` has what it lies in.
"""

from __future__ import annotations

import mmap
import os
import platform
import secrets
import threading
from typing import Final

from gala.errors import GossipError
from gala.names import MAX_LEARNERS
from gala_worker.gossip.messages import SharedMemory
from gala_worker.gossip.shared_memory import Segment, map_segment

KEEPS_ORDER: Final = platform.machine() in ("x86_64", "AMD64")
"""Whether a process sees another one's stores in the order that they were made in; else all is said aloud."""
_TOKEN_BYTES: Final = 16
_DONE, _ACK_IS_AWAITED, _POSTED, _POSTED_AT, _MESSAGE_IS_AWAITED, _FRAME_BYTES, _NUMBERS = range(7)
_FRAME_AT: Final = _TOKEN_BYTES + 8 * _NUMBERS
_BYTES: Final = _FRAME_AT + 256 + 32 * MAX_LEARNERS
"""Enough for a loan with the progress of the largest run."""


class Mailbox:
    """One stream's. Every number has one side that writes it, and is written as a whole."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._frame = memoryview(memory)[_FRAME_AT:]
        self._numbers = memoryview(memory)[_TOKEN_BYTES:_FRAME_AT].cast("Q")
        self._fence = threading.Lock()

    def _write(self, place: int, number: int) -> None:
        """After it returns, the other process sees the number, and this one reads what the other has written."""
        self._numbers[place] = number
        # Taking a lock is a locked instruction, in all that Python's locks are made of (futexes, semaphores), and on
        # x86-64 every such is a full fence. The lock is the mailbox's own: that of a condition may be held already, and
        # to take it once more is then no such instruction.
        with self._fence:
            pass

    # ---------------------------------------------------------------- the sender writes, the receiver reads

    def post(self, version: int, frame: bytes, now: float) -> None:
        """A message that lies in the sender's memory, in place of the one before, which the receiver is done with.

        A receiver whose `message_is_awaited` is read as False afterwards looks once more before it waits.
        """
        self._frame[: len(frame)] = frame
        self._numbers[_POSTED_AT] = int(now * 1e9)
        self._numbers[_FRAME_BYTES] = len(frame)
        self._write(_POSTED, version)  # last: who sees it sees the rest

    @property
    def posted(self) -> int:
        """Version of the message that was posted last; 0 = none."""
        return self._numbers[_POSTED]

    @property
    def posted_at(self) -> float:
        """When, by the sender's clock in seconds; Linux has one clock for all processes of a machine."""
        return self._numbers[_POSTED_AT] / 1e9

    def read(self) -> bytes:
        """The frame that says where it lies; whatever is there."""
        return bytes(self._frame[: self._numbers[_FRAME_BYTES]])

    @property
    def ack_is_awaited(self) -> bool:
        """Another message waits for the receiver to be done with this one."""
        return self._numbers[_ACK_IS_AWAITED] != 0

    @ack_is_awaited.setter
    def ack_is_awaited(self, value: bool) -> None:
        self._write(_ACK_IS_AWAITED, value)

    # ---------------------------------------------------------------- the receiver writes, the sender reads

    @property
    def done(self) -> int:
        """Version of the last message that the receiver is done with, however it came; 0 = none."""
        return self._numbers[_DONE]

    @done.setter
    def done(self, version: int) -> None:
        self._write(_DONE, version)

    @property
    def message_is_awaited(self) -> bool:
        """The receiver's learner waits, and does not look."""
        return self._numbers[_MESSAGE_IS_AWAITED] != 0

    @message_is_awaited.setter
    def message_is_awaited(self, value: bool) -> None:
        self._write(_MESSAGE_IS_AWAITED, value)


class OwnMailbox(Mailbox):
    """The sender's, who shows it to a receiver that may be on its machine: who can read it can read its loans too."""

    def __init__(self) -> None:
        """Raises: OSError as `Segment` does."""
        self._segment = Segment(_BYTES)
        token = secrets.token_bytes(_TOKEN_BYTES)
        self._segment.memory[:_TOKEN_BYTES] = token
        self.address: Final = SharedMemory(os.getpid(), self._segment.descriptor, token)
        super().__init__(self._segment.memory)


def find_mailbox(address: SharedMemory) -> Mailbox:
    """A neighbour's. Raises: GossipError when it cannot be seen from here."""
    memory = map_segment(address.process, address.descriptor, _BYTES)
    if memory[:_TOKEN_BYTES] != address.token:
        raise GossipError(f"process {address.process} here is not the neighbour's")
    return Mailbox(memory)
