"""An experiment in a cluster: against a fake API server, and its loop against a cluster that exists in memory only."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from gala import cli
from gala.errors import ClusterError, GalaError, RunError, UnreachableError, UsageError
from gala.experiment import conducting, definition, index, matrix
from gala.experiment.folder import Folder
from gala.experiment.matrix import Expansion
from gala.local.rundir import RunDirectory, RunRecord
from gala.remote import fetching
from gala.remote.experiments import SETTLING, ClusterRuns

DOCUMENT: dict[str, Any] = {
    "apiVersion": "gala.dev/v1alpha1",
    "kind": "GalaExperiment",
    "metadata": {"name": "poles"},
    "spec": {
        "figures": ["curves"],
        "base": {"environment": {"id": "CartPole-v1"}, "learners": 2, "totalSteps": 1000},
        "matrix": {"seed": ["1..3"]},
    },
}
STUCK = {"conditions": [{"type": "PodsReady", "status": "False", "reason": "Unschedulable"}]}


def expansion(seeds: str = "1..3", steps: int = 1000) -> Expansion:
    spec = {**DOCUMENT["spec"], "matrix": {"seed": [seeds]}}
    spec["base"] = {**spec["base"], "totalSteps": steps}
    return matrix.expand(definition.parse({**DOCUMENT, "spec": spec}))


class MemoryCluster:
    """What `ClusterRuns` asks of `gala.remote.cluster.Cluster`; each look at a run moves its script on by one."""

    namespace = "default"
    options = ""

    def __init__(self, *statuses: dict[str, Any]) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.scripts: dict[str, list[dict[str, Any]]] = {}
        self.statuses = statuses or ({"state": "Running", "steps": 500}, {"state": "Succeeded", "steps": 1000})
        self.submitted: list[str] = []
        self.deleted: list[str] = []
        self.most = 0
        """Runs that were there at once and had not ended."""

    def find(self, name: str) -> dict[str, Any] | None:
        found = self.objects.get(name)
        if found is not None and self.scripts[name]:
            found["status"] = {"observedGeneration": 1, **self.scripts[name].pop(0)}
        return found

    get = find

    def apply(self, document: dict[str, Any]) -> dict[str, Any]:
        name = document["metadata"]["name"]
        metadata = {**document["metadata"], "uid": f"uid-{name}", "generation": 1}
        self.objects[name] = {**document, "metadata": metadata}
        self.scripts.setdefault(name, [dict(status) for status in self.statuses])
        self.submitted.append(name)
        going = [it for it in self.objects.values() if it.get("status", {}).get("state") != "Succeeded"]
        self.most = max(self.most, len(going))
        return self.objects[name]

    def delete(self, name: str) -> None:
        self.deleted.append(name)
        del self.objects[name], self.scripts[name]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that were fetched: each leaves what a fetched run leaves."""
    names_of: list[str] = []

    def fetch(cluster: MemoryCluster, name: str, *, output: Path, force: bool, say: Callable[[str], None]) -> Path:
        path = output / name
        path.mkdir(parents=True)
        record = RunRecord(uid="u", state="finished", start_time=0.0, wall_seconds=60.0)
        RunDirectory(path).write_record(record)
        names_of.append(name)
        return path

    monkeypatch.setattr(fetching, "fetch", fetch)
    return names_of


class Bench:
    """An experiment, a folder for it, and a cluster."""

    def __init__(self, path: Path) -> None:
        self.cluster = MemoryCluster()
        self.folder = Folder(path / "runs" / "poles")
        self.written = io.StringIO()

    def conduct(self, of: Expansion, *, jobs: int | None = None, keep: bool = False, force: bool = False) -> int:
        place = ClusterRuns(self.cluster, self.folder, jobs=jobs, keep=keep, say=self._say)  # type: ignore[arg-type]
        rhythm = conducting.Rhythm(look=0.001, line=0.0, record=0.0, unreachable=30.0)
        console = Console(file=self.written, width=200)
        return conducting.conduct(of, self.folder, place, console=console, force=force, rhythm=rhythm)

    def states(self) -> dict[str, str]:
        found = index.read(self.folder.path)
        assert found is not None
        return {entry.name: entry.state for entry in found.runs}

    def _say(self, line: str) -> None:
        self.written.write(line + "\n")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.timeout(300)
class TestLoop:
    def test_runs_are_submitted_watched_fetched_and_removed(self, bench: Bench, fetched: list[str]) -> None:
        assert bench.conduct(expansion()) == 0
        assert bench.cluster.submitted == ["poles-s1", "poles-s2", "poles-s3"]
        assert sorted(fetched) == sorted(bench.cluster.deleted) == ["poles-s1", "poles-s2", "poles-s3"]
        assert set(bench.states().values()) == {"finished"}
        assert bench.conduct(expansion()) == 0
        assert len(bench.cluster.submitted) == 3, "what is here is not made again"

    def test_runs_may_stay_in_the_cluster(self, bench: Bench, fetched: list[str]) -> None:
        bench.conduct(expansion(), keep=True)
        assert len(fetched) == len(bench.cluster.objects) == 3

    def test_no_more_than_so_many_at_once(self, bench: Bench, fetched: list[str]) -> None:
        bench.conduct(expansion("1..8"), jobs=2)
        assert bench.cluster.most == 2
        assert len(fetched) == 8

    def test_a_full_cluster_is_not_given_more(self, bench: Bench, fetched: list[str]) -> None:
        stuck = {"state": "Pending", **STUCK}
        bench.cluster.scripts["poles-s2"] = [stuck] * 50 + [{"state": "Running"}, {"state": "Succeeded"}]
        bench.cluster.statuses = ({"state": "Pending"}, {"state": "Running"}, {"state": "Succeeded"})
        bench.conduct(expansion("1..20"))
        assert len(fetched) == 20
        text = bench.written.getvalue()
        assert "poles-s2 waits for room in the cluster" in text
        submitted_before = bench.cluster.submitted.index("poles-s2") + SETTLING
        assert len(bench.cluster.submitted) == 20
        assert text.index("poles-s2 waits for room") < text.index(
            f"{bench.cluster.submitted[submitted_before + 1]} starts"
        )

    def test_a_run_that_fails_says_why_and_starts_over_the_next_time(self, bench: Bench, fetched: list[str]) -> None:
        failed = {"type": "Failed", "status": "True", "reason": "ScoreTooLow", "message": "12 is below 475"}
        bench.cluster.scripts["poles-s2"] = [{"state": "Failed", "conditions": [failed]}]
        with pytest.raises(RunError, match="poles-s2: ScoreTooLow: 12 is below 475"):
            bench.conduct(expansion())
        assert bench.states() == {"poles-s1": "finished", "poles-s2": "failed", "poles-s3": "finished"}
        assert bench.conduct(expansion()) == 0
        assert bench.cluster.submitted.count("poles-s2") == 2
        assert set(bench.states().values()) == {"finished"}

    def test_runs_that_go_on_are_taken_up_again(self, bench: Bench, fetched: list[str]) -> None:
        place = ClusterRuns(bench.cluster, bench.folder)  # type: ignore[arg-type]
        assert place.start(expansion().runs[0], afresh=False)
        assert bench.conduct(expansion()) == 0
        assert bench.cluster.submitted == ["poles-s1", "poles-s2", "poles-s3"]

    def test_a_cluster_that_is_away_for_a_while_does_no_harm(self, bench: Bench, fetched: list[str]) -> None:
        steps = iter(range(100))
        find = bench.cluster.find

        def shaky(name: str) -> dict[str, Any] | None:
            if bench.cluster.submitted and next(steps, 100) in (2, 3, 4):
                raise UnreachableError("the cluster does not answer: no answer in time")
            return find(name)

        bench.cluster.find = shaky  # type: ignore[method-assign]
        assert bench.conduct(expansion()) == 0
        assert len(fetched) == 3

    def test_a_changed_definition_is_noticed_in_the_cluster_too(self, bench: Bench, fetched: list[str]) -> None:
        place = ClusterRuns(bench.cluster, bench.folder)  # type: ignore[arg-type]
        place.start(expansion().runs[0], afresh=False)
        with pytest.raises(UsageError, match=r"poles-s1: spec.totalSteps 1000 -> 2000"):
            bench.conduct(expansion(steps=2000))
        assert bench.conduct(expansion(steps=2000), force=True) == 0
        assert bench.cluster.submitted == ["poles-s1", "poles-s1", "poles-s2", "poles-s3"]
        assert len(fetched) == 3

    def test_a_strangers_run_of_that_name_is_left_alone(self, bench: Bench) -> None:
        run = expansion().runs[0]
        bench.cluster.apply({**run.document, "metadata": {"name": run.name}})
        with pytest.raises(UsageError, match="has a run poles-s1 that is not of this experiment"):
            bench.conduct(expansion())

    def test_results_that_cannot_be_had_are_not_thrown_away(
        self, bench: Bench, fetched: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fetch = fetching.fetch

        def broken(*arguments: Any, **options: Any) -> Path:
            raise ClusterError("the connection to pod poles-s1-results broke")

        monkeypatch.setattr(fetching, "fetch", broken)
        for _ in range(2):
            with pytest.raises(RunError, match="it has succeeded, but cannot be fetched: the connection to pod"):
                bench.conduct(expansion("1..1"))
        assert bench.cluster.submitted == ["poles-s1"]
        assert not bench.cluster.deleted
        monkeypatch.setattr(fetching, "fetch", fetch)
        assert bench.conduct(expansion("1..1")) == 0

    def test_a_run_that_was_begun_here_is_not_begun_there(self, bench: Bench) -> None:
        of = expansion("1..1")
        directory = RunDirectory(bench.folder.run_directory("poles-s1"))
        directory.path.mkdir(parents=True)
        directory.write_run(of.runs[0].run)
        directory.write_record(RunRecord(uid="u", state="stopped", start_time=0.0))
        with pytest.raises(RunError, match="holds a run that was begun on this machine"):
            bench.conduct(of)
        assert not bench.cluster.submitted


def test_the_command_line_reaches_the_cluster(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fetched: list[str]
) -> None:
    """The documents that arrive at an API server are the runs of the matrix, with their labels."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poles.yaml").write_text(yaml.safe_dump(DOCUMENT))
    cluster.scripts["poles-s1"] = [cluster.status("Running"), cluster.status("Failed")]
    arguments = ["experiment", "poles.yaml", "--cluster", "--set", "spec.matrix.seed=[1]"]
    arguments += ["--kubeconfig", cluster.kubeconfig(tmp_path / "kubeconfig")]
    with pytest.raises(GalaError, match="1 of 1 runs have failed"):
        cli.app(arguments, standalone_mode=False)
    applied = [body for method, _, _, body in cluster.requests if method == "PATCH"]
    assert [body["metadata"]["name"] for body in applied] == ["poles-s1"]
    assert applied[0]["metadata"]["labels"]["gala.dev/experiment"] == "poles"
    assert applied[0]["metadata"]["labels"]["experiment.gala.dev/seed"] == "1"
    assert applied[0]["spec"]["seed"] == 1
