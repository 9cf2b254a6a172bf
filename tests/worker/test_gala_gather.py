"""The start of a synchronous GALA run: nobody makes an update before everybody has begun."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import torch

from gala.plan import Address, RunPlan, plan
from gala.spec import parse
from gala_worker.algorithms.algorithm import Setup
from gala_worker.algorithms.factory import make_algorithm
from gala_worker.algorithms.gala import Gala
from gala_worker.flat import FlatState
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.gossip.stats import GossipStats
from gala_worker.model import make_policy
from gala_worker.rollout import Collector
from gala_worker.state import Counters

PATIENCE_SECONDS = 30.0
"""How long a condition may take on a busy machine."""
OBSERVATION_SPACE = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
ACTION_SPACE = gymnasium.spaces.Discrete(2)


class Learner:
    """A learner of the ring, whose `begin` runs in a thread of its own."""

    def __init__(self, run: RunPlan, rank: int, thread: LoopThread, counters: Counters, stop: threading.Event) -> None:
        policy = make_policy(OBSERVATION_SPACE, ACTION_SPACE, run.spec.policy, seed=1)
        flat = FlatState(policy, policy.gossiped_buffers())
        algorithm = make_algorithm(
            Setup(
                plan=run,
                me=run.learner(rank),
                incarnation=1,
                policy=policy,
                flat=flat,
                observation_space=OBSERVATION_SPACE,
                device=torch.device("cpu"),
                compute_type=torch.float32,
                loop=thread,
                learner_dir=Path(),
                stopping=stop.is_set,
            )
        )
        assert isinstance(algorithm, Gala)
        self.algorithm, self.counters = algorithm, counters
        no_collector = cast(Collector, object())  # it is not used before the first update
        self.thread = threading.Thread(target=algorithm.begin, args=(no_collector, counters))
        algorithm.open()

    @property
    def has_begun(self) -> bool:
        return not self.thread.is_alive()

    def has_neighbours(self) -> bool:
        me = self.algorithm.plan.learner(self.algorithm.setup.me.rank)

        def connected(stats: GossipStats) -> bool:
            return stats.in_peers == me.in_peers and stats.out_peers == me.out_peers

        return self.algorithm._gossip.wait(connected, PATIENCE_SECONDS)


@pytest.fixture
def ring() -> Iterator[Callable[..., list[Learner]]]:
    """Makes four learners in lock step that listen and have not begun; all are closed in the end."""
    loop_thread, stop = LoopThread(), threading.Event()
    with ExitStack() as stack:
        stack.callback(loop_thread.stop)

        def make(**counters: Any) -> list[Learner]:
            ports = []
            for _ in range(4):
                holder = stack.enter_context(socket.socket())
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                holder.bind(("127.0.0.1", 0))
                ports.append(holder.getsockname()[1])
            document = {
                "apiVersion": "gala.dev/v1alpha1",
                "kind": "GalaRun",
                "metadata": {"name": "ring"},
                "spec": {
                    "environment": {"id": "CartPole-v1", "simulators": 1},
                    "learners": 4,
                    "totalSteps": 1000,
                    "gossip": {"maxStaleness": 0, "peerTimeoutSeconds": 5},
                },
            }
            run = plan(
                parse(document), uid="u", address=lambda rank: Address(gossip=f"127.0.0.1:{ports[rank]}", http="no:1")
            )
            learners = [Learner(run, rank, loop_thread, Counters(**counters), stop) for rank in run.ranks]
            for learner in learners:
                stack.callback(learner.algorithm.close)
            stack.callback(stop.set)
            return learners

        yield make


def test_in_lock_step_no_learner_begins_before_the_last_one_does(ring: Callable[..., list[Learner]]) -> None:
    learners = ring()
    last = learners[2]
    others = [learner for learner in learners if learner is not last]
    for learner in others:
        learner.thread.start()
    # Rank 0 has all its neighbours: only the one across the ring is missing.
    assert learners[0].has_neighbours()
    learners[0].thread.join(1.0)
    assert not any(learner.has_begun for learner in others)
    last.thread.start()
    for learner in learners:
        learner.thread.join(PATIENCE_SECONDS)
        assert learner.has_begun


def test_after_a_resume_a_learner_waits_for_its_neighbours_only(ring: Callable[..., list[Learner]]) -> None:
    learners = ring(updates=7)
    for rank in (0, 1, 3):
        learners[rank].thread.start()
    learners[0].thread.join(PATIENCE_SECONDS)
    assert learners[0].has_begun
    # This one's in-peer is missing.
    assert not learners[3].has_begun
