"""`gala experiment` on this machine from the outside: real launchers with fake workers, stopped, killed and gone on."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import waiting
from gala.local.interrupts import ECHO_SECONDS
from gala.local.rundir import RunDirectory
from local_machine import FAKE_GALA, alive, end_all

# Patient: each run is three processes that start, one after the other, and others may be busy.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

eventually = functools.partial(waiting.eventually, seconds=120.0)
DEFINITION = """
apiVersion: gala.dev/v1alpha1
kind: GalaExperiment
metadata: {name: poles}
spec:
  figures: [curves]
  base:
    environment: {id: CartPole-v1, simulators: 4}
    learners: 1
    totalSteps: 1000
    runPolicy: {backoffLimit: 0}
  matrix:
    seed: [1..3]
"""


class Bench:
    """A working directory with a definition in it, and everything that is started there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.experiment = folder / "runs" / "poles"
        self._processes: list[subprocess.Popen[str]] = []
        self.define()

    def define(self, old: str = "", new: str = "") -> None:
        """Write the definition, with a piece replaced."""
        (self.folder / "poles.yaml").write_text(DEFINITION.replace(old, new) if old else DEFINITION)

    def gala(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `gala experiment poles.yaml ARGUMENTS`."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        command = [sys.executable, str(FAKE_GALA), "experiment", "poles.yaml", *arguments]
        process = subprocess.Popen(command, cwd=self.folder, text=True, **options)
        self._processes.append(process)
        return process

    def ends(self, process: subprocess.Popen[str], code: int) -> str:
        """Wait for the end; returns all that was written."""
        out, err = process.communicate(timeout=200)
        assert process.returncode == code, out + err
        return out + err

    def script(self, who: str, *lines: str) -> None:
        """What the fake workers of a run (or of "all") do from now on."""
        path = self.folder / "runs" / f"fake-{who}"
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".new").write_text("\n".join(lines))
        path.with_suffix(".new").rename(path)

    def notes(self, run: str, word: str = "started") -> list[dict[str, Any]]:
        """What a run's worker wrote down, oldest first."""
        try:
            lines = (self.experiment / run / "learner-0" / "notes.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [note for note in map(json.loads, lines) if note["word"] == word]

    def started(self, *runs: str, times: int = 1) -> None:
        eventually(lambda: all(len(self.notes(run)) >= times for run in runs))

    def states(self) -> dict[str, str]:
        """Run -> state, as the index has them."""
        return {run["name"]: run["state"] for run in self.index()["runs"]}

    def index(self) -> dict[str, Any]:
        return dict(json.loads((self.experiment / "experiment.json").read_text()))

    def clean_up(self) -> None:
        end_all(self._processes, self.folder)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.clean_up()


def test_all_runs_are_made_one_after_another_and_only_once(bench: Bench) -> None:
    bench.script("all", "finish")
    text = bench.ends(bench.gala(), 0)
    assert bench.states() == dict.fromkeys(["poles-s1", "poles-s2", "poles-s3"], "finished")
    assert text.index("poles-s1 is done") < text.index("poles-s2 starts"), "one after another"
    assert "all 3 runs are done" in text
    assert "  report          not in this test\n  figures         curves" in text
    assert [run["sideBySide"] for run in bench.index()["runs"]] == [1, 1, 1]
    assert (bench.experiment / "experiment.yaml").read_text() == DEFINITION

    text = bench.ends(bench.gala(), 0)
    assert "3 of them done already" in text
    assert [len(bench.notes(f"poles-s{seed}")) for seed in (1, 2, 3)] == [1, 1, 1]
    assert [run["sideBySide"] for run in bench.index()["runs"]] == [1, 1, 1], "what was noted then is not forgotten"


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(bench: Bench) -> None:
    bench.script("poles-s1", "finish")
    process = bench.gala()
    bench.started("poles-s2")
    process.send_signal(signal.SIGINT)
    text = bench.ends(process, 130)
    assert "1 of 3 runs are done; the same command goes on" in text
    assert len(bench.notes("poles-s2", "stopped")) == 1, "it has written its checkpoint"
    assert bench.states() == {"poles-s1": "finished", "poles-s2": "interrupted", "poles-s3": "waiting"}

    bench.script("all", "finish")
    text = bench.ends(bench.gala(), 0)
    assert "poles-s2 resumes" in text
    assert [len(bench.notes(f"poles-s{seed}")) for seed in (1, 2, 3)] == [1, 2, 1]
    assert set(bench.states().values()) == {"finished"}


def test_an_experiment_that_is_killed_leaves_nobody_behind_and_goes_on(bench: Bench) -> None:
    process = bench.gala("--jobs", "2")
    bench.started("poles-s1", "poles-s2")
    pids = [bench.notes(run)[0]["pid"] for run in ("poles-s1", "poles-s2")]
    process.kill()
    process.wait()
    # At once: their launchers may still be on their way to their end, and hold the runs.
    bench.script("all", "finish")
    bench.ends(bench.gala(), 0)
    assert set(bench.states().values()) == {"finished"}
    eventually(lambda: not any(map(alive, pids)))


def test_a_second_ctrl_c_does_not_wait_for_checkpoints(bench: Bench) -> None:
    bench.script("all", "deaf")
    process = bench.gala()
    bench.started("poles-s1")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    next(line for line in process.stdout if "a second Ctrl-C kills them" in line)
    time.sleep(ECHO_SECONDS)  # as a hand would: right after the first it is the same one
    process.send_signal(signal.SIGINT)
    bench.ends(process, 130)
    pid = bench.notes("poles-s1")[0]["pid"]
    eventually(lambda: not alive(pid))


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(bench: Bench) -> None:
    bench.script("all", "finish")
    bench.script("poles-s2", "mistake error: there is no such environment")
    text = bench.ends(bench.gala(), 1)
    assert "error: 1 of 3 runs have failed, 2 are done; the same command tries again" in text
    assert "error: poles-s2: there is no such environment" in text
    assert bench.states() == {"poles-s1": "finished", "poles-s2": "failed", "poles-s3": "finished"}
    assert bench.index()["runs"][1]["reason"] == "there is no such environment"

    bench.script("poles-s2", "finish")
    bench.ends(bench.gala(), 0)
    assert bench.states()["poles-s2"] == "finished"


def test_a_changed_definition_is_noticed(bench: Bench) -> None:
    bench.script("all", "finish")
    bench.ends(bench.gala("--set", "spec.matrix.seed=[1]"), 0)
    bench.define("totalSteps: 1000", "totalSteps: 2000")
    text = bench.ends(bench.gala(), 2)
    assert "error: 1 of 3 runs are there with another definition; --force starts those over" in text
    assert "error: poles-s1: spec.totalSteps 1000 -> 2000" in text
    assert len(bench.notes("poles-s1")) == 1, "nothing has been started"
    assert bench.states() == {"poles-s1": "finished"}, "nothing has been written"

    bench.ends(bench.gala("--force"), 0)
    assert "totalSteps: 2000" in (bench.experiment / "poles-s1" / "galarun.yaml").read_text()
    text = bench.ends(bench.gala("--force"), 0)
    assert "3 of them done already" in text, "--force makes over what has changed, and nothing else"


def test_more_seeds_add_runs_and_fewer_leave_them(bench: Bench) -> None:
    bench.script("all", "finish")
    bench.ends(bench.gala(), 0)
    bench.ends(bench.gala("--set", "spec.matrix.seed=[1..4]"), 0)
    assert [len(bench.notes(f"poles-s{seed}")) for seed in (1, 2, 3, 4)] == [1, 1, 1, 1]
    text = bench.ends(bench.gala("--set", "spec.matrix.seed=[2]"), 0)
    assert "3 runs there are not of this definition, and are left as they are: poles-s1, poles-s3, poles-s4" in text
    assert list(bench.states()) == ["poles-s2"]


def test_runs_side_by_side_say_so_and_share_out_the_cores(bench: Bench) -> None:
    process = bench.gala("--jobs", "2")
    bench.started("poles-s1", "poles-s2")
    cores = [os.sched_getaffinity(bench.notes(run)[0]["pid"]) for run in ("poles-s1", "poles-s2")]
    if len(os.sched_getaffinity(0)) > 1:
        assert not cores[0] & cores[1]
    assert not bench.notes("poles-s3")
    bench.script("all", "finish")
    text = bench.ends(process, 0)
    assert "up to 2 runs share this machine" in text
    assert [run["sideBySide"] for run in bench.index()["runs"]] == [2, 2, 2]


def test_a_listing_touches_nothing(bench: Bench) -> None:
    text = bench.ends(bench.gala("--list"), 0)
    assert "poles-s3" in text
    assert "3 runs, 3,000 decisions in all: 0 done, 0 running, 3 left, 0 failed; figures: curves" in text
    assert not bench.experiment.exists()


def test_only_one_command_works_in_a_folder(bench: Bench) -> None:
    process = bench.gala()
    bench.started("poles-s1")
    assert "another gala experiment is at work" in bench.ends(bench.gala(), 2)
    process.send_signal(signal.SIGINT)
    bench.ends(process, 130)


def test_a_run_that_somebody_else_is_at_work_in_is_waited_for_aloud(bench: Bench) -> None:
    bench.script("all", "finish")
    (bench.experiment / "poles-s1").mkdir(parents=True)
    other = RunDirectory(bench.experiment / "poles-s1")
    assert other.acquire()
    log = bench.folder / "log.txt"
    with log.open("w") as file:
        process = bench.gala("--set", "spec.matrix.seed=[1]", stdout=file)
        eventually(lambda: "0 of 1 runs done" in log.read_text())
        other.release()
        assert process.wait(120) == 0
    text = log.read_text()
    assert text.count("poles-s1: another gala run is at work in it; waiting") == 1
    assert text.index("at work in it") < text.index("0 of 1 runs done") < text.index("poles-s1 starts")


def test_a_terminal_gets_a_table(bench: Bench) -> None:
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = bench.gala(stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    seen = b""
    while b"poles-s1: 0 of 1,000 decisions" not in seen:
        seen += os.read(controller, 65536)
    bench.script("all", "finish")
    with contextlib.suppress(OSError):
        while chunk := os.read(controller, 65536):
            seen += chunk
    os.close(controller)
    assert process.wait(120) == 0
    assert b"poles: 3 runs" in seen
    assert b"3 of 3 runs done" in seen


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--small"], "error: spec.small: is not there"),
        (["--small", "--toy"], "error: --small and --toy: choose one"),
        (["--namespace", "x"], "go with --cluster"),
        (["--set", "spec.base.totalSteps=0"], "error: spec.base.totalSteps: must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line_each(bench: Bench, arguments: list[str], expected: str) -> None:
    text = bench.ends(bench.gala(*arguments), 2)
    assert expected in text
    assert "Traceback" not in text
    assert not bench.experiment.exists()
