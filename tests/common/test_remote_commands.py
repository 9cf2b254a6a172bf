"""`gala submit | status | logs` against a small API server, through the real Kubernetes client and the real entry."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from remote_cluster import SPEC, Gala

pytestmark = pytest.mark.usefixtures("cluster")

ROOT = Path(__file__).parents[2]


def test_submit_applies_what_the_file_says_and_no_defaults(gala: Gala, cluster: Any, file: str) -> None:
    code, out, err = gala("submit", file, "--learners", "3", "--set", "spec.seed=7")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "pole is submitted in namespace default"
    method, path, query, body = cluster.requests[-1]
    assert (method, path) == ("PATCH", "/apis/gala.dev/v1alpha1/namespaces/default/galaruns/pole")
    assert query["fieldManager"] == "gala"
    assert body["spec"] == {**SPEC, "learners": 3, "seed": 7}


def test_submit_of_a_bad_document_reaches_no_cluster(gala: Gala, cluster: Any, file: str) -> None:
    code, _, err = gala("submit", file, "--learners", "-3")
    assert code == 2
    assert err.startswith("error: spec.learners: must be at least 1, got -3")
    assert not cluster.requests


@pytest.mark.parametrize(
    ("arguments", "namespace"),
    [
        pytest.param((), "default", id="none named"),
        pytest.param(("-n", "team"), "team", id="option"),
        pytest.param(("--context", "there"), "elsewhere", id="context"),
        pytest.param(("--set", "metadata.namespace=mine"), "mine", id="document"),
        pytest.param(("--set", "metadata.namespace=mine", "-n", "team"), "team", id="option over document"),
    ],
)
def test_the_namespace_comes_from_where_kubectl_would_take_it(
    gala: Gala, cluster: Any, file: str, arguments: tuple[str, ...], namespace: str
) -> None:
    assert gala("submit", file, *arguments)[0] == 0
    assert list(cluster.runs) == [(namespace, "pole")]
    assert cluster.requests[-1][3]["metadata"] == {"name": "pole", "namespace": namespace}


def test_a_second_submit_changes_a_run_that_goes_on(gala: Gala, cluster: Any, file: str) -> None:
    gala("submit", file)
    assert gala("submit", file)[1].startswith("pole is there already")
    assert gala("submit", file, "--learners", "5")[1].startswith("pole is changed")
    assert cluster.runs[("default", "pole")]["spec"]["learners"] == 5


@pytest.mark.parametrize("arguments", [(), ("--force",)])
def test_a_document_that_a_cluster_gave_is_submitted_without_what_binds_it_to_the_run_it_was(
    gala: Gala, cluster: Any, file: str, arguments: tuple[str, ...]
) -> None:
    gala("submit", file)
    given = cluster.runs[("default", "pole")]
    given["metadata"] |= {
        "resourceVersion": "7",
        "managedFields": [{"manager": "gala"}],
        "labels": {"team": "lab"},
    }
    Path(file).write_text(yaml.safe_dump({**given, "status": {"state": "Running"}}))
    assert given["metadata"]["uid"]
    assert gala("submit", file, *arguments)[0] == 0
    body = cluster.requests[-1][3]
    assert body.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert body["metadata"] == {"name": "pole", "namespace": "default", "labels": {"team": "lab"}}


def test_an_ended_run_is_not_submitted_again_but_by_force(gala: Gala, cluster: Any, file: str) -> None:
    uid = cluster.add_run("pole", SPEC, cluster.status("Succeeded"))
    code, _, err = gala("submit", file)
    assert code == 2
    assert "has ended (Succeeded)" in err
    assert "--force" in err
    cluster.scripts.clear()
    code, out, _ = gala("submit", file, "--force")
    assert (code, out.splitlines()[0]) == (0, "pole is submitted in namespace default")
    assert cluster.runs[("default", "pole")]["metadata"]["uid"] != uid
    assert ("DELETE", "Foreground") in [
        (method, query.get("propagationPolicy")) for method, _, query, _ in cluster.requests
    ]


def test_waiting_ends_with_0_when_the_run_succeeds(gala: Gala, cluster: Any, file: str) -> None:
    cluster.scripts["pole"] = [
        cluster.status("Starting", message="2 pods are starting"),
        cluster.status("Succeeded", steps=1000, finalModel={"meanReturn": 500.0, "globalSteps": 1000}),
    ]
    code, out, err = gala("submit", file, "--wait")
    assert (code, err) == (0, "")
    assert "Starting: 2 pods are starting" in out
    assert "pole has succeeded: 1,000 decisions" in out
    assert "mean return 500.0" in out
    assert "gala fetch pole" in out


def test_following_without_a_terminal_prints_progress_lines(gala: Gala, cluster: Any, file: str) -> None:
    learners = [
        {"rank": 0, "state": "training", "steps": 250, "stepsPerSecond": 10.0, "meanReturn": 30.0, "failures": 0}
    ]
    cluster.scripts["pole"] = [
        cluster.status("Running", steps=250, learnerStatuses=learners),
        cluster.status("Succeeded"),
    ]
    code, out, _ = gala("submit", file, "--follow")
    assert code == 0
    assert "250 of 1,000 decisions (25.0%), 10/s, return 30.0, 1 of 1 learners" in out


def test_waiting_ends_with_1_when_the_run_fails(gala: Gala, cluster: Any, file: str) -> None:
    failed = cluster.condition("Failed", "True", "ScoreTooLow", "mean return 12.0 is below 475")
    cluster.scripts["pole"] = [cluster.status("Failed", conditions=[failed])]
    code, _, err = gala("submit", file, "--wait")
    assert code == 1
    assert err == ("error: pole has failed, ScoreTooLow: mean return 12.0 is below 475; see gala status pole\n")


def test_waiting_ends_with_2_when_the_operator_refuses(gala: Gala, cluster: Any, file: str) -> None:
    refused = cluster.condition("Accepted", "False", "InvalidSpec", "spec.algorithm: PPO is not built")
    cluster.scripts["pole"] = [cluster.status("Pending", conditions=[refused])]
    code, _, err = gala("submit", file, "--wait")
    assert (code, err) == (2, "error: pole is not accepted: spec.algorithm: PPO is not built\n")


def test_a_refusal_of_an_earlier_spec_is_not_believed(gala: Gala, cluster: Any, file: str) -> None:
    refused = cluster.condition("Accepted", "False", "InvalidSpec", "old")
    cluster.add_run("pole", {**SPEC, "learners": 9}, cluster.status("Pending", conditions=[refused]))
    cluster.scripts["pole"] = [
        cluster.status("Pending", conditions=[refused]),  # seen before the change
        cluster.status("Pending", conditions=[refused]),  # and just after it: of generation 1
        cluster.status("Succeeded", generation=2),
    ]
    assert gala("submit", file, "--wait")[0] == 0


def test_waiting_ends_with_124_when_the_time_is_over(gala: Gala, cluster: Any, file: str) -> None:
    cluster.scripts["pole"] = [cluster.status("Running")]
    code, _, err = gala("submit", file, "--timeout", "0.2s")
    assert code == 124
    assert "pole has not ended within 0 s; it goes on" in err
    assert "gala status pole --follow" in err
    assert ("default", "pole") in cluster.runs


def test_the_way_back_leads_to_the_same_cluster_and_namespace(gala: Gala, cluster: Any, file: str) -> None:
    assert gala("submit", file)[1].endswith("watch it with: gala status pole --follow\n")
    out = gala("submit", file, "-n", "team", "--context", "here")[1]
    assert out.endswith("watch it with: gala status pole --follow --namespace team --context here\n")


def test_ctrl_c_leaves_the_run_alone_and_says_how_to_come_back(cluster: Any, file: str, tmp_path: Path) -> None:
    cluster.scripts["pole"] = [cluster.status("Running", message="2 of 2 learners train")]
    environment = {**os.environ, "KUBECONFIG": cluster.kubeconfig(tmp_path / "config"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-P", "-m", "gala", "submit", file, "--wait"]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    seen = ""
    with subprocess.Popen(command, env=environment, **piped) as process:
        for line in process.stdout:
            seen += line
            if "2 of 2 learners train" in line:
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert "pole goes on in the cluster; come back to it with: gala status pole --follow" in seen
    assert ("default", "pole") in cluster.runs


def test_a_run_that_is_deleted_meanwhile_fails_the_wait(gala: Gala, cluster: Any, file: str) -> None:
    cluster.scripts["pole"] = [cluster.status("Running"), None]
    code, _, err = gala("submit", file, "--wait")
    assert (code, err) == (1, "error: pole was deleted while it was watched\n")


@pytest.mark.parametrize("timeout", ["soon", "5x", "", "h"])
def test_a_time_that_is_none_is_refused(gala: Gala, file: str, timeout: str) -> None:
    code, _, err = gala("submit", file, "--timeout", timeout)
    assert code == 2
    assert "is no time" in err


CEL = {
    "message": 'GalaRun.gala.dev "pole" is invalid: [...]',
    "reason": "Invalid",
    "details": {
        "causes": [
            {"reason": "FieldValueInvalid", "message": "Invalid value: must be less than\n9", "field": "spec.learners"},
            {"reason": "FieldValueInvalid", "message": "Invalid value: is immutable", "field": "spec.seed"},
        ]
    },
}


@pytest.mark.parametrize(
    ("code", "answer", "exit_code", "lines"),
    [
        pytest.param(404, "404 page not found\n", 2, ["does not know GalaRun", "helm install"], id="no definition"),
        pytest.param(401, {"message": "Unauthorized"}, 2, ["does not accept these credentials"], id="unauthorized"),
        pytest.param(
            403, {"message": "galaruns is forbidden: no"}, 2, ["not allow it: galaruns is forbidden"], id="403"
        ),
        pytest.param(422, CEL, 2, ["spec.learners: Invalid value: must be less than 9", "spec.seed: "], id="invalid"),
        pytest.param(
            404,
            {"message": 'namespaces "x" not found', "details": {"name": "x", "kind": "namespaces"}},
            2,
            ['namespaces "x" not found'],
            id="no namespace",
        ),
        pytest.param(
            500,
            {"message": "failed to create typed patch object: .spec.new: field not declared in schema"},
            2,
            ["is of another version than this gala"],
            id="older definition",
        ),
        pytest.param(503, "busy", 1, ["in trouble (503)"], id="unavailable"),
        pytest.param(200, "<html>hello</html>", 1, ["does not answer like a Kubernetes API server"], id="a web server"),
        pytest.param(200, "[" * 100_000, 1, ["does not answer like a Kubernetes API server"], id="nested without end"),
    ],
)
def test_what_a_cluster_refuses_is_a_line_each(
    gala: Gala, cluster: Any, file: str, code: int, answer: Any, exit_code: int, lines: list[str]
) -> None:
    cluster.answers = [(404, {"message": "no", "details": {"name": "pole", "kind": "galaruns"}}), (code, answer)]
    ended, out, err = gala("submit", file)
    assert (ended, out) == (exit_code, "")
    shown = err.splitlines()
    assert len(shown) == (2 if answer is CEL else 1)
    for text in lines:
        assert any(line.startswith("error: ") and text in line for line in shown)


def test_a_cluster_that_is_not_there_is_a_line(gala: Gala, tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        config = yaml.safe_load((tmp_path / "kubeconfig").read_text())
        config["clusters"][0]["cluster"]["server"] = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        code, _, err = gala("status")
    assert code == 1
    assert err.startswith("error: the cluster at http://127.0.0.1:")
    assert err.endswith("does not answer: Connection refused\n")


@pytest.mark.parametrize(
    ("content", "arguments", "text"),
    [
        pytest.param(None, (), "no cluster is configured", id="no kubeconfig"),
        pytest.param(None, ("--kubeconfig", "nowhere"), "there is no nowhere", id="no such file"),
        pytest.param(None, ("--kubeconfig", "/usr"), "/usr is a folder", id="a folder"),
        pytest.param("", (), "cannot be used", id="empty"),
        pytest.param("a: [", (), "cannot be used", id="no yaml"),
        pytest.param("[]", (), "cannot be used", id="a list"),
        pytest.param("keep", ("--context", "moon"), "context moon of", id="no such context"),
    ],
)
def test_a_kubeconfig_that_does_not_work_is_a_line(
    gala: Gala,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    content: str | None,
    arguments: tuple[str, ...],
    text: str,
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if content is None:
        (tmp_path / "kubeconfig").unlink()
    elif content != "keep":
        (tmp_path / "kubeconfig").write_text(content)
    code, out, err = gala("status", *arguments)
    assert (code, out) == (2, "")
    assert text in err
    assert len(err.splitlines()) == 1


def test_without_the_client_one_line_says_what_to_install(file: str) -> None:
    program = "import sys\nsys.modules['kubernetes'] = None\nsys.argv[0] = 'gala'\nfrom gala import cli\ncli.main()\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "submit", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: talking to a cluster needs the Kubernetes client; in GALA's checkout: pip install -e '.[cluster]'\n"
    )


def test_every_example_for_a_cluster_is_valid(gala: Gala) -> None:
    files = [str(path) for path in sorted((ROOT / "examples" / "cluster").glob("*.yaml"))]
    assert len(files) >= 2
    assert gala("validate", *files)[0] == 0


def test_the_run_of_the_cronjob_is_valid_and_its_command_is_one(gala: Gala, cluster: Any, tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all((ROOT / "examples" / "ci" / "cronjob.yaml").read_text()))
    kinds = {document["kind"]: document for document in documents}
    run = tmp_path / "galarun.yaml"
    run.write_text(kinds["ConfigMap"]["data"]["galarun.yaml"])
    [container] = kinds["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][:3] == ["python", "-m", "gala"]
    cluster.scripts["nightly-cartpole"] = [cluster.status("Succeeded")]
    arguments = [str(run) if part == "/etc/gala/galarun.yaml" else part for part in container["command"][3:]]
    assert gala(*arguments)[0] == 0


def test_the_role_of_the_cronjob_allows_what_its_command_does_and_no_more(gala: Gala, cluster: Any, file: str) -> None:
    documents = yaml.safe_load_all((ROOT / "examples" / "ci" / "cronjob.yaml").read_text())
    [rule] = next(document for document in documents if document["kind"] == "Role")["rules"]
    cluster.add_run("pole", SPEC, cluster.status("Failed"), cluster.status("Succeeded"))
    assert gala("submit", file, "--force", "--wait")[0] == 0
    assert all("/galaruns/" in path for _, path, _, _ in cluster.requests)
    verbs = {"GET": "get", "PATCH": "patch", "DELETE": "delete"}
    # An apply that finds nothing creates, for which the API server asks for that verb too.
    assert {verbs[method] for method, *_ in cluster.requests} | {"create"} == set(rule["verbs"])


def test_kubectl_finds_the_commands_as_its_plugin() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["kubectl-gala"] == scripts["gala"]  # kubectl runs `kubectl-gala submit` for `kubectl gala submit`
