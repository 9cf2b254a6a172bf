"""What a peer's messages lie in: buffers for what it sends and receives, and what neighbours may see of them."""

from __future__ import annotations

import logging

from torch import Tensor

from gala.errors import GossipError
from gala_worker.gossip import codec
from gala_worker.gossip.mailbox import Mailbox, OwnMailbox, find_mailbox
from gala_worker.gossip.messages import Hello, Precision
from gala_worker.gossip.shared_memory import Viewer
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
        self._shared = shared and not pinned
        self.pool = SnapshotPool(self._make_snapshot)

    def mailbox(self) -> OwnMailbox | None:
        """For a new stream; None where its receiver is to see nothing of this process's memory."""
        if not self._shared:
            return None
        try:
            return OwnMailbox()
        except OSError as error:
            log.info("parameters travel in chunks: %s", error)
            return None

    def make(self) -> Tensor:
        """A buffer for an arriving message."""
        return codec.new_buffer(self._num_elements, self._precision, pinned=self._pinned)

    def inbox(self, *, exact: bool) -> Inbox:
        """For one in-edge."""
        return Inbox(self.make, exact=exact)

    def look_into(self, hello: Hello) -> tuple[Mailbox, Viewer] | None:
        """The memory of a neighbour, if it says that it is on this machine, and is."""
        if hello.memory is None or not self._shared:
            return None
        try:
            return find_mailbox(hello.memory), Viewer(hello.memory.process)
        except GossipError as error:
            log.info("rank %d sends its parameters in chunks: %s", hello.rank, error)
            return None

    def _make_snapshot(self) -> Snapshot:
        if not self._shared:
            return Snapshot(self.make())
        try:
            return Snapshot(*codec.new_segment(self._num_elements, self._precision))
        except OSError:  # no more descriptors: this one travels in chunks
            return Snapshot(self.make())
