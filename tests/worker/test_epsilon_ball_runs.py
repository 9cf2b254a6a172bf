"""Real learners stay within the epsilon-ball that is computed from what they recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gala.report.correlation import correlation
from gala.report.radius import epsilon_ball
from gala.report.read import read_run

if TYPE_CHECKING:
    from conftest import LiveRun

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


def document(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"name": name},
        "spec": {
            "environment": {"id": "CartPole-v1", "simulators": 4},
            "learners": 3,
            "totalSteps": 4000,
            "worker": {"gpus": 0},
            "evaluation": {"everySteps": None, "episodes": 1},
            "diagnostics": {"everyUpdates": 5},
            **spec,
        },
    }


def test_synchronous_learners_stay_below_both_bounds_at_every_point(live_run: Callable[..., LiveRun]) -> None:
    # More learners than neighbours: they are to wait for those as well that they never talk to.
    run = live_run(document("lockstep", learners=5, totalSteps=6000, gossip={"maxStaleness": 0}))
    assert run.process.wait(200) == 0, run.log.read_text()
    ball = epsilon_ball(read_run(run.directory))
    assert ball is not None
    assert len(ball.versions) >= 10
    assert (ball.radius > 0).all()
    inside = ~np.isnan(ball.synchronous_bound)
    assert inside.sum() >= 10, ball.notes
    assert not np.isnan(ball.bound).any()
    assert not ball.above.any()
    assert (ball.bound <= ball.synchronous_bound * (1 + 1e-9))[inside].all()
    found = correlation(read_run(run.directory))
    assert found is not None
    assert found.snapshots == len(ball.versions)
    assert 0 < found.mean() < 1


def test_asynchronous_learners_stay_below_the_bound_of_the_measured_delays(live_run: Callable[..., LiveRun]) -> None:
    # Long enough that all three are at work for most of it, however far apart a busy machine starts them.
    paced = {"id": "slow_pole:SlowPole-v0", "simulators": 4}
    run = live_run(document("free", environment=paced, totalSteps=20_000, topology={"type": "Exponential"}))
    assert run.process.wait(200) == 0, run.log.read_text()
    ball = epsilon_ball(read_run(run.directory))
    assert ball is not None
    assert len(ball.versions) > 0
    assert (ball.radius > 0).all()
    assert not np.isnan(ball.bound).any(), ball.notes
    assert not ball.above.any()
