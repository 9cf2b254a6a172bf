"""The start of a synchronous GALA run: nobody makes an update before everybody has begun."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from gala.plan import Address, RunPlan, plan
from gala.spec import parse
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.gossip.stats import GossipStats
from ports import hold_port
from ranks import Rank
from waiting import PATIENCE_SECONDS


class Learner(Rank):
    """A learner of the ring, which begins in a thread of its own."""

    def __init__(self, run: RunPlan, rank: int, loop: LoopThread, stop: threading.Event, updates: int) -> None:
        super().__init__(run, rank, loop, stopping=stop.is_set)
        self.counters.updates = updates
        self.algorithm.open()  # it can be connected to before it has begun
        self.thread = threading.Thread(target=self.begin)

    @property
    def has_begun(self) -> bool:
        return not self.thread.is_alive()

    def has_neighbours(self) -> bool:
        def connected(stats: GossipStats) -> bool:
            return stats.in_peers == self.setup.me.in_peers and stats.out_peers == self.setup.me.out_peers

        return bool(self.algorithm._gossip.wait(connected, PATIENCE_SECONDS))


@pytest.fixture
def ring(loop_thread: LoopThread) -> Iterator[Callable[..., list[Learner]]]:
    """Makes four learners in lock step that have not begun; all are closed in the end."""
    stop = threading.Event()
    with ExitStack() as stack:

        def make(updates: int = 0, timeout: float = 5) -> list[Learner]:
            ports = [hold_port(stack) for _ in range(4)]
            document = {
                "apiVersion": "gala.dev/v1alpha1",
                "kind": "GalaRun",
                "metadata": {"name": "ring"},
                "spec": {
                    "environment": {"id": "CartPole-v1", "simulators": 1},
                    "learners": 4,
                    "totalSteps": 1000,
                    "gossip": {"maxStaleness": 0, "peerTimeoutSeconds": timeout},
                },
            }
            run = plan(
                parse(document), uid="u", address=lambda rank: Address(gossip=f"127.0.0.1:{ports[rank]}", http="no:1")
            )
            learners = [Learner(run, rank, loop_thread, stop, updates) for rank in run.ranks]
            for learner in learners:
                stack.callback(learner.close)
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
    learners = ring(updates=7, timeout=PATIENCE_SECONDS + 20)
    for rank in (0, 1, 3):
        learners[rank].thread.start()
    learners[0].thread.join(PATIENCE_SECONDS)
    assert learners[0].has_begun
    # This one's in-peer is missing.
    assert not learners[3].has_begun


def test_a_learner_that_comes_back_does_not_wait_for_one_that_is_away(ring: Callable[..., list[Learner]]) -> None:
    learners = ring(updates=7, timeout=1)
    learners[2].close()
    for rank in (0, 1, 3):
        learners[rank].thread.start()
    for rank in (0, 1, 3):
        learners[rank].thread.join(PATIENCE_SECONDS)
        assert learners[rank].has_begun
