"""Worker processes as a cluster starts them: each with a folder of its own, holding its result until it is released."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from gala.plan import Address, RunPlan, plan
from gala.spec import parse
from gala_worker import model_file

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

START_SECONDS = 150.0
RANKS = range(3)


class Cluster:
    """Three learners of a run; the plan file is what they have in common."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        sockets = [stack.enter_context(socket.socket()) for _ in range(2 * len(RANKS))]
        for held in sockets:  # as the local launcher does: nobody else gets these ports
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(("127.0.0.1", 0))
        self.ports = [held.getsockname()[1] for held in sockets]
        self.write_plan(epoch=0, learners=3, total_steps=10**9)
        self.workers = {rank: self.start(rank) for rank in RANKS}
        stack.callback(self.kill)

    def write_plan(self, *, epoch: int, learners: int, total_steps: int) -> RunPlan:
        document = {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {"name": "tiny"},
            "spec": {
                "environment": {"id": "CartPole-v1", "simulators": 2},
                "learners": learners,
                "totalSteps": total_steps,
                "evaluation": {"everySteps": None},
                "worker": {"gpus": 0},
            },
        }
        made = plan(parse(document), epoch=epoch, uid="uid-1", address=self.address)
        new = self.folder / "plan.new"
        new.write_text(made.to_json())
        new.replace(self.folder / "plan.json")
        return made

    def address(self, rank: int) -> Address:
        gossip, http = self.ports[2 * rank : 2 * rank + 2]
        return Address(gossip=f"127.0.0.1:{gossip}", http=f"127.0.0.1:{http}")

    def start(self, rank: int) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "GALA_RANK": str(rank),
            "GALA_PLAN_FILE": str(self.folder / "plan.json"),
            "GALA_OUTPUT_DIR": str(self.output(rank)),
            "GALA_THREADS": "1",
            "GALA_HOLD_SECONDS": "600",
        }
        with (self.folder / f"log-{rank}").open("wb") as log:
            return subprocess.Popen([sys.executable, "-P", "-m", "gala_worker"], env=environment, stderr=log)

    def output(self, rank: int) -> Path:
        return self.folder / f"disk-{rank}" / "tiny"

    def request(self, rank: int, path: str, method: str = "GET") -> tuple[int, bytes]:
        """Status and body; (0, b"") while nobody answers."""
        request = urllib.request.Request(f"http://{self.address(rank).http}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except OSError:
            return 0, b""

    def status(self, rank: int) -> dict[str, Any]:
        _, body = self.request(rank, "/status")
        return json.loads(body) if body else {}

    def until(self, condition: Callable[[], object], what: str, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            logs = "".join((self.folder / f"log-{rank}").read_text()[-2000:] for rank in RANKS)
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{logs}"
            time.sleep(0.05)

    def kill(self) -> None:
        for worker in self.workers.values():
            with suppress(ProcessLookupError):
                worker.kill()
            worker.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The tests of this file follow its life, in their order."""
    with ExitStack() as stack:
        made = Cluster(tmp_path_factory.mktemp("cluster"), stack)
        made.until(lambda: all(made.status(rank).get("state") == "training" for rank in RANKS), "all train")
        yield made


def test_while_it_trains_a_worker_gives_no_files_and_cannot_be_released(cluster: Cluster) -> None:
    for path, method in (("/files", "GET"), ("/files/metrics.jsonl", "GET"), ("/release", "POST")):
        assert cluster.request(0, path, method) == (409, b"not yet: this learner is training\n")


def test_a_plan_with_more_steps_is_taken_over_without_a_restart(cluster: Cluster) -> None:
    incarnations = [cluster.status(rank)["incarnation"] for rank in RANKS]
    cluster.write_plan(epoch=1, learners=3, total_steps=2 * 10**9)
    cluster.until(lambda: all(cluster.status(rank).get("totalSteps") == 2 * 10**9 for rank in RANKS), "all know", 30)
    assert [cluster.status(rank)["incarnation"] for rank in RANKS] == incarnations
    assert {cluster.status(rank)["state"] for rank in RANKS} <= {"training", "waiting"}


def test_a_plan_with_fewer_steps_ends_the_run_and_who_is_not_in_it_does_not_hold(cluster: Cluster) -> None:
    cluster.write_plan(epoch=2, learners=2, total_steps=1000)
    cluster.until(lambda: all(cluster.request(rank, "/files")[0] == 200 for rank in range(2)), "both hold", 60)
    assert cluster.workers[2].wait(30) == 0
    for rank in range(2):
        assert cluster.workers[rank].poll() is None
        assert cluster.status(rank)["state"] == "finished"
        assert cluster.request(rank, "/readyz") == (200, b"finished\n")
        assert cluster.request(rank, "/healthz")[0] == 200


def test_a_worker_that_holds_serves_just_its_model_and_its_metrics(cluster: Cluster) -> None:
    listing = json.loads(cluster.request(0, "/files")[1])
    assert {entry["path"] for entry in listing} == {"final/model.safetensors", "final/model.json", "metrics.jsonl"}
    for entry in listing:
        status, content = cluster.request(0, f"/files/{entry['path']}")
        assert (status, len(content)) == (200, entry["bytes"])
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert content == (cluster.output(0) / "learner-0" / entry["path"]).read_bytes()
    for path in ("checkpoints", "../plan.json", "%2e%2e/plan.json", "/etc/passwd", "final"):
        assert cluster.request(0, f"/files/{path}")[0] == 404
    assert json.loads(cluster.request(0, "/files/metrics.jsonl")[1].splitlines()[-1])["event"] == "finished"


def test_a_released_worker_exits_with_0(cluster: Cluster) -> None:
    assert cluster.request(0, "/release", "POST")[0] == 204
    assert cluster.workers[0].wait(30) == 0
    assert cluster.workers[1].poll() is None


def test_a_worker_that_is_terminated_while_it_holds_has_finished_all_the_same(cluster: Cluster) -> None:
    cluster.workers[1].send_signal(signal.SIGTERM)
    assert cluster.workers[1].wait(30) == 0


def test_a_finished_worker_that_is_started_again_holds_the_same_result(cluster: Cluster) -> None:
    model = cluster.output(1) / "learner-1" / "final" / "model.safetensors"
    before = model_file.load_model(model)
    cluster.workers[1] = cluster.start(1)
    cluster.until(lambda: cluster.request(1, "/files")[0] == 200, "it holds again")
    after = model_file.load_model(model)
    assert after.record["globalSteps"] == before.record["globalSteps"]
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())


def handles(process: subprocess.Popen[bytes], number: int) -> bool:
    """Whether a process has a handler for a signal."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(caught >> (number - 1) & 1)


def test_a_worker_that_is_terminated_while_it_starts_ends_at_once_and_quietly(tmp_path: Path) -> None:
    document = {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"name": "tiny"},
        "spec": {"environment": {"id": "CartPole-v1"}, "learners": 1},
    }
    made = plan(parse(document), address=lambda rank: Address(gossip="127.0.0.1:1", http="127.0.0.1:1"))
    # A plan without this worker's rank: it waits for a newer one.
    (tmp_path / "plan.json").write_text(dataclasses.replace(made, learners=()).to_json())
    environment = os.environ | {
        "GALA_RANK": "0",
        "GALA_PLAN_FILE": str(tmp_path / "plan.json"),
        "GALA_OUTPUT_DIR": str(tmp_path / "output"),
    }
    worker = subprocess.Popen([sys.executable, "-P", "-m", "gala_worker"], env=environment, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not handles(worker, signal.SIGTERM):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        worker.send_signal(signal.SIGTERM)
        _, errors = worker.communicate(timeout=10)
    finally:
        worker.kill()
        worker.wait()
    assert worker.returncode == 128 + signal.SIGTERM
    assert errors == b""
