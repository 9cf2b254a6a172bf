"""`gala run` from end to end, with real workers: what a user gets, and what a user's mistake gets."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from safetensors.torch import load_file

if TYPE_CHECKING:
    from conftest import LiveRun

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


def document(name: str, environment: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"name": name},
        "spec": {"environment": environment, "learners": 2, "worker": {"gpus": 0}, **spec},
    }


@pytest.mark.learning
def test_three_learners_reach_475_on_the_pole(live_run: Callable[..., LiveRun]) -> None:
    run = live_run(yaml.safe_load((EXAMPLES / "cartpole.yaml").read_text()))
    assert run.process.wait(240) == 0, run.log.read_text()
    card = run.card()
    assert card["globalSteps"] >= 200_000
    assert sorted(card["averaged"]) == [0, 1, 2]
    for rank in range(3):
        last = run.records(rank, "train")[-1]
        # of hundreds of updates: each takes some milliseconds only, and cores are fewer than threads
        assert last["gossip"]["mixes"] > 50
        assert last["gossip"]["relativeDisagreement"] < 0.5
    periodic = [record for rank in range(3) for record in run.records(rank, "evaluation")]
    assert {record["mode"] for record in periodic} == {"greedy", "sampled"}
    run.assert_learned(475, kept=150)
    assert (run.directory / "report.html").read_text().startswith("<!doctype html>")
    assert "gala evaluate" in run.log.read_text()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"id": "ALE/Pnog-v5"}, ["ALE/Pnog-v5", "Pong"]),
        ({"id": "CartPoel-v1"}, ["CartPoel-v1", "CartPole"]),
        ({"id": "no.such.module:Thing-v0"}, ["no.such.module"]),
        ({"id": "CartPole-v1", "kwargs": {"gravitas": 3}}, ["gravitas"]),
    ],
)
def test_an_environment_that_cannot_be_made_is_one_line_and_exit_code_2(
    live_run: Callable[..., LiveRun], environment: dict[str, Any], words: list[str]
) -> None:
    run = live_run(document("mistake", environment))
    assert run.process.wait(120) == 2
    text = run.log.read_text()
    assert "Traceback" not in text
    assert all(word in text for word in words), text


def test_a_user_s_own_environment_trains_from_the_current_directory(
    live_run: Callable[..., LiveRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mygame.py").write_text(
        """
import gymnasium
import numpy as np


class Corridor(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(4990, 5010, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = 0.0
        return np.array([5000 + self.x], np.float32), {}

    def step(self, action):
        self.x += 0.3 * float(action[0])
        return np.array([5000 + self.x], np.float32), 1.0 - abs(self.x), abs(self.x) > 1, False, {}


gymnasium.register("Corridor-v0", Corridor, max_episode_steps=20)
"""
    )
    monkeypatch.chdir(tmp_path)
    run = live_run(
        document(
            "mine",
            {"id": "mygame:Corridor-v0", "simulators": 4},
            totalSteps=4000,
            policy={"recurrent": True},
            gossip={"maxStaleness": 0, "precision": "bfloat16", "peerTimeoutSeconds": 5},
            topology={"type": "Complete"},
        )
    )
    assert run.process.wait(120) == 0, run.log.read_text()
    last = run.records(0, "train")[-1]
    assert last["gossip"]["mixes"] > 10
    assert last["gossip"]["stalenessUpdates"] <= 1
    # Around 5,000 the steps of bfloat16 are 32 wide: messages of such a run are float32 whatever it asks for.
    model = load_file(run.directory / "final" / "model.safetensors")
    assert abs(float(model["normalisation.mean"]) - 5000) < 1
    assert 0 < float(model["normalisation.variance"]) < 2


def test_a_synchronous_learner_waits_for_a_frozen_neighbour_for_the_peer_timeout_and_then_goes_on(
    live_run: Callable[..., LiveRun],
) -> None:
    gossip = {"maxStaleness": 0, "peerTimeoutSeconds": 4}
    run = live_run(
        document("lockstep", {"id": "slow_pole:SlowPole-v0", "simulators": 4}, totalSteps=10**9, gossip=gossip)
    )
    run.until(lambda: all(run.status(rank).get("updates", 0) > 50 for rank in range(2)), "both train")
    frozen = run.pid(1)
    os.kill(frozen, signal.SIGSTOP)
    try:
        run.until(lambda: run.status(0).get("state") == "waiting", "it waits", 60)
        updates = run.status(0)["updates"]
        run.until(lambda: run.status(0).get("updates", 0) > updates + 50, "it goes on alone", 60)
    finally:
        os.kill(frozen, signal.SIGCONT)
    run.until(lambda: run.status(0).get("inPeers") == [1] and run.status(1).get("inPeers") == [0], "both are back", 60)
    assert run.stop() == 130
