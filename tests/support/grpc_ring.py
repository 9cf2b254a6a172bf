"""A ring of peers in this process, over real gRPC on the loopback interface."""

from __future__ import annotations

import contextlib
import threading
import time

import torch

from gala_worker.gossip.fleet import small_plan
from gala_worker.gossip.grpc_transport import GrpcTransport
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.gossip.peer import GossipPeer
from ports import hold_port

TIMEOUT = 1.0
PATIENCE = 20.0
"""The longest that a test waits for a condition on a busy machine."""
GOSSIP = {"peerTimeoutSeconds": TIMEOUT}


class ManyMachines(GrpcTransport):
    """A transport that takes every address for another machine's: parameters go over the network."""

    def is_this_machine(self, address: str) -> bool:
        return False


class Ring:
    """Peers of one run in this process, each with a port that is its own for as long as the test takes."""

    def __init__(
        self,
        thread: LoopThread,
        learners: int,
        *,
        num_elements: int = 8,
        gossip=None,
        topology=None,
        one_machine=True,
        **transport,
    ):
        self.thread, self.num_elements, self.transport = thread, num_elements, transport
        self.make_transport = GrpcTransport if one_machine else ManyMachines
        self.gossip = {**GOSSIP, **(gossip or {})}
        self.holders = contextlib.ExitStack()
        self.ports = [hold_port(self.holders) for _ in range(learners)]
        self.plan = small_plan(learners=learners, gossip=self.gossip, topology=topology, address=self.address)
        self.peers: dict[int, GossipPeer] = {}
        self.runners: dict[int, Runner] = {}

    def address(self, rank: int) -> str:
        return f"127.0.0.1:{self.ports[rank]}"

    def start(self, rank: int) -> GossipPeer:
        peer = GossipPeer(
            rank,
            self.plan,
            "schema",
            self.num_elements,
            transport=self.make_transport(self.thread, **self.transport),
            incarnation=time.monotonic_ns() // 1000,
        )
        self.peers[rank] = peer
        peer.start()
        return peer

    def connect(self, ranks=None) -> None:
        for rank in self.plan.ranks if ranks is None else ranks:
            self.start(rank).join()
        if ranks is None:
            self.wait(self.is_whole)

    def run(self) -> None:
        for rank, peer in self.peers.items():
            self.runners[rank] = Runner(peer, self.num_elements)

    def is_whole(self) -> bool:
        return all(
            (stats.in_peers, stats.out_peers) == (planned.in_peers, planned.out_peers)
            for planned in self.plan.learners
            if planned.rank in self.peers
            for stats in [self.peers[planned.rank].stats()]
        )

    def lends(self) -> set[bool]:
        """Whether messages are lent, or sent: what is said of all open in-edges."""
        sessions = [edge.session for peer in self.peers.values() for edge in peer._hood.in_peers.edges.values()]
        return {session._viewer is not None for session in sessions if session is not None}

    def wait(self, predicate, seconds: float = PATIENCE) -> None:
        peer = next(iter(self.peers.values()))
        assert peer.wait(lambda stats: predicate(), seconds), self.picture()

    def picture(self):
        return {rank: (peer.stats(), peer.events()) for rank, peer in self.peers.items()}

    def assert_all_mix(self, ranks) -> None:
        before = {rank: self.peers[rank].stats().mixes for rank in ranks}
        self.wait(lambda: all(self.peers[rank].stats().mixes >= before[rank] + 5 for rank in ranks))

    def close(self) -> None:
        for runner in self.runners.values():
            runner.stop()
        for peer in self.peers.values():
            peer.close()
        self.holders.close()


class Runner:
    """A learner thread that makes an update every few milliseconds."""

    def __init__(self, peer: GossipPeer, num_elements: int) -> None:
        self.updates = 0
        self.longest_pause = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(peer, torch.zeros(num_elements)))
        self._thread.start()

    def _run(self, peer: GossipPeer, vector: torch.Tensor) -> None:
        while not self._stopped.wait(0.01):
            began = time.monotonic()
            self.updates += 1
            peer.offer(vector, version=self.updates, steps=self.updates)
            peer.mix(vector)
            peer.answer_state_requests(lambda: b"s" * 3_000_000)
            self.longest_pause = max(self.longest_pause, time.monotonic() - began)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
