"""What a learner records for the study of gossip is what the report reads, and it never gets in the training's way."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gala import diagnostics as names
from gala.report.read import read_run
from gala.report.traces import Mixed, read_traces
from gala.spec import parse
from gala_worker.diagnostics import Diagnostics, open_diagnostics


def mixing(*messages: tuple[int, int, int]) -> SimpleNamespace:
    """Of (rank, incarnation, version)."""
    peers, incarnations, versions = zip(*messages, strict=True)
    return SimpleNamespace(peers=peers, incarnations=incarnations, versions=versions)


def recorder(run_dir: Path, *, rank: int = 0, incarnation: int = 7, every: int = 2, **options: object) -> Diagnostics:
    directory = run_dir / f"learner-{rank}" / names.DIRECTORY
    return Diagnostics(directory, rank=rank, incarnation=incarnation, every_updates=every, num_parameters=3, **options)  # type: ignore[arg-type]


def snapshots(directory: Path) -> list[int]:
    return sorted(int(path.stem.rpartition("-")[2]) for path in directory.glob("snapshot-*.safetensors"))


def vector(value: float) -> torch.Tensor:
    return torch.full((3,), value)


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    diagnostics = recorder(tmp_path)
    diagnostics.start(4, vector(0.5))
    for version in range(5, 9):
        diagnostics.update(version, version / 10, mixing((1, 9, version - 1), (2, 8, 3)) if version % 2 else None)
        if diagnostics.is_due(version):
            diagnostics.snapshot(version, vector(version), vector(-version))
    diagnostics.close()
    (life,) = read_traces(read_run(tmp_path))[0]
    assert (life.rank, life.incarnation, life.version, life.last_version) == (0, 7, 4, 8)
    assert (life.wire, life.mixing) == ("float32", "average")
    assert life.norms == (0.5, 0.6, 0.7, 0.8)
    assert life.mixed[0] == (Mixed(1, 4, 1 / 3, 9), Mixed(2, 3, 1 / 3, 8))
    assert life.mixed[1] == ()
    np.testing.assert_array_equal(life.start.parameters(), [0.5] * 3)
    assert sorted(life.snapshots) == [6, 8]
    np.testing.assert_array_equal(life.snapshots[6].parameters(), [6.0] * 3)
    np.testing.assert_array_equal(life.snapshots[6].gradient(), [-6.0] * 3)


def test_a_snapshot_holds_what_was_there_then(tmp_path: Path) -> None:
    diagnostics = recorder(tmp_path, every=1)
    parameters, gradient = vector(1.0), vector(2.0)
    diagnostics.start(0, parameters)
    diagnostics.update(1, 0.1, None)
    diagnostics.snapshot(1, parameters, gradient)
    parameters.fill_(9.0)
    gradient.fill_(9.0)
    diagnostics.close()
    (life,) = read_traces(read_run(tmp_path))[0]
    np.testing.assert_array_equal(life.start.parameters(), [1.0] * 3)
    np.testing.assert_array_equal(life.snapshots[1].parameters(), [1.0] * 3)
    np.testing.assert_array_equal(life.snapshots[1].gradient(), [2.0] * 3)


def test_the_interval_doubles_when_there_are_too_many_snapshots(tmp_path: Path) -> None:
    diagnostics = recorder(tmp_path, every=2, max_snapshots=4)
    diagnostics.start(0, vector(0.0))
    for version in range(1, 41):
        diagnostics.update(version, 0.1, None)
        if diagnostics.is_due(version):
            drained(diagnostics)
            diagnostics.snapshot(version, vector(version), vector(0.0))
    diagnostics.close()
    directory = tmp_path / "learner-0" / names.DIRECTORY
    assert diagnostics.interval == 16
    assert snapshots(directory) == [16, 32]


def drained(diagnostics: Diagnostics) -> None:
    """Waits until the writing thread has nothing left to do, so that no snapshot is left out."""
    done = threading.Event()
    diagnostics._jobs.put(done.set)
    assert done.wait(10)


def test_a_new_life_adds_to_the_old_one_and_keeps_to_the_same_limit(tmp_path: Path) -> None:
    for incarnation, first in ((1, 0), (2, 6)):
        diagnostics = recorder(tmp_path, incarnation=incarnation, every=1, max_snapshots=6)
        diagnostics.start(first, vector(first))
        for version in range(first + 1, first + 7):
            diagnostics.update(version, 0.1, None)
            if diagnostics.is_due(version):
                drained(diagnostics)
                diagnostics.snapshot(version, vector(version), vector(1.0))
        diagnostics.close()
    lives = read_traces(read_run(tmp_path))[0]
    assert [(life.incarnation, life.version, life.last_version) for life in lives] == [(1, 0, 6), (2, 6, 12)]
    assert snapshots(tmp_path / "learner-0" / names.DIRECTORY) == [2, 4, 6, 8, 10, 12]


def test_every_update_has_to_be_measured_and_recorded(tmp_path: Path) -> None:
    diagnostics = recorder(tmp_path)
    diagnostics.start(0, vector(0.0))
    with pytest.raises(ValueError, match="measure_update"):
        diagnostics.update(1, None, None)
    diagnostics.update(1, 0.1, None)
    with pytest.raises(ValueError, match="version 3 follows 1"):
        diagnostics.update(3, 0.1, None)
    diagnostics.close()


def test_push_sum_weights_are_not_made_up(tmp_path: Path) -> None:
    diagnostics = recorder(tmp_path, mixing="push-sum")
    diagnostics.start(0, vector(0.0))
    diagnostics.update(1, 0.1, mixing((1, 1, 1)))
    diagnostics.close()
    (life,) = read_traces(read_run(tmp_path))[0]
    assert life.mixing == "push-sum"
    assert np.isnan(life.mixed[0][0].weight)


def test_a_disk_that_fails_costs_the_record_and_not_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    diagnostics = recorder(tmp_path, every=1)
    diagnostics.start(0, vector(0.0))
    drained(diagnostics)
    directory = tmp_path / "learner-0" / names.DIRECTORY
    (directory / names.start_file(7)).unlink()
    trace = directory / names.trace_file(7)
    trace.unlink(missing_ok=True)
    trace.mkdir()  # nothing can be appended to it
    with caplog.at_level(logging.WARNING):
        for version in range(1, 4):
            diagnostics.update(version, 0.1, None)
            diagnostics._next_write = 0.0
            drained(diagnostics)
        diagnostics.close()
    assert "cannot write diagnostics" in caplog.text


def test_a_disk_that_hangs_leaves_out_snapshots_and_does_not_hold_up_the_learner(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    diagnostics = recorder(tmp_path, every=1)
    diagnostics.start(0, vector(0.0))
    answers = threading.Event()
    diagnostics._jobs.put(lambda: bool(answers.wait(30)))
    with caplog.at_level(logging.WARNING):
        for version in range(1, 20):
            diagnostics.update(version, 0.1, None)
            diagnostics.snapshot(version, vector(version), vector(version))
    assert "left out" in caplog.text
    answers.set()
    diagnostics.close()
    (life,) = read_traces(read_run(tmp_path))[0]
    assert len(life.norms) == 19  # the trace is whole
    assert 0 < len(life.snapshots) < 19


def test_a_run_without_diagnostics_has_none(tmp_path: Path) -> None:
    def spec(**diagnostics: object) -> object:
        environment = {"id": "CartPole-v1", "simulators": 1}
        document = {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {"name": "x"},
            "spec": {"environment": environment, "diagnostics": diagnostics},
        }
        return parse(document).spec

    options = {"rank": 0, "incarnation": 1, "num_parameters": 3}
    assert open_diagnostics(spec(), tmp_path, **options) is None  # type: ignore[arg-type]
    on = open_diagnostics(spec(everyUpdates=5), tmp_path, **options)  # type: ignore[arg-type]
    assert on is not None
    assert [version for version in range(1, 11) if on.is_due(version)] == [5, 10]
