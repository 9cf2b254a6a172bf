"""GALA-PPO under a launcher: gossip around another local learner than A2C."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from conftest import LiveRun

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


@pytest.mark.learning
def test_three_ppo_learners_reach_475_on_the_pole(live_run: Callable[..., LiveRun]) -> None:
    run = live_run(yaml.safe_load((EXAMPLES / "cartpole-ppo.yaml").read_text()))
    assert run.process.wait(500) == 0, run.log.read_text()
    card = run.card()
    assert card["globalSteps"] >= 200_000
    assert sorted(card["averaged"]) == [0, 1, 2]
    for rank in range(3):
        assert run.records(rank, "train")[-1]["gossip"]["mixes"] > 20
    run.assert_learned(475, kept=150)
