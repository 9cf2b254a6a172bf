"""`gala submit | status | logs | fetch` and the CronJob of examples/ci on a real cluster."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
JOB = "nightly-cartpole"


def small(document: dict[str, Any], **evaluation: Any) -> dict[str, Any]:
    """The run made small: it is the commands that are tested."""
    spec = document["spec"]
    requests = {"requests": {"cpu": "100m", "memory": "300Mi"}}
    spec |= {"learners": 2, "totalSteps": 20_000, "worker": {"gpus": 0, "resources": requests}}
    spec["evaluation"] = {"episodes": 2, **evaluation}
    return document


@pytest.fixture
def gala(namespace, tmp_path):
    """Run the command line as a user would; returns the completed process."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "gala", *arguments],
            capture_output=True,
            text=True,
            timeout=280,
            cwd=tmp_path,
            env=namespace.cluster.environment,
        )

    return run


@pytest.mark.usefixtures("operator")
def test_a_run_is_submitted_followed_and_fetched(namespace, gala, tmp_path):
    document = small(yaml.safe_load((PROJECT / "examples/cluster/cartpole.yaml").read_text()))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    here = ("-n", namespace.name)

    followed = gala("submit", "run.yaml", *here, "--follow", "--timeout", "4m")
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "cartpole has succeeded" in followed.stdout

    again = gala("submit", "run.yaml", *here)
    assert again.returncode == 2
    assert "has ended (Succeeded)" in again.stderr

    assert "cartpole  Succeeded" in gala("status", *here).stdout
    assert "RingFormed" in gala("status", "cartpole", *here).stdout
    assert gala("logs", "cartpole", "results", *here).stdout

    fetched = gala("fetch", "cartpole", *here)
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    run = tmp_path / "runs/cartpole"
    record = json.loads((run / "run.json").read_text())
    assert record["uid"] == namespace.get("galaruns", "cartpole")["metadata"]["uid"]
    assert (run / "learner-1/metrics.jsonl").stat().st_size > 0
    assert (run / "report.html").stat().st_size > 10_000
    played = gala("evaluate", "cartpole", "--episodes", "1")
    assert played.returncode == 0, played.stderr


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(("least", "outcome"), [(1, "succeeded"), (10_000, "failed")])
def test_the_cronjob_s_job_ends_as_the_score_says(namespace, least, outcome):
    documents = {
        document["kind"]: document
        for document in yaml.safe_load_all((PROJECT / "examples/ci/cronjob.yaml").read_text())
    }
    data = documents["ConfigMap"]["data"]
    data["galarun.yaml"] = yaml.safe_dump(small(yaml.safe_load(data["galarun.yaml"]), minReturn=least))
    cronjob = documents.pop("CronJob")
    [container] = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    container["image"] = namespace.cluster.operator_image
    if namespace.cluster.read("/apis/batch/v1/namespaces/default/cronjobs") is None:
        cronjob["apiVersion"] = "batch/v1beta1"  # of servers before 1.21
    namespace.apply(*documents.values(), cronjob)

    # What `kubectl create job --from` does, which asks for batch/v1.
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": JOB},
        "spec": cronjob["spec"]["jobTemplate"]["spec"],
    }
    namespace.apply(job)
    status = namespace.wait(
        "jobs", JOB, lambda found: found["status"] if found.get("status", {}).get("conditions") else None, 240
    )
    assert status.get(outcome) == 1, namespace.kubectl("logs", f"job/{JOB}")
    log = namespace.kubectl("logs", f"job/{JOB}")
    assert ("ScoreTooLow" in log) == (outcome == "failed")
    assert f"{JOB} has {outcome}" in log
