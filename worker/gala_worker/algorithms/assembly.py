"""From plan to process group: meets the others, connects, and starts anew when that fails."""

from __future__ import annotations

import logging
import time
from typing import Final

import torch
from torch._C import _distributed_c10d as c10d

from gala.errors import GossipError
from gala.plan import RunPlan
from gala_worker.algorithms.meeting import Hello, Host, Visit, Welcome
from gala_worker.algorithms.process_group import Connecting, Group, open_store
from gala_worker.gossip.loop_thread import LoopThread

log = logging.getLogger(__name__)

SLOW_FACTOR: Final = 3.0
"""An exchange may take so many times as long as a rollout of the slowest rank."""


class Assembly:
    """One rank's way into a group. Belongs to the learner thread; nothing blocks for longer than it is told."""

    def __init__(self, loop: LoopThread, plan: RunPlan, rank: int, schema: str, device: torch.device) -> None:
        """The first of the plan's ranks listens at once. Raises: GossipError when its address cannot be had."""
        self._loop = loop
        self._plan = plan
        self._rank = rank
        self._device = device
        self._visit: Visit | None = None
        self._connecting: Connecting | None = None
        self._host: Host | None = None
        if rank == min(plan.ranks):
            self._host = Host(loop, plan, rank)
            self._host.start(schema)

    def set_plan(self, plan: RunPlan) -> None:
        """Goes on with the others of a new epoch."""
        self.reset()
        self._plan = plan
        if self._host is not None:
            self._host.set_plan(plan)

    def result(self, hello: Hello, seconds: float) -> Group | None:
        """A new group, if there is one within `seconds`; else ask again, with the same hello."""
        until = time.monotonic() + seconds
        if self._connecting is None:
            welcome, store = self._gather(hello, seconds) if self._host else (self._ask(hello, seconds), None)
            if welcome is None:
                return None
            timeout = self._timeout(welcome)
            self._connecting = Connecting(welcome, self._rank, store=store, device=self._device, timeout=timeout)
        try:
            group = self._connecting.result(max(0.0, until - time.monotonic()))
        except GossipError as error:
            log.info("%s", error)
            self._connecting = None
            return None
        if group is not None:
            self._connecting = None
        return group

    def _timeout(self, welcome: Welcome) -> float:
        """How long an exchange may take, in seconds; the same for all.

        A rank that is at work says nothing to the others, so who is slower than `peerTimeoutSeconds` would be taken for
        gone, again and again. The first time costs a meeting; there it says how slow it is.
        """
        slowest = welcome.slowest
        pace = slowest.pace_ms / 1000
        timeout = max(self._plan.spec.gossip.peer_timeout_seconds, SLOW_FACTOR * pace)
        if timeout > self._plan.spec.gossip.peer_timeout_seconds:
            log.warning(
                "a rollout of rank %d takes %.1f s, so the others wait for it up to %.1f s, longer than "
                "gossip.peerTimeoutSeconds",
                slowest.rank,
                pace,
                timeout,
            )
        return timeout

    def reset(self) -> None:
        """Forgets what is under way."""
        if self._visit is not None:
            self._visit.cancel()
            self._visit = None
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None

    def close(self) -> None:
        """For good."""
        self.reset()
        if self._host is not None:
            self._host.close()
            self._host = None

    def _gather(self, hello: Hello, seconds: float) -> tuple[Welcome | None, c10d.TCPStore | None]:
        assert self._host is not None
        gathering = self._host.gather(hello, seconds)
        if gathering is None:
            return None, None
        try:
            store = open_store(gathering.host, self._plan.spec.gossip.peer_timeout_seconds)
        except GossipError:
            gathering.dismiss()
            raise
        return gathering.welcome(store.port), store

    def _ask(self, hello: Hello, seconds: float) -> Welcome | None:
        if self._visit is None:
            address = self._plan.learner(min(self._plan.ranks)).address.gossip
            self._visit = Visit(self._loop, address, hello)
        welcome = self._visit.result(seconds)
        if welcome is not None:
            self._visit = None
        return welcome
