"""Every experiment, end to end at toy size: real workers, real files, a real report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

PAPER = Path(__file__).parents[2] / "benchmarks" / "paper"
EXPERIMENTS = ("convergence", "curves", "epsilon-ball", "gossip", "gradient-correlation", "throughput")


def gala(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-P", "-m", "gala", "experiment", *arguments]
    completed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=850, check=False)
    logs = "\n".join(log.read_text() for log in folder.glob("runs/*/logs/*.txt"))
    assert completed.returncode == 0, completed.stdout + completed.stderr + logs
    return completed.stdout


def index(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / "runs" / name / "experiment.json").read_text()))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_of_the_paper_runs_to_its_figures(name: str, tmp_path: Path) -> None:
    text = gala(tmp_path, str(PAPER / f"{name}.yaml"), "--toy")
    assert "runs are done" in text
    (folder,) = [path.parent for path in tmp_path.glob("runs/*/experiment.json")]
    written = index(tmp_path, folder.name)
    assert {run["state"] for run in written["runs"]} == {"finished"}
    for run in written["runs"]:
        assert run["steps"] >= run["totalSteps"]
        assert run["wallSeconds"] > 0
        assert (folder / run["name"] / "final" / "card.json").exists()
    assert (folder / "report.html").stat().st_size > 1000
    if name != "curves":
        return
    # The same runs by another name, and the same figures: nothing is left to be run.
    text = gala(tmp_path, str(PAPER / "scores.yaml"), "--toy")
    assert f"{len(written['runs'])} of them done already" in text
    assert index(tmp_path, folder.name)["figures"] == ["curves", "scores"]
    assert (folder / "report.html").stat().st_size > 1000
