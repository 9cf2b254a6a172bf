"""What a peer's messages lie in: buffers for what it sends and receives, and what neighbours may see of them."""

from __future__ import annotations

import logging

from torch import Tensor

from gala.errors import GossipError
from gala_worker.gossip import codec
from gala_worker.gossip.messages import Hello, Precision, SharedMemory
from gala_worker.gossip.shared_memory import Beacon, Viewer
from gala_worker.gossip.slots import Inbox, Snapshot, SnapshotPool

log = logging.getLogger(__name__)


class Buffers:
    """Makes them, all of one size and number format; allocated when they are first needed."""

    def __init__(self, num_elements: int, precision: Precision, *, pinned: bool = False, shared: bool = False) -> None:
        """Args:
        pinned: page-locked, for fast copies from and to a GPU; not shared then.
        shared: neighbours may be on this machine. Where the system cannot share memory, nothing is.
        """
        self._num_elements = num_elements
        self._precision = precision
        self._pinned = pinned
        self._beacon: Beacon | None = None
        if shared and not pinned:
            try:
                self._beacon = Beacon()
            except OSError as error:
                log.info("parameters travel in chunks: %s", error)
        self.pool = SnapshotPool(self._make_snapshot)

    @property
    def memory(self) -> SharedMemory | None:
        """What neighbours are told of this process's memory."""
        return None if self._beacon is None else self._beacon.memory

    def make(self) -> Tensor:
        """A buffer for an arriving message."""
        return codec.new_buffer(self._num_elements, self._precision, pinned=self._pinned)

    def inbox(self, *, exact: bool) -> Inbox:
        """For one in-edge."""
        return Inbox(self.make, exact=exact)

    def viewer(self, hello: Hello) -> Viewer | None:
        """The memory of a neighbour, if it says that it is on this machine, and is."""
        if hello.memory is None or self._beacon is None:
            return None
        try:
            return Viewer(hello.memory)
        except GossipError as error:
            log.info("rank %d sends its parameters in chunks: %s", hello.rank, error)
            return None

    def _make_snapshot(self) -> Snapshot:
        if self._beacon is None:
            return Snapshot(self.make())
        try:
            return Snapshot(*codec.new_segment(self._num_elements, self._precision))
        except OSError:  # no more descriptors: this one travels in chunks
            return Snapshot(self.make())
