"""Parameters on their way down: published once, read by as many streams as there are actors, newest wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from gala_worker.gossip.messages import Progress


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the hub says, as an actor gets it."""

    vector: Tensor
    """[N] on the CPU, of the wire's number format: `flat.vector.copy_` it. Valid until the next `latest`."""
    version: int
    """The hub's update count. It may be lower than that of earlier parameters, if `lineage` is another."""
    progress: Progress
    """rank -> agent decisions that have been learned from."""
    finished: bool
    """The run has its steps."""
    lineage: int
    """Incarnation of the hub's process."""


@dataclass(slots=True, eq=False)
class Edition:
    """The parameters of one version, shared by the streams that they travel on."""

    buffer: Tensor
    serial: int = 0
    version: int = 0
    progress: Progress = field(default_factory=dict)
    finished: bool = False
    holders: int = 0


class Press:
    """The newest edition, and buffers that are used again: one per stream that lags behind, and two.

    Nothing here locks: the owner holds its lock around every call.
    """

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make = make
        self._free: list[Edition] = []
        self._serial = 0
        self.newest: Edition | None = None
        self.allocated = 0
        """Buffers in existence."""

    def begin(self) -> Edition:
        """An edition to be filled, without the lock."""
        if self._free:
            return self._free.pop()
        self.allocated += 1
        return Edition(self._make())

    def publish(self, edition: Edition) -> None:
        """It is filled, and now the newest."""
        self._serial += 1
        edition.serial, edition.holders = self._serial, 1
        if self.newest is not None:
            self.release(self.newest)
        self.newest = edition

    def hold(self, edition: Edition) -> Edition:
        """One reader more."""
        edition.holders += 1
        return edition

    def release(self, edition: Edition) -> None:
        """One reader less; the last one gives the buffer back."""
        edition.holders -= 1
        if edition.holders == 0:
            self._free.append(edition)
