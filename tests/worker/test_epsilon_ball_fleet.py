"""The peers that workers use, on a network in memory: what they record bounds what they are, point by point."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gala import names
from gala.diagnostics import DIRECTORY
from gala.report.radius import EpsilonBall, epsilon_ball
from gala.report.read import read_run
from gala_worker.diagnostics import Diagnostics
from gala_worker.gossip.fleet import Fleet, FleetLearner, small_plan

P = 12
"""Of 16 elements: the others are gossiped, but no parameters."""


class Recorded:
    """A fleet whose learners make random updates and record them."""

    def __init__(self, run_dir: Path, size: int, *, seed: int = 0, **spec: Any) -> None:
        self.run_dir = run_dir
        plan = small_plan(learners=size, **spec)
        (run_dir / names.PLAN_FILE).write_text(plan.to_json())
        self.fleet = Fleet(plan, num_elements=16, num_parameters=P)
        self.generator = torch.Generator().manual_seed(seed)
        self.recorders: dict[int, Diagnostics] = {}
        for learner in self.fleet.learners.values():
            self.begin(learner, 0, torch.ones(16))
        self.fleet.connect()

    def begin(self, learner: FleetLearner, version: int, state: torch.Tensor) -> None:
        learner.updates = version
        learner.vector.copy_(state)
        diagnostics = Diagnostics(
            self.run_dir / f"learner-{learner.rank}" / DIRECTORY,
            rank=learner.rank,
            incarnation=learner.incarnation,
            every_updates=4,
            num_parameters=P,
        )
        diagnostics.start(version, learner.vector[:P])
        self.recorders[learner.rank] = diagnostics

    def update(self, learner: FleetLearner) -> torch.Tensor:
        change = torch.randn(16, generator=self.generator) * float(learner.rank + 1)
        learner.vector += change
        learner.offer()
        return change[:P]

    def mix(self, learner: FleetLearner, change: torch.Tensor) -> None:
        mixing = learner.mix()
        recorder = self.recorders[learner.rank]
        recorder.update(learner.updates, float(change.norm()), mixing)
        if recorder.is_due(learner.updates):
            written = threading.Event()  # a fleet is faster than a disk, and a late snapshot would be left out
            recorder._jobs.put(written.set)
            assert written.wait(10)
            recorder.snapshot(learner.updates, learner.vector[:P], change)

    def lockstep(self, rounds: int) -> None:
        for _ in range(rounds):
            changes = {rank: self.update(learner) for rank, learner in self.fleet.learners.items()}
            for rank, learner in self.fleet.learners.items():
                self.mix(learner, changes[rank])

    def run(self, rank: int, period: float) -> Callable[[], None]:
        learner = self.fleet.learners[rank]

        def once() -> None:
            if not learner.stopped:
                self.fleet.network.schedule(period, once)
                self.mix(learner, self.update(learner))

        return once

    def ball(self) -> EpsilonBall:
        for recorder in self.recorders.values():
            recorder.close()
        ball = epsilon_ball(read_run(self.run_dir))
        assert ball is not None
        return ball


def below(ball: EpsilonBall) -> bool:
    known = ~np.isnan(ball.synchronous_bound)
    tighter = (ball.bound <= ball.synchronous_bound * (1 + 1e-9) + 1e-9)[known].all()
    return bool(tighter) and not ball.above.any()


@pytest.mark.parametrize(
    ("kind", "peers", "size"),
    [
        ("Ring", None, 2),
        ("Ring", None, 5),
        ("Ring", 2, 5),
        ("Exponential", None, 5),
        ("OnePeerExponential", None, 5),
        ("OnePeerExponential", None, 4),
    ],
)
def test_synchronous_peers_are_below_both_bounds(tmp_path: Path, kind: str, peers: int | None, size: int) -> None:
    topology = {"type": kind, "peers": peers}
    recorded = Recorded(tmp_path, size, topology=topology, gossip={"maxStaleness": 0})
    recorded.lockstep(40)
    ball = recorded.ball()
    assert ball.versions.tolist() == list(range(4, 41, 4))
    assert ball.notes == ()
    assert not np.isnan(ball.bound).any()
    assert not np.isnan(ball.synchronous_bound).any()
    assert below(ball)
    assert size == 2 or (ball.radius > 1e-3).any()  # two learners average exactly


def test_asynchronous_peers_of_different_speeds_are_below_the_bound(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, 4, topology={"type": "Exponential"})
    for rank in range(4):
        recorded.fleet.network.schedule(0.0, recorded.run(rank, 0.003 * (1 + 0.3 * rank)))
    recorded.fleet.network.advance(1.0)
    ball = recorded.ball()
    assert len(ball.versions) > 20
    assert not np.isnan(ball.bound).any(), ball.notes
    assert np.isnan(ball.synchronous_bound).all()
    assert below(ball)
    assert (ball.radius > 0).all()


def test_a_learner_that_comes_back_with_a_neighbour_s_state_leaves_no_gap(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, 3, gossip={"peerTimeoutSeconds": 1})
    network = recorded.fleet.network
    for rank in range(3):
        network.schedule(0.0, recorded.run(rank, 0.005))
    network.advance(0.5)
    recorded.recorders.pop(1).close()
    recorded.fleet.kill(1)
    network.advance(0.5)
    donor = recorded.fleet.learners[0]
    joiner = recorded.fleet.restart(1)
    recorded.begin(joiner, donor.updates, donor.vector)
    joiner.peer.join()
    network.schedule(0.0, recorded.run(1, 0.005))
    network.advance(1.0)
    ball = recorded.ball()
    before, after = ball.versions < 100, ball.versions > donor.updates - 100
    assert before.any()
    assert after.any()
    assert not np.isnan(ball.bound).any(), ball.notes
    assert below(ball)
