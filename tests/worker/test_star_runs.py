"""A3C and IMPALA with real processes under the launcher: they learn, and what dies comes back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from conftest import LiveRun

EXAMPLES = Path(__file__).parents[2] / "examples"
ALGORITHMS = ["a3c", "impala"]

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


def example(algorithm: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((EXAMPLES / f"cartpole-{algorithm}.yaml").read_text())
    return document


@pytest.mark.learning
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_centre_and_two_that_act_reach_475_on_the_pole(live_run: Callable[..., LiveRun], algorithm: str) -> None:
    document = example(algorithm)
    run = live_run(document)
    assert run.process.wait(280) == 0, run.log.read_text()
    card = run.card()
    assert card["globalSteps"] >= document["spec"]["totalSteps"]
    assert card["averaged"] == [0]  # the centre's parameters are the run's
    run.assert_learned(475, kept=150)
    centre = run.records(0, "train")
    assert centre[-1]["gossip"]["mixes"] == centre[-1]["updates"] > 500
    assert centre[-1]["gossip"]["stalenessMaxUpdates"] >= centre[-1]["gossip"]["stalenessUpdates"] > 0
    assert {edge["peer"] for edge in centre[-1]["gossip"]["edges"]} == {1, 2}
    assert run.records(0, "evaluation")
    for rank in (1, 2):
        assert run.records(rank, "train")[-1]["globalSteps"] >= document["spec"]["totalSteps"]
        assert not run.records(rank, "evaluation")
        assert not (run.directory / f"learner-{rank}" / "checkpoints").exists()


def endless(algorithm: str) -> dict[str, Any]:
    document = example(algorithm)
    document["metadata"]["name"] = f"endless-{algorithm}"
    if algorithm == "impala":
        document["spec"]["hyperparameters"]["batchRollouts"] = 8
    document["spec"] |= {
        "totalSteps": 1_000_000_000,
        "environment": {"id": "slow_pole:SlowPole-v0", "simulators": 4},
        "gossip": {"peerTimeoutSeconds": 5},
        "checkpoint": {"everySteps": 2000},
        "evaluation": {"everySteps": None},
    }
    return document


@pytest.fixture(scope="module", params=ALGORITHMS)
def star(live_run: Callable[..., LiveRun], request: pytest.FixtureRequest) -> LiveRun:
    """A centre and two that act, which do not end by themselves."""
    run = live_run(endless(request.param))
    run.until(lambda: connected(run) and run.status(0).get("globalSteps", 0) > 4000, "all three train", 200)
    return run


def connected(run: LiveRun) -> bool:
    return sorted(run.status(0).get("inPeers", [])) == [1, 2]


def test_a_killed_actor_returns_and_the_others_do_not_wait_for_it(star: LiveRun) -> None:
    before, steps = star.status(1), star.status(0)["globalSteps"]
    os.kill(star.pid(1), signal.SIGKILL)
    star.until(lambda: star.status(0).get("inPeers") == [2], "the centre notices")
    star.until(lambda: star.status(0).get("globalSteps", 0) > steps + 500, "the centre goes on")
    star.until(lambda: connected(star), "the actor is back")
    star.until(lambda: star.status(1).get("incarnation", 0) > before["incarnation"], "as another process")
    # It counts on where its first life ended: what it did is in the centre's keeping.
    star.until(lambda: star.status(1).get("steps", 0) > before["steps"] // 2, "it goes on counting")


def test_a_killed_centre_comes_back_from_its_checkpoint_and_the_actors_wait_for_it(star: LiveRun) -> None:
    star.until(lambda: connected(star), "all three are there")
    before = star.status(0)
    actors = {rank: star.status(rank)["incarnation"] for rank in (1, 2)}
    states: set[str] = set()
    os.kill(star.pid(0), signal.SIGKILL)

    def is_back() -> bool:
        states.update(star.status(rank).get("state", "") for rank in actors)
        return bool(star.status(0).get("incarnation", 0) > before["incarnation"] and connected(star))

    star.until(is_back, "the centre is back and has its actors")
    assert "waiting" in states
    resumed = star.events(0, "resumed", "seeded", "joined")[-1]
    assert resumed["event"] == "resumed"
    assert resumed["globalSteps"] >= 2000
    star.until(lambda: star.status(0).get("globalSteps", 0) > resumed["globalSteps"] + 1000, "it learns on")
    assert {rank: star.status(rank)["incarnation"] for rank in actors} == actors  # nobody else was started again


def test_a_stopped_run_goes_on_where_the_centre_was_and_ends_for_all(star: LiveRun) -> None:
    """Last in this file: it ends the run."""
    assert star.stop() == 130
    steps = star.events(0, "stopped")[-1]["globalSteps"]
    document = yaml.safe_load(star.file.read_text())
    again = type(star)(star.file.parent, document, "--set", f"spec.totalSteps={steps + 1000}")
    try:
        assert again.process.wait(200) == 0, again.log.read_text()
        assert again.events(0, "resumed")[-1]["globalSteps"] == steps
        for rank in range(3):
            assert again.events(rank, "finished")[-1]["globalSteps"] >= steps + 1000
    finally:
        again.kill()
