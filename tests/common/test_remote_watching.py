"""Watching a run: what is said when something changes, and patience with a cluster that is away."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gala.errors import RunError, UnreachableError
from gala.local.table import live_view
from gala.remote.cluster import Cluster
from gala.remote.view import Run, details, listing, snapshot
from gala.remote.watching import Rhythm, watch

SPEC = {"environment": {"id": "CartPole-v1"}, "learners": 2, "totalSteps": 1000, "topology": {"type": "Ring"}}
QUICK = Rhythm(poll=0.01, line=0.0, unseen=0.0, unreachable=60.0)
NOW = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
Watch = Callable[..., tuple[int, str]]


@pytest.fixture
def watched(cluster: Any, tmp_path: Path) -> Watch:
    """Watch a run whose statuses are given, on a console that is no terminal; returns (exit code, what was said)."""
    connected = Cluster.connect(kubeconfig=cluster.kubeconfig(tmp_path / "kubeconfig"))

    def run(*statuses: dict[str, Any] | None, table: bool = False, rhythm: Rhythm = QUICK) -> tuple[int, str]:
        cluster.add_run("pole", SPEC, *statuses)
        out = io.StringIO()
        console = Console(file=out, width=200, force_terminal=False)
        code = watch(connected, "pole", console=console, table=table, rhythm=rhythm)
        return code, out.getvalue()

    return run


def learner(rank: int, **fields: Any) -> dict[str, Any]:
    return {"rank": rank, "state": "training", "failures": 0, **fields}


def test_a_state_is_said_when_it_changes_and_not_again(watched: Watch, cluster: Any) -> None:
    running = cluster.status("Running", message="All learners are training.")
    _, said = watched(
        cluster.status("Starting", message="0 of 2"), running, running, running, cluster.status("Succeeded")
    )
    lines = [line.split(" ", 1)[1] for line in said.splitlines() if line[0].isdigit()]
    assert lines == ["Starting: 0 of 2", "Running: All learners are training."]


def test_a_learner_s_failure_is_said_once_with_its_reason(watched: Watch, cluster: Any) -> None:
    failed = learner(1, failures=1, lastFailure={"reason": "OOMKilled", "message": "it took 2 GiB"})
    before = cluster.status("Running", learnerStatuses=[learner(0), learner(1)])
    after = cluster.status("Running", learnerStatuses=[learner(0), failed])
    _, said = watched(before, after, after, cluster.status("Succeeded"))
    assert said.count("learner 1 has failed, OOMKilled: it took 2 GiB") == 1
    assert "learner 0 has failed" not in said


def test_failures_of_before_are_not_news(watched: Watch, cluster: Any) -> None:
    status = cluster.status("Running", learnerStatuses=[learner(0, failures=3)])
    assert "has failed" not in watched(status, status, cluster.status("Succeeded"))[1]


def test_a_run_that_no_operator_looks_at_is_told_once(watched: Watch, cluster: Any) -> None:
    _, said = watched({}, {}, {}, cluster.status("Succeeded"))
    assert said.count("no operator has looked at it yet") == 1


@pytest.mark.parametrize("answer", [(503, "starting"), (500, {"message": "etcd"}), (429, {"message": "slow down"})])
def test_a_cluster_that_is_away_for_a_while_is_waited_for(
    watched: Watch, cluster: Any, answer: tuple[int, Any]
) -> None:
    requests = cluster.requests

    class Away(list[Any]):
        """Two such answers after the second look."""

        def __bool__(self) -> bool:
            return 2 < len(requests) <= 4

        def pop(self, index: Any = -1) -> Any:
            return answer

    cluster.answers = Away()
    running = cluster.status("Running")
    code, said = watched(running, running, running, cluster.status("Succeeded"))
    assert code == 0
    assert said.count("waiting for it, the run does not depend on it") == 1
    assert said.count("the cluster answers again") == 1


def test_a_cluster_that_is_away_for_too_long_ends_the_watching(watched: Watch, cluster: Any) -> None:
    impatient = Rhythm(poll=0.01, unreachable=0.0)
    running = cluster.status("Running")
    cluster.scripts["pole"] = []

    class Gone(list[Any]):
        def __bool__(self) -> bool:
            return len(cluster.requests) > 1

        def pop(self, index: Any = -1) -> Any:
            return (503, "gone")

    cluster.answers = Gone()
    with pytest.raises(UnreachableError):
        watched(running, rhythm=impatient)


def test_a_run_of_the_same_name_is_another_run(watched: Watch, cluster: Any) -> None:
    first = cluster.status("Running")
    cluster.scripts["pole"] = []

    class Swapped(list[Any]):
        def __bool__(self) -> bool:
            if len(cluster.requests) == 3:
                cluster.runs[("default", "pole")]["metadata"]["uid"] = "another"
            return False

    cluster.answers = Swapped()
    with pytest.raises(RunError, match="another run has its name"):
        watched(first)


def test_a_table_row_shows_what_the_operator_knows_of_a_learner(cluster: Any) -> None:
    row = learner(1, steps=500, stepsPerSecond=9.5, meanReturn=20.0, staleness=2, disagreement=0.01, failures=4)
    document = {
        "metadata": {"name": "pole", "uid": "u", "generation": 1},
        "spec": SPEC,
        "status": cluster.status(
            "Running", steps=700, learnerStatuses=[row, learner(0)], startTime="2026-01-01T00:00:00Z"
        ),
    }
    shown = snapshot(Run.of(document), NOW)
    assert [learner.rank for learner in shown.learners] == [0, 1]
    assert (shown.learners[1].steps, shown.learners[1].staleness, shown.learners[1].restarts) == (500, 2, 4)
    assert (shown.global_steps, shown.total_steps, shown.wall_seconds) == (700, 1000, 60.0)
    out = io.StringIO()
    Console(file=out, width=100).print(live_view(shown))
    assert "pole: CartPole-v1, Ring of 2" in out.getvalue()
    assert "Ctrl-C ends the watching, not the run" in out.getvalue()


@pytest.mark.parametrize(
    "status",
    [
        pytest.param({}, id="none"),
        pytest.param("text", id="text"),
        pytest.param(
            {"state": 7, "steps": "many", "learnerStatuses": "none", "conditions": {"a": 1}}, id="wrong types"
        ),
        pytest.param({"learnerStatuses": [None, {}, {"rank": "x"}], "conditions": [3, {}]}, id="wrong entries"),
        pytest.param({"startTime": "yesterday", "finalModel": [], "observedGeneration": True}, id="wrong values"),
        pytest.param({"startTime": "2026-01-01T00:00:00", "completionTime": None}, id="no time zone"),
    ],
)
def test_a_foreign_status_is_shown_without_complaint(status: Any) -> None:
    run = Run.of({"metadata": {"name": "pole"}, "spec": SPEC, "status": status})
    assert snapshot(run, NOW).learners
    assert details(run, NOW).startswith("pole: ")
    assert "pole" in listing([run], NOW)
    assert not run.ended
    assert run.refusal is None
