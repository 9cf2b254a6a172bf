"""Synchronous A2C under a launcher, with real processes: who dies is waited for, and all stay the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gala import names
from run_documents import lasting

if TYPE_CHECKING:
    from conftest import LiveRun

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


def document(**changes: Any) -> dict[str, Any]:
    environment = {"id": "slow_pole:SlowPole-v0", "simulators": 4}
    return lasting("together", **({"algorithm": "A2C", "environment": environment, "learners": 2} | changes))


def final_model(run: LiveRun, rank: int) -> dict[str, torch.Tensor]:
    return load_file(run.directory / names.learner_directory(rank) / names.FINAL_DIRECTORY / names.MODEL_FILE)


def assert_equal_final_models(run: LiveRun, ranks: range) -> None:
    first, *others = (final_model(run, rank) for rank in ranks)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)


def goes_on(run: LiveRun, rank: int, updates: int = 100) -> None:
    begin = run.status(rank)["updates"]
    run.until(lambda: run.status(rank).get("updates", 0) > begin + updates, f"rank {rank} goes on", 90)


def test_a_run_goes_on_after_the_death_and_the_freezing_of_a_rank_and_all_end_with_the_same_bits(
    live_run: Callable[..., LiveRun],
) -> None:
    run = live_run(document())
    run.until(lambda: all(run.status(rank).get("updates", 0) > 100 for rank in range(2)), "both train")
    for victim in (1, 0):
        survivor = 1 - victim
        pid, incarnation = run.pid(survivor), run.status(victim)["incarnation"]
        progress = run.status(survivor)["globalSteps"]
        os.kill(run.pid(victim), signal.SIGKILL)
        run.until(lambda: run.status(victim).get("incarnation", 0) > incarnation, f"rank {victim} is back", 90)  # noqa: B023
        run.until(lambda: run.status(victim).get("updates", 0) > 0, f"rank {victim} trains", 90)  # noqa: B023
        goes_on(run, survivor)
        assert run.pid(survivor) == pid, "the survivor was restarted"
        run.until(lambda: run.status(victim).get("globalSteps", 0) > progress, f"rank {victim} has gone on too", 30)  # noqa: B023
        assert run.events(survivor, "parted")

    frozen = run.pid(1)
    os.kill(frozen, signal.SIGSTOP)
    try:
        run.until(lambda: run.status(0).get("state") == "waiting", "the other waits", 30)
    finally:
        os.kill(frozen, signal.SIGCONT)
    goes_on(run, 0)
    assert run.pid(1) == frozen

    reasons = [event["reason"] for rank in range(2) for event in run.events(rank, "parted")]
    assert not any("differ" in reason for reason in reasons), reasons

    total = run.status(0)["globalSteps"] + 2_000
    assert run.stop() == 130
    again = type(run)(run.file.parent, document(), "--set", f"spec.totalSteps={total}")
    try:
        assert again.process.wait(150) == 0, again.log.read_text()
        assert_equal_final_models(again, range(2))
        assert again.records(0, "train")[-1]["updates"] > 300
        assert again.records(0, "train")[-1]["globalSteps"] >= total
    finally:
        again.kill()


def test_a_rank_that_waits_for_a_frozen_one_stops_when_it_is_told_to(live_run: Callable[..., LiveRun]) -> None:
    run = live_run(document(gossip={"peerTimeoutSeconds": 30}))
    run.until(lambda: all(run.status(rank).get("updates", 0) > 20 for rank in range(2)), "both train")
    frozen, waiting = run.pid(1), run.pid(0)
    os.kill(frozen, signal.SIGSTOP)
    try:
        run.until(lambda: run.status(0).get("state") == "waiting", "the other waits", 30)
        began = time.monotonic()
        os.kill(waiting, signal.SIGTERM)
        run.until(lambda: not Path(f"/proc/{waiting}/environ").exists(), "it has gone", 60)
        assert time.monotonic() - began < 20, "it has waited for the peer timeout"
    finally:
        os.kill(frozen, signal.SIGCONT)
    run.until(lambda: run.status(0).get("updates", 0) > 0, "it is started again, and goes on", 90)
    goes_on(run, 1, 20)
    assert run.stop() == 130


@pytest.mark.learning
def test_two_synchronous_ranks_reach_475_on_the_pole(live_run: Callable[..., LiveRun]) -> None:
    run = live_run(yaml.safe_load((EXAMPLES / "cartpole-a2c.yaml").read_text()))
    assert run.process.wait(500) == 0, run.log.read_text()
    assert_equal_final_models(run, range(2))
    assert run.card()["globalSteps"] >= 200_000
    run.assert_learned(475, kept=150)


@pytest.mark.learning
def test_one_rank_of_a2c_trains_without_a_process_group(live_run: Callable[..., LiveRun]) -> None:
    run = live_run(document(learners=1, totalSteps=2_000))
    assert run.process.wait(300) == 0, run.log.read_text()
    assert run.card()["globalSteps"] >= 2_000
    assert not run.events(0, "assembled", "parted")


def test_a_finished_worker_ends_without_taking_down_what_threads_still_use() -> None:
    """A thread that waits for gloo to end must not be killed half way: the process would abort."""
    code = (
        "import atexit; from gala_worker.__main__ import leave;"
        "atexit.register(print, 'taken down'); print('said'); leave(7)"
    )
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "said\n", "")
