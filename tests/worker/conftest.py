"""A real run for tests: `gala run` as a user starts it, its workers as processes, watched from outside."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ended_run import Run, make_plan
from gala import names
from gala_worker.gossip import standing
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.gossip.memory import MemoryNetwork
from grpc_ring import Ring
from hub_star import Star
from ports import free_ports, hold_port
from waiting import eventually

ENVIRONMENTS = Path(__file__).parents[1] / "support/environments"
ANSWER_SECONDS = 10.0
START_SECONDS = 120.0


@pytest.fixture
def one_compute_thread() -> Iterator[None]:
    """Several would wait for each other at every layer of these small networks, on a machine that is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The folder of a run that has ended, or is to end."""
    return Run(tmp_path, make_plan())


@pytest.fixture(params=["chunks", "loans", "mailboxes"])
def carried(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How messages travel in virtual time: between machines, or between processes of one, aloud or by mailbox."""
    monkeypatch.setattr(MemoryNetwork, "shares_memory", request.param != "chunks")
    monkeypatch.setattr(standing, "KEEPS_ORDER", request.param == "mailboxes")
    return str(request.param)


class LiveRun:
    """A `gala run` in the background. It finds the tests' own environments, such as `slow_pole:SlowPole-v0`."""

    def __init__(self, folder: Path, document: dict[str, Any], *options: str) -> None:
        self.name = str(document["metadata"]["name"])
        self.file = folder / f"{self.name}.yaml"
        self.file.write_text(yaml.safe_dump(document))
        self.directory = folder / "runs" / self.name
        self.log = folder / f"{self.name}.log"
        self.command = [sys.executable, "-P", "-m", "gala", "run", str(self.file), "--output", str(folder / "runs")]
        environment = os.environ | {"PYTHONPATH": str(ENVIRONMENTS), "STEP_SECONDS": "0.001"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, *options],
                env=environment, stdout=log, stderr=log, start_new_session=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def plan(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.directory / "plan.json").read_text())
        return content

    def address(self, rank: int, kind: str) -> tuple[str, int]:
        learner = next(learner for learner in self.plan()["learners"] if learner["rank"] == rank)
        host, _, port = learner["address"][kind].rpartition(":")
        return host, int(port)

    def status(self, rank: int) -> dict[str, Any]:
        """/status of a learner; empty while there is none. One that is there may take its time on a busy machine."""
        with contextlib.suppress(OSError, HTTPException, ValueError, StopIteration):
            host, port = self.address(rank, "http")
            with urllib.request.urlopen(f"http://{host}:{port}/status", timeout=ANSWER_SECONDS) as answer:
                content: dict[str, Any] = json.load(answer)
                return content
        return {}

    def records(self, rank: int, kind: str) -> list[dict[str, Any]]:
        """Lines of a learner's metrics.jsonl of one kind."""
        file = self.directory / f"learner-{rank}" / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]
        return [record for record in records if record["kind"] == kind]

    def events(self, rank: int, *names: str) -> list[dict[str, Any]]:
        return [record for record in self.records(rank, "event") if record["event"] in names]

    def card(self) -> dict[str, Any]:
        """The final model's."""
        content: dict[str, Any] = json.loads((self.directory / names.FINAL_DIRECTORY / names.CARD_FILE).read_text())
        return content

    def assert_learned(self, score: float, kept: float) -> None:
        """An evaluation of the run, greedy, has reached `score`, and the final model plays to `kept` at least.

        Two numbers, since training is random and no two asynchronous runs are alike: one that falls back shortly
        before its end (docs/results/README.md) is not what these tests are to find.
        """
        greedy = [
            record["meanReturn"]
            for learner in self.plan()["learners"]
            for record in self.records(learner["rank"], "evaluation")
            if record["mode"] == "greedy"
        ]
        final = self.card()["evaluation"]["greedy"]["meanReturn"]
        assert max([*greedy, final]) >= score, self.log.read_text()
        assert final >= kept, (greedy, final)

    def pid(self, rank: int) -> int:
        """Of the worker that runs now."""
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                environment = (folder / "environ").read_bytes().split(b"\0") if folder.name.isdigit() else []
                if {f"GALA_RANK={rank}".encode(), f"GALA_OUTPUT_DIR={self.directory}".encode()} <= set(environment):
                    return int(folder.name)
        raise AssertionError(f"learner {rank} does not run:\n{self.log.read_text()}")

    def until(self, condition: Callable[[], object], what: str, seconds: float = START_SECONDS) -> None:
        """Waits for a condition; fails when it does not come true, or the run ends before it does."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s: {what}\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(autouse=True)
def usual_arithmetic() -> Iterator[None]:
    """Learners and players flush denormal numbers to zero, for the whole process: other tests must not inherit it."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def live_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LiveRun]]:
    """Starts runs; whatever still runs in the end is killed."""
    runs: list[LiveRun] = []

    def start(document: dict[str, Any], *options: str) -> LiveRun:
        runs.append(LiveRun(tmp_path_factory.mktemp("run"), document, *options))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()


@pytest.fixture(scope="module")
def loop_thread() -> Iterator[LoopThread]:
    """The asyncio thread that a worker has."""
    thread = LoopThread()
    yield thread
    thread.stop()


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    return free_ports(1)[0]


@pytest.fixture
def held_port() -> Iterator[int]:
    """A port that nobody else gets before a process that takes its time listens on it."""
    with contextlib.ExitStack() as stack:
        yield hold_port(stack)


@pytest.fixture
def nothing_is_left_on_the_loop(loop_thread: LoopThread, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Looks at it when everything that was set up after this fixture is gone."""
    yield
    # gRPC reports what it could not do, such as ending a stream properly, in its log only.
    assert not [record for record in caplog.records if record.levelname == "ERROR"]

    async def others() -> int:
        return len(asyncio.all_tasks()) - 1

    eventually(lambda: loop_thread.run(others()) == 0)


@pytest.fixture
def ring(loop_thread: LoopThread, nothing_is_left_on_the_loop: None) -> Iterator[Callable[..., Ring]]:
    """Makes peers of one run in this process, over gRPC; see `grpc_ring`."""
    with contextlib.ExitStack() as stack:

        def make(learners: int, **options: Any) -> Ring:
            made = Ring(loop_thread, learners, **options)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def hub_star(loop_thread: LoopThread, nothing_is_left_on_the_loop: None) -> Iterator[Callable[..., Star]]:
    """Makes hubs with actors; all are closed in the end."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **options: Star(loop_thread, stack, *arguments, **options)
