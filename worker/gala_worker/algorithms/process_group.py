"""One generation's process group: torch.distributed's gloo or NCCL, with waits that end.

A group is good until its first failure. A peer that dies closes its connections, and what is under way fails at once;
one that freezes makes it fail after the group's timeout. The group is then given up (`Group.leave`) and the survivors
meet again. Nothing here blocks the learner thread for longer than it asks for: what cannot be interrupted (connecting,
and the end of a group with an exchange under way) happens on daemon threads, which do not keep a process alive.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C import _distributed_c10d as c10d  # what torch.distributed exports only behind its checkers' backs

from gala.errors import GossipError
from gala_worker.algorithms.meeting import Hello, Welcome

CONNECT_SECONDS: Final = 15.0
"""How long the members of a new generation look for each other at most."""
_NCCL_POLL_SECONDS: Final = 0.0002


def device_identity(device: torch.device) -> str:
    """`cpu`, or what tells this GPU from all others."""
    if device.type != "cuda":
        return "cpu"
    return str(torch.cuda.get_device_properties(device).uuid)


def choose_backend(members: tuple[Hello, ...]) -> str:
    """nccl where every member has a GPU of its own, which is what it demands; else gloo, through the CPU's memory."""
    devices = {member.device for member in members}
    return "nccl" if "cpu" not in devices and len(devices) == len(members) and dist.is_nccl_available() else "gloo"


def open_store(host: str | None, seconds: float) -> c10d.TCPStore:
    """A key-value store on a free port of `host`, or of all interfaces. It closes with the last group that uses it.

    Raises: GossipError when nobody can listen there.
    """
    try:
        listening = socket.create_server(
            (host or "", 0), family=socket.AF_INET6 if host and ":" in host else socket.AF_INET
        )
        return c10d.TCPStore(
            host or "127.0.0.1",
            listening.getsockname()[1],
            None,
            True,
            timedelta(seconds=seconds),
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )
    except (OSError, RuntimeError) as error:
        raise GossipError(f"cannot listen on {host or 'any interface'}: {error}") from error


def _reason(error: Exception) -> str:
    """What torch says, without the place in its sources that it begins with and the advice that it ends with."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[[^]]*\.cc:\d+\] ", "", lines[0]).partition(" This is typically")[0][:200]


class Exchange:
    """One collective operation under way on one tensor."""

    def __init__(self, work: dist.Work, tensor: Tensor, timeout: float) -> None:
        self.tensor = tensor
        self._work = work
        self._deadline = time.monotonic() + timeout

    def wait(self, seconds: float) -> bool:
        """Whether it is done, within so many seconds.

        Raises: GossipError when it has failed: somebody has gone.
        """
        try:
            if self.tensor.is_cuda:
                return self._wait_for_nccl(seconds)
            return self._wait_for_gloo(seconds)
        except RuntimeError as error:
            raise GossipError(_reason(error)) from error

    def _wait_for_gloo(self, seconds: float) -> bool:
        try:
            self._work.wait(timedelta(seconds=seconds))
        except RuntimeError:
            # It says so by the same exception: the time to wait was too short, or the exchange itself has failed.
            if not self._work.is_completed():
                return False
            self._work.wait()
        return True

    def _wait_for_nccl(self, seconds: float) -> bool:
        until = min(time.monotonic() + seconds, self._deadline)
        while not self._work.is_completed():
            if time.monotonic() >= self._deadline:
                raise GossipError("the others have not answered in time")
            if time.monotonic() >= until:
                return False
            time.sleep(_NCCL_POLL_SECONDS)
        self._work.wait()
        return True


class Group:
    """Some processes that compute together."""

    def __init__(self, welcome: Welcome, rank: int, backend: Any, name: str, timeout: float) -> None:
        """`backend`, of torch's kind `name`, is untyped because torch's stubs leave its operations out."""
        self.welcome = welcome
        self.ranks = tuple(member.rank for member in welcome.members)
        self.index = self.ranks.index(rank)
        self.on_gpu = name == "nccl"
        self._timeout = timeout
        self._backend: Any = backend

    def all_reduce(self, tensor: Tensor) -> Exchange:
        """Starts to sum `tensor` over all members, in place. On the GPU for nccl, on the CPU for gloo."""
        return self._exchange(tensor, lambda backend: backend.allreduce([tensor]))

    def broadcast(self, tensor: Tensor, rank: int) -> Exchange:
        """Starts to copy one member's `tensor` into everybody's."""
        options = c10d.BroadcastOptions()
        options.rootRank = self.ranks.index(rank)
        options.rootTensor = 0
        return self._exchange(tensor, lambda backend: backend.broadcast([tensor], options))

    def _exchange(self, tensor: Tensor, start: Callable[[Any], dist.Work]) -> Exchange:
        if self._backend is None:
            raise GossipError("the group has been left")
        try:
            return Exchange(start(self._backend), tensor, self._timeout)
        except RuntimeError as error:
            raise GossipError(_reason(error)) from error

    def leave(self) -> None:
        """Closes the connections, so that the others notice; returns at once.

        With an exchange under way torch closes them only when that ends, which may take the whole timeout; the thread
        that waits for it does not keep the process alive.
        """
        if self._backend is None:
            return
        # In a list and never in a variable here: who drops the last reference is who waits.
        remains, self._backend = [self._backend], None
        threading.Thread(target=_bury, args=(remains, self.on_gpu), name="group end", daemon=True).start()


def _bury(remains: list[Any], abort: bool) -> None:
    if abort:
        remains[0].abort()
    remains.clear()


class Connecting:
    """A group in the making, on a thread of its own: torch's constructors block until all members are there."""

    def __init__(
        self, welcome: Welcome, rank: int, *, store: c10d.TCPStore | None, device: torch.device, timeout: float
    ) -> None:
        """`store` where this rank has opened it; `timeout` of the group's exchanges, in seconds."""
        self._arguments = (welcome, rank, store, device, timeout)
        self._future: Future[Group] = Future()
        threading.Thread(target=self._run, name="group start", daemon=True).start()

    def result(self, seconds: float) -> Group | None:
        """The group; None if it is not there in time. Raises: GossipError when the members did not find each other."""
        try:
            return self._future.result(seconds)
        except FutureTimeoutError:
            return None

    def cancel(self) -> None:
        """Gives up a group that nobody waits for any more."""
        self._future.add_done_callback(_leave)

    def _run(self) -> None:
        try:
            self._future.set_result(_connect(*self._arguments))
        except (RuntimeError, ValueError) as error:  # DistError, and what gloo throws, are RuntimeErrors
            self._future.set_exception(GossipError(f"the members did not find each other: {_reason(error)}"))
        except Exception as error:  # a mistake in the program, to be raised where somebody sees it
            self._future.set_exception(error)


def _leave(future: Future[Group]) -> None:
    if future.exception() is None:
        future.result().leave()


def _connect(welcome: Welcome, rank: int, store: c10d.TCPStore | None, device: torch.device, timeout: float) -> Group:
    seconds = timedelta(seconds=min(timeout, CONNECT_SECONDS))
    if store is None:
        store = c10d.TCPStore(welcome.store_host, welcome.store_port, None, False, seconds, wait_for_workers=False)
    index = [member.rank for member in welcome.members].index(rank)
    names = c10d.PrefixStore(f"generation-{welcome.generation}", store)
    backend = choose_backend(welcome.members)
    if backend == "nccl":
        return Group(welcome, rank, _nccl(names, index, len(welcome.members), device, timeout), backend, timeout)
    options: Any = c10d.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    # The address by which rank 0 and this rank know each other: gloo by itself would resolve the machine's name.
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname=welcome.own_host, lazy_init=False)]
    options._timeout = seconds
    options._threads = 1
    group = c10d.ProcessGroupGloo(names, index, len(welcome.members), options)
    group.set_timeout(timedelta(seconds=timeout))
    return Group(welcome, rank, group, backend, timeout)


def _nccl(store: c10d.Store, index: int, size: int, device: torch.device, timeout: float) -> Any:
    # Its watchdog would end the process when an exchange fails, which is what happens when a peer dies.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    torch.cuda.set_device(device)
    options: Any = c10d.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=timeout)
    group = c10d.ProcessGroupNCCL(store, index, size, options)
    group.eager_connect_single_device(device)
    return group
