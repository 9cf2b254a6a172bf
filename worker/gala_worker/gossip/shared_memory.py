"""Parameters in memory that neighbours on the same machine may read: their bytes never go through the network.

`slots` has the buffers, `sending` lends them, `receiving` reads them; in a `mailbox` they tell each other. The memory
is an anonymous file of the sender (memfd_create(2)), which others of its user open by way of /proc: nothing is left
behind when its last process has ended, and it is sealed against shrinking, so that no sender can take it away from
under a reader. Where there is no such thing, and between pods, messages travel in chunks.
"""

from __future__ import annotations

import itertools
import mmap
import os
import sys
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from gala.errors import GossipError

_NAME: Final = "gala-gossip"
MAX_VIEWS: Final = 8
"""Pieces of a neighbour's memory that stay mapped; it uses two for each of its out-edges, and one more."""

_serials = itertools.count(1)


class Segment:
    """A piece of this process's memory that others may map."""

    def __init__(self, num_bytes: int) -> None:
        """Raises: OSError where the system has no such memory, or no more of it."""
        if sys.platform != "linux":
            raise OSError("sealed memory files are Linux's")
        import fcntl

        self.serial = next(_serials)
        """Unique in this process."""
        self.descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._close = weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, num_bytes)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self.memory = mmap.mmap(self.descriptor, num_bytes)

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """The memory as a vector, which keeps it alive; the descriptor lives as long as the segment."""
        return torch.frombuffer(self.memory, dtype=dtype)


class Viewer:
    """The segments of one neighbour's process, as this one sees them."""

    def __init__(self, process: int) -> None:
        self._process = process
        self._views: OrderedDict[int, Tensor] = OrderedDict()

    def view(self, descriptor: int, serial: int, num_bytes: int, dtype: torch.dtype) -> Tensor:
        """The vector that lies in a segment; to be read only.

        Raises: GossipError when there is no sealed segment of exactly this size.
        """
        known = self._views.pop(serial, None)
        if known is None:
            known = torch.frombuffer(map_segment(self._process, descriptor, num_bytes), dtype=dtype)
        self._views[serial] = known
        if len(self._views) > MAX_VIEWS:
            self._views.popitem(last=False)
        return known


def map_segment(process: int, descriptor: int, num_bytes: int) -> mmap.mmap:
    """Another process's memory. Raises: GossipError when there is no sealed segment of exactly this size."""
    if sys.platform != "linux":
        raise GossipError("sealed memory files are Linux's")
    import fcntl

    path = f"/proc/{process}/fd/{descriptor}"
    try:
        # Looked at first: to open anything else might block, or do something.
        if not str(Path(path).readlink()).startswith(f"/memfd:{_NAME}"):
            raise GossipError(f"{path} is no memory of a learner")
        opened = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            size, seals = os.fstat(opened).st_size, fcntl.fcntl(opened, fcntl.F_GET_SEALS)
            if size != num_bytes or not num_bytes or not seals & fcntl.F_SEAL_SHRINK:
                raise GossipError(f"{path} has {size} bytes, seals {seals:#x}: not {num_bytes} sealed ones")
            return mmap.mmap(opened, num_bytes)
        finally:
            os.close(opened)
    except OSError as error:
        raise GossipError(f"{path} cannot be read: {error}") from error
