"""metrics.jsonl, event files and Prometheus text: what is written, and that training never notices."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from gala_worker import metrics
from gala_worker.evaluation import EvaluationResult
from gala_worker.metrics import JsonLines, MetricsWriter

TRAIN = {
    "epoch": 1,
    "updates": 40,
    "skippedUpdates": 2,
    "steps": 3200,
    "globalSteps": 6400,
    "stepsPerSecond": 1234.5,
    "meanReturn": -20.5,
    "episodes": 7,
    "meanEpisodeSteps": 900.0,
    "policyLoss": 0.01,
    "valueLoss": 0.2,
    "entropy": 1.7,
    "gradientNorm": 0.4,
    "learningRate": 7e-4,
    "updateNorm": 0.05,
    "parameterNorm": 31.0,
    "gossip": {
        "mixes": 30,
        "skips": 10,
        "seconds": 0.5,
        "stalenessUpdates": 1,
        "stalenessSeconds": 0.04,
        "disagreement": 0.7,
        "relativeDisagreement": 0.02,
        "edges": [
            {"peer": 1, "direction": "in", "state": "live", "messages": 31, "bytes": 99, "replaced": 2, "refused": 0},
            {"peer": 1, "direction": "out", "state": "live", "messages": 33, "bytes": 98, "replaced": 3, "refused": 1},
        ],
    },
}
RESULT = EvaluationResult(environment_id="ALE/Pong-v5", mode="greedy", returns=(-21.0, -19.0), episode_steps=(800, 900))


@pytest.fixture
def make_writer(tmp_path: Path) -> Iterator[Callable[..., MetricsWriter]]:
    writers = []

    def make(directory: Path = tmp_path, **options: Any) -> MetricsWriter:
        writers.append(
            MetricsWriter(directory, run="pong", rank=2, incarnation=5, wall_seconds=lambda: 12.5, **options)
        )
        return writers[-1]

    yield make
    for writer in writers:
        writer.close()


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_every_record_is_one_stamped_line_in_order(tmp_path: Path, make_writer) -> None:
    writer = make_writer(clock=lambda: 1_700_000_000.0)
    writer.event("started", device="cpu")
    writer.train(TRAIN)
    writer.evaluation(RESULT, global_steps=6400)
    writer.close()
    started, train, evaluation = lines(tmp_path)
    stamp = {"time": 1_700_000_000.0, "wallSeconds": 12.5, "rank": 2, "incarnation": 5}
    assert started == {"kind": "event", "event": "started", "device": "cpu", **stamp}
    assert train == {"kind": "train", **stamp, **TRAIN}
    assert evaluation == {
        "kind": "evaluation",
        **stamp,
        "globalSteps": 6400,
        "mode": "greedy",
        "episodes": 2,
        "meanReturn": -20.0,
        "stdReturn": 1.0,
        "returns": [-21.0, -19.0],
        "meanEpisodeSteps": 850.0,
        "humanNormalised": pytest.approx((-20 + 20.7) / 35.3),
    }


def test_numbers_that_json_cannot_say_become_null_and_arrays_become_lists(tmp_path: Path, make_writer) -> None:
    writer = make_writer(tensorboard=False)
    writer.train(
        {"policyLoss": math.nan, "entropy": np.float32(0.5), "x": torch.tensor(2.0), "y": np.arange(2), "z": -math.inf}
    )
    writer.close()
    (record,) = lines(tmp_path)
    assert record["policyLoss"] is None
    assert record["z"] is None
    assert (record["entropy"], record["x"], record["y"]) == (0.5, 2.0, [0, 1])


def test_a_restarted_learner_appends_and_cuts_off_the_line_that_a_kill_left_unfinished(
    tmp_path: Path, make_writer
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "event", "event": "started"}\n{"kind": "tra')
    writer = make_writer()
    writer.event("resumed")
    writer.close()
    assert [record["event"] for record in lines(tmp_path)] == ["started", "resumed"]


def test_a_file_that_is_one_unfinished_line_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind"')
    JsonLines(path).close()
    assert path.read_text() == ""


def test_a_full_disk_is_logged_once_and_does_not_reach_the_training_loop(
    make_writer, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make_writer(tensorboard=False)
    writer._sinks[:] = [metrics._GuardedSink("metrics.jsonl", FullDisk)]
    with caplog.at_level(logging.INFO):
        for _ in range(20):
            writer.train(TRAIN)
        writer.close()
    assert caplog.text.count("training goes on without it") == 1
    assert "No space left on device" in caplog.text


class FullDisk:
    """The device on which every write fails as on a full disk."""

    def __init__(self) -> None:
        self.descriptor = os.open("/dev/full", os.O_WRONLY)

    def write(self, record: object) -> None:
        os.write(self.descriptor, b"x")

    def close(self) -> None:
        os.close(self.descriptor)


def test_writing_goes_on_when_the_disk_has_room_again(
    tmp_path: Path, make_writer, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "learner-2"
    blocked.write_text("in the way")
    sink = metrics._GuardedSink("metrics.jsonl", lambda: JsonLines(blocked / "metrics.jsonl"))
    with caplog.at_level(logging.INFO):
        sink.write({"a": 1})
        blocked.unlink()
        sink.write({"a": 2})
    sink.close()
    assert (blocked / "metrics.jsonl").read_text() == '{"a": 2}\n'
    assert "again" in caplog.text


def test_a_disk_that_hangs_costs_records_and_never_time(make_writer, monkeypatch, caplog) -> None:
    monkeypatch.setattr(metrics, "MAX_QUEUED", 3)
    release = threading.Event()
    reached = threading.Event()

    class Hanging:
        def write(self, record: object) -> None:
            reached.set()
            assert release.wait(30)

        def close(self) -> None:
            pass

    writer = make_writer(tensorboard=False)
    writer._sinks[:] = [metrics._GuardedSink("metrics.jsonl", Hanging)]
    writer.train(TRAIN)
    assert reached.wait(30)
    for _ in range(10):
        writer.train(TRAIN)
    assert "dropped" in caplog.text
    assert re.search(r"^gala_metrics_dropped_total\{.*\} 7\.0$", writer.exposition().decode(), re.MULTILINE)
    writer.close(timeout_seconds=0.01)
    release.set()
    writer._thread.join(30)
    assert not writer._thread.is_alive()


def test_records_after_close_are_ignored(tmp_path: Path, make_writer) -> None:
    writer = make_writer()
    writer.event("stopped")
    writer.close()
    writer.close()
    writer.event("too late")
    assert [record["event"] for record in lines(tmp_path)] == ["stopped"]


def test_tensorboard_reads_the_curves(tmp_path: Path, make_writer) -> None:
    writer = make_writer()
    writer.train(TRAIN)
    writer.train(TRAIN | {"globalSteps": 12800, "meanReturn": None})
    writer.evaluation(RESULT, global_steps=6400)
    writer.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    events = list(EventFileLoader(str(file)).Load())
    assert events[0].file_version == "brain.Event:2"
    points = [(e.step, {v.tag for v in e.summary.value}) for e in events[1:]]
    assert [step for step, _ in points] == [6400, 12800, 6400]
    assert {"return/training", "gossip/disagreement", "learning/entropy"} <= points[0][1]
    assert "return/training" not in points[1][1]
    assert points[2][1] == {"return/evaluation_greedy"}


def test_metrics_import_no_tensorflow_even_where_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from gala_worker.event_file import EventFile\n"
        "file = EventFile(Path(sys.argv[1]) / 'tb')\n"
        "file.write({'kind': 'train', 'time': 1.0, 'globalSteps': 1, 'entropy': 0.5})\n"
        "file.close()\n"
        "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path)], check=True, timeout=50)


def samples(writer: MetricsWriter) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = writer.exposition().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_prometheus_gets_the_latest_values_with_run_and_rank(make_writer) -> None:
    writer = make_writer(tensorboard=False)
    own = {("run", "pong"), ("rank", "2")}
    assert not any(name.startswith("gala_updates") for name, _ in samples(writer))
    writer.train(TRAIN)
    writer.train(TRAIN | {"updates": 41, "meanReturn": None})
    writer.evaluation(RESULT, global_steps=6400)
    writer.expect("checkpoint")
    writer.event("peer-gone", peer=1)
    writer.expect("peer-gone")
    writer.event("peer-gone", peer=3)
    found = samples(writer)
    assert found["gala_updates_total", frozenset(own)] == 41
    assert found["gala_skipped_updates_total", frozenset(own)] == 2
    assert found["gala_steps_per_second", frozenset(own)] == 1234.5
    assert ("gala_return_mean", frozenset(own)) not in found
    assert found["gala_gossip_mixes_total", frozenset(own)] == 30
    edge = own | {("peer", "1"), ("direction", "out")}
    assert found["gala_gossip_edge_replaced_total", frozenset(edge)] == 3
    assert found["gala_evaluation_return_mean", frozenset(own | {("mode", "greedy")})] == -20.0
    assert found["gala_events_total", frozenset(own | {("event", "peer-gone")})] == 2
    assert found["gala_events_total", frozenset(own | {("event", "checkpoint")})] == 0
    assert any(name == "process_resident_memory_bytes" for name, _ in found)
