"""How a worker follows plan.json, and what it takes over from a newer one."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from gala.errors import RunError, SpecError, UsageError
from gala.plan import RunPlan, plan
from gala.spec import parse
from gala_worker import plan_file
from gala_worker.config import WorkerConfig
from gala_worker.plan_file import PlanFile
from gala_worker.worker import Worker

MISSING = os.strerror(errno.ENOENT)


def make_plan(epoch: int = 0, uid: str = "uid-1", **spec: Any) -> RunPlan:
    document = {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"name": "tiny"},
        "spec": {"environment": {"id": "CartPole-v1"}, "learners": 2, **spec},
    }
    return plan(parse(document), epoch=epoch, uid=uid)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "plan.json"


def test_a_newer_epoch_is_followed_once(path: Path) -> None:
    path.write_text(make_plan().to_json())
    followed = PlanFile(path, 0)
    assert followed.follow() is None
    path.write_text(make_plan(1, learners=3).to_json())
    newer = followed.follow()
    assert newer is not None
    assert newer.ranks == (0, 1, 2)
    assert newer is followed.plan
    assert followed.follow() is None


@pytest.mark.parametrize(
    "text",
    [
        make_plan(3, learners=3).to_json(),
        make_plan(4, learners=3).to_json(),
        make_plan(5, "uid-2", learners=3).to_json(),
        "{}",
        "",
    ],
    ids=["older", "same", "another run's", "no plan", "empty"],
)
def test_any_other_file_leaves_the_plan_as_it_is(path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text(make_plan(4).to_json())
    followed = PlanFile(path, 0)
    path.write_text(text)
    assert followed.follow() is None
    assert followed.follow() is None
    assert followed.plan == make_plan(4)
    assert len(caplog.records) <= 1, "a file that stays wrong is logged once"


def test_what_is_wrong_with_the_file_is_logged_when_it_changes_and_not_at_every_look(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(make_plan(4).to_json())
    followed = PlanFile(path, 0)
    said = []
    for content in (None, b"{", None, make_plan(4).to_json().encode(), None, b"\xff"):
        caplog.clear()
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        for _ in range(3):
            followed.follow()
        said.append([record.getMessage() for record in caplog.records])
    assert [len(messages) for messages in said] == [1, 1, 1, 0, 1, 1]
    assert said[0] == said[2] == said[4] == [f"keeping the plan of epoch 4: cannot read the plan {path}: {MISSING}"]


def test_a_running_learner_takes_over_the_end_and_the_intervals_and_nothing_that_it_was_built_with(path: Path) -> None:
    path.write_text(make_plan().to_json())
    followed = PlanFile(path, 0)
    changes: dict[str, Any] = {
        "totalSteps": 7_000_000,
        "topology": {"type": "Ring", "peers": 2},
        "learners": 5,
        "checkpoint": {"everySteps": 5000, "keep": 9},
        "evaluation": {"everySteps": 6000, "episodes": 99},
        "gossip": {"precision": "bfloat16", "everyUpdates": 9},
        "hyperparameters": {"rolloutLength": 99},
    }
    path.write_text(make_plan(1, **changes).to_json())
    newer = followed.follow()
    assert newer is not None
    spec, old = newer.spec, make_plan().spec
    assert (spec.total_steps, spec.learners, spec.topology.peers) == (7_000_000, 5, 2)
    assert (spec.checkpoint.every_steps, spec.checkpoint.keep) == (5000, 9)
    assert (spec.evaluation.every_steps, spec.evaluation.episodes) == (6000, old.evaluation.episodes)
    assert (spec.gossip, spec.hyperparameters) == (old.gossip, old.hyperparameters)


def test_a_worker_waits_for_a_plan_that_has_its_rank(path: Path) -> None:
    """A kubelet may mount an older plan than the one that the pod was made for."""
    path.write_text(make_plan().to_json())

    def replace() -> None:
        new = path.with_suffix(".new")
        new.write_text(make_plan(1, learners=3).to_json())
        new.replace(path)

    later = threading.Timer(0.3, replace)
    later.start()
    assert PlanFile(path, 2, wait_seconds=30.0).plan.epoch == 1
    later.join()


def test_a_rank_that_no_plan_has_is_worth_another_attempt(path: Path) -> None:
    path.write_text(make_plan().to_json())
    with pytest.raises(RunError, match="rank 2 is not in the plan"):
        PlanFile(path, 2, wait_seconds=0.0)
    assert RunError.exit_code == 1


def test_a_plan_that_cannot_be_read_is_the_user_s_mistake(path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the plan"):
        plan_file.read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="it is no text"):
        plan_file.read(path)
    path.write_text("[]")
    with pytest.raises(SpecError, match="cannot be read"):
        plan_file.read(path)


def environment(**changes: str) -> dict[str, str]:
    needed = {"GALA_RANK": "0", "GALA_PLAN_FILE": "plan.json", "GALA_OUTPUT_DIR": "out"}
    return needed | changes


def test_a_worker_does_not_hold_unless_it_is_told_to() -> None:
    assert WorkerConfig.from_environment(environment()).hold_seconds == 0
    assert WorkerConfig.from_environment(environment(GALA_HOLD_SECONDS="86400")).hold_seconds == 86400


@pytest.mark.parametrize("value", ["-1", "1.5", "soon"])
def test_a_hold_that_is_no_time_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="GALA_HOLD_SECONDS must be a whole number of at least 0"):
        WorkerConfig.from_environment(environment(GALA_HOLD_SECONDS=value))


def test_a_folder_that_cannot_be_written_to_is_said_before_the_training(path: Path) -> None:
    path.write_text(make_plan().to_json())
    below_a_file = path / "out"
    config = WorkerConfig.from_environment(environment(GALA_PLAN_FILE=str(path), GALA_OUTPUT_DIR=str(below_a_file)))
    with pytest.raises(UsageError, match=f"cannot write to {below_a_file}"):
        Worker(config)
