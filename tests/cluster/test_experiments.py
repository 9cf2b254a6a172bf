"""`gala experiment --cluster` on a real cluster that has room for two runs at a time."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gala import names

SECONDS = 450
STARTS, NO_ROOM = " starts", "waits for room in the cluster"

EXPERIMENT = {
    "apiVersion": "gala.dev/v1alpha1",
    "kind": "GalaExperiment",
    "metadata": {"name": "poles"},
    "spec": {
        "description": "CartPole, small.",
        "figures": ["curves", "scores"],
        "base": {
            "environment": {"id": "CartPole-v1", "simulators": 2},
            "learners": 2,
            "totalSteps": 10_000,
            "evaluation": {"everySteps": None, "episodes": 2},
            # Four pods of these leave so little of the node's 2 cores that no fifth finds room, nor anything much
            # larger than the pod that makes a final model while the learners wait for it.
            "worker": {"gpus": 0, "resources": {"requests": {"cpu": "450m", "memory": "300Mi"}}},
        },
        "matrix": {"algorithm": ["GALA-A2C", "A2C"], "seed": [1, 2, 3]},
        "exclude": [{"when": {"algorithm": "A2C", "seed": 3}}],
    },
}


@pytest.mark.timeout(2 * SECONDS, func_only=True)
@pytest.mark.usefixtures("operator")
def test_an_experiment_fills_the_cluster_outlives_its_command_and_is_fetched_whole(namespace, until, tmp_path):
    if not namespace.cluster.node:
        pytest.skip("needs a cluster whose size is known")
    (tmp_path / "poles.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    log = tmp_path / "first.txt"

    def begin(log: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-P", "-m", "gala", "experiment", "poles.yaml", "--cluster", "-n", namespace.name]
        with log.open("wb") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, cwd=tmp_path, env=namespace.cluster.environment)

    first = begin(log)
    try:
        until("the cluster is full", lambda: NO_ROOM in log.read_text(), 120)
        there = namespace.items("galaruns", f"{names.LABEL_EXPERIMENT}=poles")
        assert {run["metadata"]["labels"]["experiment.gala.dev/algorithm"] for run in there} == {"gala-a2c", "a2c"}
        assert len(there) < 5, "no more is submitted to a cluster that is full"
        first.send_signal(signal.SIGINT)
        assert first.wait(60) == 130, log.read_text()
    finally:
        first.kill()
        first.wait()
    assert "the runs in the cluster go on" in log.read_text()
    assert namespace.items("galaruns")

    log = tmp_path / "second.txt"
    second = begin(log)
    try:
        until("the second command ends", lambda: second.poll() is not None, SECONDS)
        assert second.returncode == 0, log.read_text()
    finally:
        second.kill()
        second.wait()
    assert STARTS in log.read_text(), "the last one when there was room"
    until("what is fetched is deleted from the cluster", lambda: not namespace.items("galaruns"))

    folder = tmp_path / "runs/poles"
    entries = json.loads((folder / "experiment.json").read_text())["runs"]
    assert [entry["state"] for entry in entries] == ["finished"] * 5
    assert all(entry["steps"] >= 10_000 for entry in entries)
    for entry in entries:
        assert (folder / entry["name"] / names.FINAL_DIRECTORY / names.MODEL_FILE).is_file()
    assert "5 of 5 runs have ended" in (folder / "report.html").read_text()
