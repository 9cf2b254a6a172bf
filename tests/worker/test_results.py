"""The end of a run in a cluster: fetching over HTTP, averaging, serving. The learners are real HTTP servers."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web

from gala.errors import RunError, UsageError
from gala.local.rundir import RunDirectory
from gala.plan import Address, RunPlan, plan
from gala.report.read import read_run
from gala.spec import parse
from gala_worker import evaluate, model_file
from gala_worker.config import ResultsConfig
from gala_worker.downloads import Downloads
from gala_worker.environments import make_simulators
from gala_worker.evaluation import make_evaluation_policy
from gala_worker.flat import FlatState
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.health import Heartbeat
from gala_worker.http import StatusServer
from gala_worker.results import gathering
from gala_worker.results.collecting import Patience, collect
from gala_worker.results.server import Board, ResultsServer
from gala_worker.state import Counters

pytestmark = pytest.mark.timeout(120)

QUICK = Patience(learner_seconds=0.5, nobody_seconds=1.0, first_retry_seconds=0.05, longest_retry_seconds=0.1)
STEPS = 1000


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.stop()


class Learner:
    """A learner's folder, its address, and its HTTP server as `worker` sets it up."""

    def __init__(self, loop: LoopThread, directory: Path, rank: int) -> None:
        self.loop = loop
        self.rank = rank
        self.directory = directory / f"disk-{rank}" / f"learner-{rank}"
        self.directory.mkdir(parents=True)
        self.released = threading.Event()
        self.state = "training"
        self.server = StatusServer(
            "127.0.0.1:0", status=lambda: {"state": self.state}, exposition=bytes, heartbeat=Heartbeat()
        )
        loop.run(self.server.start())
        self.address = Address(gossip="unused:1", http=f"127.0.0.1:{self.server.port}")

    def hold(self) -> None:
        self.state = "finished"
        self.server.hold(Downloads(self.directory), self.released.set)

    def stop(self) -> None:
        self.loop.run(self.server.stop())


class Run:
    """Three learners that have finished, and the folder to fill."""

    def __init__(self, loop: LoopThread, directory: Path) -> None:
        self.directory = directory / "results"
        self.learners = [Learner(loop, directory, rank) for rank in range(3)]
        self.plan = self.make_plan("uid-1")
        self.plan_file = directory / "mounted-plan.json"
        self.plan_file.write_text(self.plan.to_json())
        simulators = make_simulators(self.plan.spec.environment, 1)
        policy = make_evaluation_policy(self.plan.spec, simulators)
        simulators.close()
        self.flat = FlatState(policy, policy.gossiped_buffers())
        self.start = self.flat.vector.clone()
        for learner in self.learners:
            self.export(learner.directory, learner.rank, 0.25 * learner.rank)
            record = {"kind": "event", "event": "finished", "time": 1.7e9 + learner.rank, "globalSteps": STEPS}
            (learner.directory / "metrics.jsonl").write_text(json.dumps(record) + "\n")

    def make_plan(self, uid: str) -> RunPlan:
        document = {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {"name": "tiny"},
            "spec": {
                "environment": {"id": "CartPole-v1"},
                "learners": 3,
                "totalSteps": STEPS,
                "evaluation": {"episodes": 2},
            },
        }
        return plan(parse(document), uid=uid, address=lambda rank: self.learners[rank].address)

    def export(self, directory: Path, rank: int, offset: float, made: RunPlan | None = None) -> None:
        self.flat.vector.copy_(self.start + offset)
        counters = Counters(steps=STEPS, wall_seconds=60.0, progress={0: STEPS})
        model_file.export_model(directory, self.flat, made or self.plan, rank, counters)

    def collect(self, loop: LoopThread) -> dict[int, str]:
        return loop.run(collect(self.plan, self.directory, patience=QUICK))

    def gather(self, address: str = "127.0.0.1:0") -> bool:
        config = ResultsConfig(plan_file=self.plan_file, output_dir=self.directory)
        return gathering.gather(config, address, QUICK)

    def final_vector(self) -> torch.Tensor:
        tensors = model_file.load_model(self.directory / "final" / "model.safetensors").tensors
        return torch.cat([tensors[name].flatten() for name in self.flat.schema.names])


@pytest.fixture
def run(loop: LoopThread, tmp_path: Path) -> Iterator[Run]:
    made = Run(loop, tmp_path)
    yield made
    for learner in made.learners:
        learner.stop()


@pytest.fixture(autouse=True)
def no_server_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In its own process the results' server lives until SIGTERM."""
    loops: list[LoopThread] = []
    servers: list[ResultsServer] = []

    def make_loop(name: str) -> LoopThread:
        loops.append(LoopThread(name))
        return loops[-1]

    def make_server(address: str, board: Board) -> ResultsServer:
        servers.append(ResultsServer(address, board))
        return servers[-1]

    monkeypatch.setattr(gathering, "LoopThread", make_loop)
    monkeypatch.setattr(gathering, "ResultsServer", make_server)
    yield
    for made, server in zip(loops, servers, strict=True):
        made.run(server.stop())
        made.stop()


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        content: bytes = answer.read()
        return content


def test_the_learners_files_are_collected_averaged_and_laid_out_like_a_local_run(run: Run) -> None:
    for learner in run.learners:
        learner.hold()
    assert run.gather()
    assert torch.allclose(run.final_vector(), run.start + 0.25)
    read = read_run(run.directory)
    assert read.card["averaged"] == [0, 1, 2]
    assert read.document["spec"]["environment"]["id"] == "CartPole-v1"
    assert [learner.rank for learner in read.learners] == [0, 1, 2]
    assert [learner.events[0]["event"] for learner in read.learners] == ["finished"] * 3
    record = RunDirectory(run.directory).record()
    assert record is not None
    assert (record.uid, record.state, record.start_time, record.wall_seconds) == ("uid-1", "finished", 1.7e9, 60.0)


def test_a_learner_that_does_not_answer_is_left_out(run: Run, loop: LoopThread) -> None:
    for learner in run.learners:
        learner.hold()
    run.learners[1].stop()
    assert list(run.collect(loop)) == [1]
    assert sorted(path.name for path in run.directory.glob("learner-*")) == ["learner-0", "learner-2"]


def test_a_learner_that_has_not_finished_is_waited_for_a_while(run: Run, loop: LoopThread) -> None:
    run.learners[0].hold()
    run.learners[1].hold()
    assert run.collect(loop) == {2: "it has not finished"}
    run.learners[2].hold()
    assert run.collect(loop) == {}


def test_if_nobody_answers_another_attempt_may_do_better(run: Run, loop: LoopThread) -> None:
    with pytest.raises(RunError, match="no learner gives its final model; rank 0: it has not finished"):
        run.collect(loop)


def test_what_was_fetched_before_an_interruption_is_not_fetched_again(
    run: Run, loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    for learner in run.learners:
        learner.hold()
    run.collect(loop)
    models = sorted(run.directory.glob("learner-*/final/model.safetensors"))
    before = [path.stat().st_mtime_ns for path in models]
    models[1].write_bytes(models[1].read_bytes()[:-1])  # as a kill may leave it
    run.collect(loop)
    after = [path.stat().st_mtime_ns for path in models]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
    assert model_file.load_model(models[1]).record["rank"] == 1


def test_a_learner_whose_model_is_here_already_is_not_left_out_when_it_is_gone(run: Run, loop: LoopThread) -> None:
    for learner in run.learners:
        learner.hold()
    run.collect(loop)
    for learner in run.learners[1:]:
        learner.stop()
    (run.directory / "learner-2" / "final" / "model.safetensors").unlink()
    assert list(run.collect(loop)) == [2]


def test_of_a_learner_whose_files_do_not_all_arrive_there_is_no_model_to_average(run: Run, loop: LoopThread) -> None:
    """Whichever of them it is; its model comes last."""
    content = b"four"
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for damaged in ("metrics.jsonl", "final/model.json"):
        listing = [
            {"path": name, **entry, **({"sha256": "0" * 64} if name == damaged else {})}
            for name in ("final/model.safetensors", "final/model.json", "metrics.jsonl")
        ]
        impostor = Impostor(loop, listing, content)
        run.learners[0].address = impostor.address
        run.plan = run.make_plan("uid-1")
        for learner in run.learners[1:]:
            learner.hold()
        left_out = run.collect(loop)
        impostor.stop()
        assert list(left_out) == [0]
        assert "not what was announced" in left_out[0]
        assert not (run.directory / "learner-0" / "final" / "model.safetensors").exists()


class Impostor:
    """Answers for a learner, as it likes."""

    def __init__(self, loop: LoopThread, listing: list[Any] | str, content: bytes) -> None:
        self._loop = loop
        self._listing = listing if isinstance(listing, str) else json.dumps(listing)
        self._content = content
        app = web.Application()
        app.add_routes([web.get("/files", self._get_files), web.get("/files/{path:.+}", self._get_file)])
        self._runner = web.AppRunner(app)
        loop.run(self._start())
        self.address = Address(gossip="unused:1", http=f"127.0.0.1:{self._runner.addresses[0][1]}")

    async def _get_files(self, request: web.Request) -> web.Response:
        return web.Response(text=self._listing, content_type="application/json")

    async def _get_file(self, request: web.Request) -> web.Response:
        return web.Response(body=self._content)

    async def _start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()

    def stop(self) -> None:
        self._loop.run(self._runner.cleanup())


@pytest.mark.parametrize(
    ("listing", "reason"),
    [
        ([{"path": "../../evil", "bytes": 4, "sha256": ""}], "no final model"),
        ([{"path": "final/model.safetensors", "bytes": 4, "sha256": "0" * 64}], "not what was announced"),
        ([{"path": "final/model.safetensors", "bytes": 2, "sha256": "0" * 64}], "longer than announced"),
        ([{"path": "final/model.safetensors", "bytes": 1 << 60, "sha256": "0" * 64}], "no final model"),
        (["final/model.safetensors", 7, None], "no final model"),
        ("[" * 50_000, "nested too deeply"),
    ],
)
def test_a_learner_that_sends_nonsense_is_left_out_and_nothing_of_it_stays(
    run: Run, loop: LoopThread, listing: list[Any] | str, reason: str
) -> None:
    impostor = Impostor(loop, listing, b"evil")
    run.learners[0].address = impostor.address
    run.plan = run.make_plan("uid-1")
    run.learners[1].hold()
    run.learners[2].hold()
    left_out = run.collect(loop)
    impostor.stop()
    assert list(left_out) == [0]
    assert reason in left_out[0]
    assert not [path for path in run.directory.parent.rglob("*") if "evil" in path.name or "partial" in path.name]
    assert not list(run.directory.glob("learner-0/**/*.*"))


def test_models_of_an_earlier_run_of_that_name_are_not_averaged(run: Run) -> None:
    """They lie on a volume that both runs use."""
    earlier = run.make_plan("uid-0")
    run.export(run.directory / "learner-1", 1, 99.0, earlier)
    run.learners[0].hold()
    run.learners[2].hold()
    assert run.gather()
    assert torch.allclose(run.final_vector(), run.start + 0.25)
    assert read_run(run.directory).card["averaged"] == [0, 2]


def test_learners_that_only_an_earlier_run_of_that_name_had_are_set_aside_with_all_they_have(run: Run) -> None:
    """An earlier run of five, the fourth of which has left no model; rank 5 is one that left this very run."""
    earlier = run.make_plan("uid-0")
    run.directory.mkdir()
    gathering.write_run(run.directory, earlier)
    for rank, made in ((3, None), (4, earlier), (5, run.plan)):
        folder = run.directory / f"learner-{rank}"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "step").touch()
        (folder / "metrics.jsonl").write_text('{"time": 1.6e9}\n')
        if made is not None:
            run.export(folder, rank, 99.0, made)
    for learner in run.learners:
        learner.hold()
    assert run.gather()
    assert [learner.rank for learner in read_run(run.directory).learners] == [0, 1, 2, 5]
    for rank in (3, 4):
        aside = run.directory / "earlier" / f"learner-{rank}.1"
        assert (aside / "checkpoints" / "step").exists()
        assert (aside / "metrics.jsonl").exists()


def test_a_result_that_is_there_is_served_without_asking_the_learners(run: Run) -> None:
    for learner in run.learners:
        learner.hold()
    assert run.gather()
    before = (run.directory / "final" / "card.json").read_bytes()
    for learner in run.learners:
        learner.stop()
    assert run.gather()
    assert (run.directory / "final" / "card.json").read_bytes() == before


def test_models_that_cannot_be_used_are_a_failure_that_no_retry_cures(run: Run) -> None:
    for learner in run.learners:
        (learner.directory / "final" / "model.safetensors").write_bytes(b"not a model")
        learner.hold()
    assert not run.gather()
    record = RunDirectory(run.directory).record()
    assert record is not None
    assert record.state == "failed"


def test_a_folder_that_cannot_be_written_to_is_said_at_once(run: Run) -> None:
    run.directory = run.plan_file / "below-a-file"
    with pytest.raises(UsageError, match="cannot write to"):
        run.gather()


def until(condition: Callable[[], Any], process: subprocess.Popen[bytes], seconds: float = 90.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError, ValueError):
            if found := condition():
                return found
        assert process.poll() is None, "the process has ended"
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


@pytest.mark.processes
def test_the_process_serves_its_status_and_an_archive_that_can_be_evaluated_until_it_is_told_to_end(
    run: Run, tmp_path: Path, held_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"http://127.0.0.1:{held_port}"
    environment = os.environ | {"GALA_PLAN_FILE": str(run.plan_file), "GALA_OUTPUT_DIR": str(run.directory)}
    command = [sys.executable, "-P", "-m", "gala_worker.results", "--listen", f"127.0.0.1:{held_port}"]
    process = subprocess.Popen(command, env=environment)
    try:
        status = until(lambda: json.loads(get(f"{base}/status")), process)
        assert (status["state"], status["role"], status["card"]) == ("collecting", "results", None)
        for path in ("/archive", "/readyz"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                get(base + path)
            assert refused.value.code == {"/archive": 409, "/readyz": 503}[path]
            refused.value.close()
        for learner in run.learners:
            learner.hold()
        until(lambda: get(f"{base}/readyz"), process)
        status = json.loads(get(f"{base}/status"))
        assert status["state"] == "ready"
        assert status["message"] == "the average of 3 of 3 learners"
        assert len(status["sha256"]) == 64
        fetched = tmp_path / "fetched"
        with tarfile.open(fileobj=io.BytesIO(get(f"{base}/archive"))) as archive:
            archive.extractall(fetched, filter="data")
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(20)
    assert code == 0
    assert evaluate.main([str(fetched), "--episodes", "2", "--sampled", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["returns"] == status["card"]["evaluation"]["sampled"]["returns"]
    assert (fetched / "run.json").exists()
    assert not list(fetched.rglob("checkpoints"))


@pytest.mark.processes
def test_a_plan_that_is_missing_is_the_last_line_on_stderr(tmp_path: Path) -> None:
    environment = os.environ | {"GALA_PLAN_FILE": str(tmp_path / "plan.json"), "GALA_OUTPUT_DIR": str(tmp_path)}
    command = [sys.executable, "-P", "-m", "gala_worker.results"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("cannot read the plan")


async def closed(server: asyncio.Server) -> None:
    server.close()


def test_a_half_sent_answer_counts_as_none(run: Run, loop: LoopThread) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[")
        writer.close()

    server = loop.run(asyncio.start_server(hang_up, "127.0.0.1", 0))
    port = server.sockets[0].getsockname()[1]
    run.learners[0].address = Address(gossip="unused:1", http=f"127.0.0.1:{port}")
    run.plan = run.make_plan("uid-1")
    run.learners[1].hold()
    assert sorted(run.collect(loop)) == [0, 2]
    loop.run(closed(server))
