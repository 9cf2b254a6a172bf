"""The chart's values: documented, refused where they are wrong, and read by the operator as they were meant."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gala.spec import parse
from gala_operator.leader import LEASE_NAME
from gala_operator.settings import PREFIX, OperatorSettings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "gala-operator"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
ABOUT: dict[str, Any] = yaml.safe_load((CHART / "Chart.yaml").read_text())

pytestmark = pytest.mark.timeout(300)  # the first one may have to download helm

Render = Callable[..., list[dict[str, Any]]]
Template = Callable[..., subprocess.CompletedProcess[str]]


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return SCHEMA["definitions"][reference.rsplit("/", 1)[1]] if reference else schema


def leaves(values: dict[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that the schema knows by name, with its default."""
    for name, field in schema["properties"].items():
        inner = resolved(field)
        if path == "" and name == "global":
            continue
        if "properties" in inner and name != "resources":
            yield from leaves(values[name], inner, f"{path}{name}.")
        else:
            yield f"{path}{name}", values[name]


LEAVES = dict(leaves(VALUES, SCHEMA))


def test_helm_finds_no_fault_with_the_chart(helm: Path) -> None:
    done = subprocess.run([str(helm), "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout


def test_the_package_holds_what_it_needs_and_nothing_else(helm: Path, tmp_path: Path) -> None:
    subprocess.run([str(helm), "package", str(CHART), "--destination", str(tmp_path)], check=True, capture_output=True)
    (package,) = tmp_path.glob("*.tgz")
    assert package.name == f"gala-operator-{ABOUT['version']}.tgz"
    done = subprocess.run(["tar", "-tzf", str(package)], check=True, capture_output=True, text=True)
    files = {line.removeprefix("gala-operator/") for line in done.stdout.split()}
    assert files >= {"Chart.yaml", "README.md", "values.schema.json", "files/crds/galarun.yaml", "files/alerts.yaml"}
    assert not {name for name in files if name.startswith("crds/")}, "helm would install those once and never upgrade"
    assert package.stat().st_size < 200_000, "the release is kept in a Secret of at most 1 MiB"


def test_the_chart_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ABOUT["appVersion"] == project["version"]
    assert f"gala-worker:{project['version']}" in ABOUT["annotations"]["artifacthub.io/images"]
    assert OperatorSettings().worker_image == f"{VALUES['worker']['image']['repository']}:{project['version']}"


def test_the_artifact_hub_annotations_are_what_they_should_be() -> None:
    notes = ABOUT["annotations"]
    parts = {
        name.removeprefix("artifacthub.io/"): yaml.safe_load(text)
        for name, text in notes.items()
        if name.rsplit("/", 1)[1] in {"crds", "crdsExamples", "images", "changes"}
    }
    (crd,) = parts["crds"]
    assert (crd["name"], crd["kind"], crd["version"]) == ("galaruns.gala.dev", "GalaRun", "v1alpha1")
    assert {image["name"] for image in parts["images"]} == {"gala-operator", "gala-worker"}
    assert {change["kind"] for change in parts["changes"]} <= {
        "added",
        "changed",
        "deprecated",
        "removed",
        "fixed",
        "security",
    }
    for example in parts["crdsExamples"]:
        parse(example)
    assert notes["artifacthub.io/operatorCapabilities"] in {"Basic Install", "Seamless Upgrades", "Full Lifecycle"}


# Documented.


def test_every_value_has_a_schema_and_every_schema_a_default() -> None:
    def compare(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        assert set(values) == set(schema["properties"]) - {"global"}, path
        assert schema["additionalProperties"] is False, path
        for name, value in values.items():
            inner = resolved(schema["properties"][name])
            if "properties" in inner and name != "resources":
                compare(value, inner, f"{path}{name}.")

    compare(VALUES, SCHEMA, "")


def test_every_value_is_explained_where_it_stands() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    for path in LEAVES:
        parts = path.split(".")
        pattern = re.compile(rf"^{'  ' * (len(parts) - 1)}{parts[-1]}:")
        places = [number for number, line in enumerate(lines) if pattern.match(line)]
        assert any(lines[number - 1].lstrip().startswith("# -- ") for number in places), path


def test_the_readme_lists_every_value_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", (CHART / "README.md").read_text(), re.MULTILINE))
    assert rows == {path: json.dumps(value) for path, value in LEAVES.items()}


# Refused.


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        pytest.param({"replica": 1}, "additional properties 'replica' not allowed", id="unknown"),
        pytest.param(
            {"monitoring": {"enabled": True}}, "additional properties 'enabled' not allowed", id="unknown inside"
        ),
        pytest.param({"replicas": "2"}, "got string, want integer", id="type"),
        pytest.param({"watchNamespaces": "team-a"}, "got string, want array", id="namespaces as text"),
        pytest.param({"watchNamespaces": ["Team_A"]}, "does not match pattern", id="namespace"),
        pytest.param({"image": {"digest": "latest"}}, "does not match pattern", id="digest"),
        pytest.param({"controller": {"workers": 0}}, "minimum", id="workers"),
        pytest.param({"controller": {"pollSeconds": "soon"}}, "does not match pattern", id="seconds"),
        pytest.param({"controller": {"logFormat": "xml"}}, "logFormat", id="log format"),
        pytest.param({"crds": {"keep": "yes"}}, "got string, want boolean", id="boolean"),
        pytest.param(
            {"extraEnv": [{"name": "GALA_OPERATOR_WORKERS", "value": "1"}]}, "extraEnv", id="setting by extraEnv"
        ),
        pytest.param({"replicas": 2}, "needs leaderElection.enabled=true", id="two without election"),
        pytest.param({"serviceAccount": {"create": False}}, "serviceAccount.name is needed", id="no account"),
        pytest.param(
            {"controller": {"restartSeconds": 60, "restartSecondsMax": 10}},
            "restartSecondsMax",
            id="shrinking back-off",
        ),
    ],
)
def test_a_wrong_value_is_refused(template: Template, values: dict[str, Any], complaint: str) -> None:
    done = template(values)
    assert done.returncode != 0
    assert complaint in done.stderr


# Read by the operator.


def settings(manifests: list[dict[str, Any]]) -> OperatorSettings:
    """What the operator makes of the environment that the chart gives it."""
    (deployment,) = [m for m in manifests if m["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    fields = {"metadata.namespace": "gala-system", "metadata.name": "gala-operator-0"}
    environment = {
        variable["name"]: variable["value"]
        if "value" in variable
        else fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        for variable in container["env"]
    }
    return OperatorSettings.from_environment(environment)


def test_the_charts_defaults_are_the_operators(render: Render) -> None:
    expected = OperatorSettings(namespace="gala-system", identity="gala-operator-0")
    assert settings(render()) == expected


def test_every_setting_is_set_by_the_chart(render: Render) -> None:
    (deployment,) = [m for m in render() if m["kind"] == "Deployment"]
    names = {v["name"] for v in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert names == {PREFIX + field.name.upper() for field in dataclasses.fields(OperatorSettings)}


def test_values_become_the_operators_settings(render: Render) -> None:
    values = {
        "watchNamespaces": ["team-a", "team-b"],
        "replicas": 2,
        "leaderElection": {"enabled": True, "leaseSeconds": 20},
        "worker": {"image": {"repository": "registry.example.com/w", "tag": "2"}},
        "controller": {
            "workers": 4,
            "apiConcurrency": 8,
            "resyncSeconds": 60,
            "pollSeconds": 5,
            "statusSeconds": 30,
            "restartSeconds": 1.5,
            "restartSecondsMax": 20,
            "logFormat": "text",
            "httpPort": 9090,
        },
        "monitoring": {"namespace": "monitoring"},
    }
    assert settings(render(values)) == OperatorSettings(
        namespaces=("team-a", "team-b"),
        namespace="gala-system",
        identity="gala-operator-0",
        worker_image="registry.example.com/w:2",
        workers=4,
        resync_seconds=60.0,
        poll_seconds=5.0,
        status_seconds=30.0,
        restart_seconds=1.5,
        restart_seconds_max=20.0,
        http_port=9090,
        leader_election=True,
        lease_seconds=20.0,
        monitoring_namespace="monitoring",
        api_concurrency=8,
        log_format="text",
    )


def test_fractions_may_come_as_the_text_that_helm_makes_of_them(render: Render) -> None:
    assert settings(render({}, "--set", "controller.restartSeconds=0.5")).restart_seconds == 0.5


def test_the_lease_that_may_be_touched_is_the_operators(render: Render) -> None:
    manifests = render({"leaderElection": {"enabled": True}})
    (role,) = [m for m in manifests if m["kind"] == "Role" and m["metadata"]["name"].endswith("-leader-election")]
    (named,) = [rule["resourceNames"] for rule in role["rules"] if "resourceNames" in rule]
    assert named == [LEASE_NAME]


def test_the_notes_say_what_to_do_next_and_what_may_surprise(helm: Path) -> None:
    def notes(*values: str) -> str:
        arguments = [argument for value in values for argument in ("--set", value)]
        command = [str(helm), "install", "gala", str(CHART), "--dry-run=client", "--namespace", "gala-system"]
        done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.split("NOTES:", 1)[1]

    plain = notes()
    assert "kubectl --namespace gala-system rollout status deployment/gala-operator" in plain
    assert "NOTE:" not in plain.replace("NOTES:", "")
    warned = notes("replicas=0", "crds.enabled=false", "monitoring.podMonitor.enabled=true", "watchNamespaces={a,b}")
    assert warned.count("NOTE:") == 3
    assert "of the namespaces a, b." in warned
