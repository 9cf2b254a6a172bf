"""A hub and its actors in the process of the tests, over real gRPC on the loopback interface."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from gala.plan import RunPlan
from gala_worker.algorithms.hub import Contribution, HubClient, HubServer, Identity
from gala_worker.gossip.fleet import small_plan
from gala_worker.gossip.loop_thread import LoopThread
from ports import hold_port
from waiting import PATIENCE_SECONDS

TIMEOUT_SECONDS = 1.0
SIZE = 24
"""Bytes of a contribution."""


class Star:
    """A hub and its actors in this process, on a port that is theirs for as long as the test takes."""

    def __init__(
        self,
        loop: LoopThread,
        stack: ExitStack,
        learners: int = 2,
        *,
        num_elements: int = 6,
        size: int = SIZE,
        **gossip: Any,
    ) -> None:
        self.loop, self.num_elements, self.size = loop, num_elements, size
        self.port = hold_port(stack)
        stack.callback(self.close)
        self.gossip = {"peerTimeoutSeconds": TIMEOUT_SECONDS, **gossip}
        self.plan = self.make_plan(learners)
        self.servers: list[HubServer] = []
        self.clients: list[HubClient] = []
        self.incarnation = 0

    def make_plan(self, learners: int, epoch: int = 0, port: int | None = None) -> RunPlan:
        address = f"127.0.0.1:{self.port if port is None else port}"
        return small_plan(learners=learners, gossip=self.gossip, epoch=epoch, address=lambda rank: address)

    def identity(self, rank: int, incarnation: int | None) -> Identity:
        self.incarnation += 1
        return Identity(rank, incarnation or self.incarnation, "schema", self.num_elements)

    def hub(self, *, version: int | None = 1, **changes: Any) -> HubServer:
        server = HubServer(self.plan, self.identity(0, None), loop=self.loop, contribution_bytes=self.size, **changes)
        self.servers.append(server)
        server.start()
        if version is not None:
            self.publish(server, version)
        return server

    def publish(self, server: HubServer, version: int, **changes: Any) -> None:
        vector = torch.full((self.num_elements,), float(version))
        server.publish(vector, version=version, progress={1: 10 * version}, **changes)

    def actor(self, rank: int, incarnation: int | None = None, **changes: Any) -> HubClient:
        client = HubClient(
            self.plan, self.identity(rank, incarnation), loop=self.loop, contribution_bytes=self.size, **changes
        )
        self.clients.append(client)
        client.start()
        return client

    def payload(self, number: int) -> bytes:
        return number.to_bytes(8, "little") * (self.size // 8)

    def push(self, client: HubClient, number: int, *, version: int = 1, timeout: float = PATIENCE_SECONDS) -> bool:
        return client.push([self.payload(number)], version=version, steps=number, timeout=timeout)

    def close(self) -> None:
        for end in (*self.clients, *self.servers):
            end.close()


def take(server: HubServer) -> Contribution:
    contribution = server.take(PATIENCE_SECONDS)
    assert contribution is not None
    return contribution
