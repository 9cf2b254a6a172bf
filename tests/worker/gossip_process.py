"""A learner in a process of its own, for test_gossip_grpc.py: makes updates until it is told to stop on its stdin."""

from __future__ import annotations

import json
import sys
import threading
import time

import torch

from gala_worker.gossip.fleet import small_plan
from gala_worker.gossip.grpc_transport import GrpcTransport
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.gossip.peer import GossipPeer


def main(rank: int, ports: list[int], num_elements: int, gossip: dict[str, object]) -> None:
    torch.set_num_threads(1)
    thread = LoopThread()
    plan = small_plan(learners=len(ports), gossip=gossip, address=lambda peer: f"127.0.0.1:{ports[peer]}")
    peer = GossipPeer(
        rank, plan, "schema", num_elements, transport=GrpcTransport(thread), incarnation=time.time_ns() // 1000
    )
    peer.start()
    peer.join()
    stopped = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stopped.set()), daemon=True).start()
    vector, version = torch.zeros(num_elements), 0
    while not stopped.wait(0.01):
        version += 1
        peer.offer(vector, version=version, steps=version)
        peer.mix(vector)
    peer.close()
    thread.stop()


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
