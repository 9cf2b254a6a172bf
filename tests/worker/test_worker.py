"""What a worker does whatever its algorithm is, in this process, with an algorithm that a test leads by the hand."""

from __future__ import annotations

import json
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from gala import names
from gala.plan import Address, RunPlan, plan
from gala.spec import parse
from gala_worker import __main__, checkpoint, http, keeper
from gala_worker import worker as module
from gala_worker.algorithms.a2c import Update
from gala_worker.algorithms.algorithm import Algorithm, Setup
from gala_worker.config import WorkerConfig
from gala_worker.gossip.stats import GossipStats
from gala_worker.model_file import load_model
from gala_worker.rollout import Collector
from gala_worker.state import ACTION_GENERATOR, Counters
from gala_worker.worker import Worker
from ports import free_ports
from waiting import eventually

STEPS_PER_UPDATE = 10
WEIGHT = 0.75


class Led(Algorithm):
    """Counts, and calls the test after every step."""

    after_step: Callable[[Led, Counters], None]
    collector: Collector | None = None
    over = False
    closed = False
    is_saved = False

    def has_reached(self, counters: Counters) -> bool:
        return self.over

    def open(self, *, resumes: bool = False) -> None:
        pass

    def begin(self, collector: Collector | None, counters: Counters) -> None:
        self.collector = collector

    def step(self, counters: Counters, *, measure: bool) -> Update | None:
        counters.updates += 1
        counters.steps += STEPS_PER_UPDATE
        counters.progress = {self.setup.me.rank: counters.steps}
        self.after_step(self, counters)
        return None

    def stats(self) -> GossipStats:
        return GossipStats(weight=WEIGHT)

    def saved(self) -> None:
        self.is_saved = True

    def close(self) -> None:
        self.closed = True


class Bench:
    """One worker of a run of two, and what it leaves."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.ports = free_ports(4)
        self.algorithm: Led | None = None
        self.threads: list[int] = []
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(torch, "set_num_threads", self.threads.append)

    def write_plan(self, *, epoch: int = 0, learners: int = 2, **spec: Any) -> RunPlan:
        document = {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {"name": "led"},
            "spec": {
                "environment": {"id": "CartPole-v1", "simulators": 2},
                "learners": learners,
                "totalSteps": 10**9,
                "evaluation": {"everySteps": None},
                "worker": {"gpus": 0},
                **spec,
            },
        }
        made = plan(parse(document), epoch=epoch, uid="uid-1", address=self._address)
        new = self.folder / "plan.new"
        new.write_text(made.to_json())
        new.replace(self.folder / "plan.json")
        return made

    def _address(self, rank: int) -> Address:
        gossip, http = self.ports[2 * rank : 2 * rank + 2]
        return Address(gossip=f"127.0.0.1:{gossip}", http=f"127.0.0.1:{http}")

    def run(
        self, after_step: Callable[[Led, Counters], None], *, rank: int = 0, threads: int = 1, hold: int = 0
    ) -> bool:
        def make(setup: Setup) -> Led:
            self.algorithm = Led(setup)
            self.algorithm.after_step = after_step
            return self.algorithm

        self._monkeypatch.setattr(module, "make_algorithm", make)
        config = WorkerConfig(
            rank=rank,
            plan_file=self.folder / "plan.json",
            output_dir=self.folder / "led",
            threads=threads,
            incarnation=1,
            hold_seconds=hold,
        )
        done = Worker(config).run()
        assert self.algorithm is not None
        assert self.algorithm.closed
        return done

    def learner(self, rank: int = 0) -> Path:
        return self.folder / "led" / names.learner_directory(rank)

    def events(self, rank: int = 0) -> list[dict[str, Any]]:
        lines = (self.learner(rank) / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["kind"] == "event"]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def over_after(updates: int) -> Callable[[Led, Counters], None]:
    def after_step(algorithm: Led, counters: Counters) -> None:
        assert counters.updates <= updates, "it goes on"
        algorithm.over = counters.updates == updates

    return after_step


def test_a_worker_ends_when_its_algorithm_says_that_the_run_is_over_whatever_it_has_counted(bench):
    bench.write_plan()
    assert bench.run(over_after(3))
    assert bench.algorithm.setup.me.rank == 0
    [end] = [event for event in bench.events() if event["event"] in ("finished", "stopped")]
    assert (end["event"], end["globalSteps"]) == ("finished", 3 * STEPS_PER_UPDATE)
    assert (bench.learner() / names.FINAL_DIRECTORY / names.MODEL_FILE).is_file()


def test_a_checkpoint_and_the_final_model_say_how_much_the_learner_weighs(bench):
    made = bench.write_plan()
    assert bench.run(over_after(1))
    model = load_model(bench.learner() / names.FINAL_DIRECTORY / names.MODEL_FILE)
    kept = checkpoint.load_latest(bench.learner() / names.CHECKPOINTS_DIRECTORY, model.schema_hash)
    assert (model.record["weight"], kept.counters["weight"]) == (WEIGHT, WEIGHT)
    assert made.run_name == model.record["run"]


def test_a_checkpoint_holds_the_time_in_training_and_the_state_that_actions_are_drawn_with_and_both_go_on(bench):
    bench.write_plan()
    assert bench.run(over_after(2))
    state = bench.algorithm.collector.generator.get_state()
    model = load_model(bench.learner() / names.FINAL_DIRECTORY / names.MODEL_FILE)
    kept = checkpoint.load_latest(bench.learner() / names.CHECKPOINTS_DIRECTORY, model.schema_hash)
    assert torch.equal(kept.tensors[ACTION_GENERATOR], state)
    assert kept.counters["wallSeconds"] > 0
    assert bench.run(over_after(3))
    assert torch.equal(bench.algorithm.collector.generator.get_state(), state)
    later = checkpoint.load_latest(bench.learner() / names.CHECKPOINTS_DIRECTORY, model.schema_hash)
    assert later.counters["wallSeconds"] > kept.counters["wallSeconds"]


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(16, id="of another kind of device"),  # as long as a CUDA generator's
        pytest.param(torch.Generator().get_state().numel(), id="damaged"),
    ],
)
def test_a_checkpoint_whose_generator_cannot_go_on_is_resumed_with_actions_drawn_anew(bench, caplog, size: int):
    caplog.set_level("INFO")
    bench.write_plan()
    assert bench.run(over_after(2))
    state = bench.algorithm.collector.generator.get_state()
    schema = load_model(bench.learner() / names.FINAL_DIRECTORY / names.MODEL_FILE).schema_hash
    folder = bench.learner() / names.CHECKPOINTS_DIRECTORY
    kept = checkpoint.load_latest(folder, schema)
    kept.tensors[ACTION_GENERATOR] = torch.zeros(size, dtype=torch.uint8)
    checkpoint.save(folder, kept)
    assert bench.run(over_after(3))
    assert caplog.text.count("actions are drawn anew") == 1
    drawn = bench.algorithm.collector.generator.get_state()
    assert drawn.shape == state.shape
    assert not torch.equal(drawn, state)


@pytest.mark.parametrize(
    ("environment", "clipping", "clips"),
    [
        ("CartPole-v1", None, False),
        ("ALE/Pong-v5", None, True),
        ("ale_py:ALE/Pong-v5", None, True),
        ("ALE/Pong-v5", False, False),
    ],
)
def test_rewards_are_clipped_in_atari_games_unless_the_run_says_otherwise(
    bench, monkeypatch, environment, clipping, clips
):
    told = []

    def make(*arguments, **options):
        told.append(options["clip_rewards"])
        return Collector(*arguments, **options)

    monkeypatch.setattr(module, "Collector", make)
    bench.write_plan(environment={"id": environment, "simulators": 2}, hyperparameters={"rewardClipping": clipping})
    assert bench.run(over_after(1))
    assert told == [clips]


@pytest.mark.parametrize(("environment", "expected"), [("CartPole-v1", 1), ("ALE/Pong-v5", 2)])
def test_a_learner_computes_with_as_many_threads_as_its_network_is_worth(bench, environment, expected):
    bench.write_plan(environment={"id": environment, "simulators": 2})
    assert bench.run(over_after(1), threads=2)
    assert bench.threads[0] == expected


def test_a_worker_that_a_newer_plan_leaves_out_keeps_its_state_and_leaves_no_model(bench, monkeypatch):
    monkeypatch.setattr(module, "TICK_SECONDS", 0.0)  # looks at the plan after every step
    bench.write_plan()

    def after_step(algorithm: Led, counters: Counters) -> None:
        if counters.updates == 2:
            bench.write_plan(epoch=1, learners=1)
        assert counters.updates < 1000, "it does not follow the plan"

    assert bench.run(after_step, rank=1)
    assert any(event["event"] == "ring" and event["left"] for event in bench.events(1))
    assert list((bench.learner(1) / names.CHECKPOINTS_DIRECTORY).iterdir())
    assert not (bench.learner(1) / names.FINAL_DIRECTORY).exists()


def test_parameters_that_are_not_finite_displace_no_checkpoint(bench, caplog):
    bench.write_plan(checkpoint={"keep": 1})
    assert bench.run(over_after(1))
    folder = bench.learner() / names.CHECKPOINTS_DIRECTORY
    (before,) = folder.iterdir()

    def diverge(algorithm: Led, counters: Counters) -> None:
        algorithm.setup.flat.vector[0] = float("nan")
        algorithm.over = True

    assert bench.run(diverge)
    assert list(folder.iterdir()) == [before]
    assert "not finite" in caplog.text


def test_an_algorithm_is_told_that_the_end_is_saved_when_it_is(bench, monkeypatch):
    bench.write_plan()
    assert bench.run(over_after(1))
    assert bench.algorithm.is_saved

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeper, "export_model", full)
    with pytest.raises(OSError, match="No space left"):
        bench.run(over_after(2))
    assert bench.algorithm.closed
    assert not bench.algorithm.is_saved


def test_before_its_first_checkpoint_a_worker_says_that_there_was_none(bench):
    address = bench.write_plan().learners[0].address.http
    told = []

    def after_step(algorithm: Led, counters: Counters) -> None:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
            told.append(answer.read().decode())
        algorithm.over = True

    assert bench.run(after_step)
    assert 'gala_events_total{event="checkpoint",rank="0",run="led"} 0.0' in told[0]


class Clock:
    """Stands still, and knows how often it was looked at."""

    def __init__(self) -> None:
        self.now, self.looks = 0.0, 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.now


def test_a_finished_worker_holds_its_result_for_as_long_as_somebody_asks_for_its_status(bench, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(http, "time", clock)
    address = bench.write_plan().learners[0].address.http

    def get(path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://{address}/{path}", timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return 0

    def looked() -> None:
        seen = clock.looks
        eventually(lambda: clock.looks > seen + 2)

    with ThreadPoolExecutor() as aside:
        worker = aside.submit(bench.run, over_after(1), hold=60)
        try:
            eventually(lambda: get("files") == 200)
            for clock.now in (50.0, 100.0, 150.0):
                assert get("status") == 200
            clock.now = 205.0
            looked()
            assert not worker.done()
            assert [get(path) for path in ("files", "readyz", "healthz", "metrics")] == [200] * 4, "nor do these count"
        finally:
            clock.now = 211.0
        assert worker.result(30)


@pytest.mark.parametrize("code", [0, 2, None])
def test_a_learner_that_something_has_ended_by_sys_exit_has_crashed_whatever_the_code_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int | None
) -> None:
    def leave(config: WorkerConfig) -> Worker:
        sys.exit(code)

    monkeypatch.setattr(module, "Worker", leave)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name, value in {"GALA_RANK": "0", "GALA_PLAN_FILE": "plan.json", "GALA_OUTPUT_DIR": "out"}.items():
        monkeypatch.setenv(name, value)
    assert __main__.main() == 1
    assert "in leave" in caplog.text, "the traceback says where"
