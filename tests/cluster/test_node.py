"""The ground that the other tests stand on: the node, its addons, the images in it, the resource definition."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
PROBE = """
import hashlib, importlib.util, json, os, pathlib
def code(name):
    root = pathlib.Path(importlib.util.find_spec(name).origin).parents[1]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in (root / name).rglob("*.py")}
def found(name): return importlib.util.find_spec(name) is not None
def writable(path):
    try:
        pathlib.Path(path, "probe").write_text("x")
        return True
    except OSError:
        return False
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "home": os.environ["HOME"],
    "writes": [path for path in ("/", "/opt/gala", "/tmp") if writable(path)],
    "code": {**code("gala"), **code("gala_operator"), **code("gala_worker")},
    "packages": list(filter(found, ("torch", "kopf", "kubernetes", "pip", "gala_operator", "gala_worker"))),
}))
"""


def restricted(name: str, image: str, *command: str) -> dict[str, Any]:
    """A pod as strict as the operator's and the learners' are."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "containers": [
                {
                    "name": "probe",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": list(command),
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                }
            ],
        },
    }


def ended(pod: dict[str, Any]) -> str:
    phase: str = pod["status"]["phase"]
    return phase if phase in ("Succeeded", "Failed") else ""


def test_the_node_is_ready_and_has_emulated_gpus(cluster):
    if not cluster.node:
        pytest.skip("a cluster of your own has the nodes it has")
    (node,) = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]
    ready = next(condition for condition in node["status"]["conditions"] if condition["type"] == "Ready")
    assert ready["status"] == "True"
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "4"


def test_one_gpu_too_many_is_not_scheduled(cluster, namespace):
    if not cluster.node:
        pytest.skip("a cluster of your own has the nodes it has")
    pod = restricted("greedy", cluster.worker_image, "true")
    pod["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": 5}}
    namespace.apply(pod)

    def refusal(found: dict[str, Any]) -> str:
        conditions = found["status"].get("conditions", [])
        return next((c["message"] for c in conditions if c.get("reason") == "Unschedulable"), "")

    assert "Insufficient nvidia.com/gpu" in namespace.wait("pods", "greedy", refusal)


def test_the_resource_definition_is_established_and_enforced(cluster, namespace):
    spec = {"algorithm": "GALA-A2C", "environment": {"id": "CartPole-v1"}, "learners": 0}
    run = {"apiVersion": "gala.dev/v1alpha1", "kind": "GalaRun", "metadata": {"name": "bad"}, "spec": spec}
    command = f"kubectl -n {namespace.name} apply -f - 2>&1 || true"
    refused = cluster.run("sh", "-c", command, stdin=json.dumps(run))
    assert "spec.learners" in refused
    assert not namespace.items("galaruns")


@pytest.mark.parametrize(
    ("image", "packages"),
    [
        ("operator", ["kopf", "kubernetes", "gala_operator", "gala_worker"]),
        ("worker", ["torch", "gala_operator", "gala_worker"]),
    ],
)
def test_an_image_runs_as_a_restricted_pod_and_holds_this_checkout_s_code(cluster, namespace, image, packages):
    name = cluster.operator_image if image == "operator" else cluster.worker_image
    namespace.apply(restricted("probe", name, "python", "-c", PROBE))
    assert namespace.wait("pods", "probe", ended) == "Succeeded"
    said = json.loads(namespace.kubectl("logs", "probe"))
    assert (said["uid"], said["gid"], said["home"]) == (65532, 65532, "/tmp")
    assert said["writes"] == ["/tmp"]
    assert said["packages"] == packages
    # The other side's code lies there too, unused, and as old as the image: it is no part of the image's key.
    unused = f"gala_{'worker' if image == 'operator' else 'operator'}/"
    assert {path: digest for path, digest in said["code"].items() if not path.startswith(unused)} == {
        str(path.relative_to(side)): hashlib.sha256(path.read_bytes()).hexdigest()
        for side in (PROJECT / "common", PROJECT / image)
        for path in side.rglob("*.py")
    }


def test_the_worker_image_steps_atari_and_computes(cluster, namespace):
    program = (
        "import ale_py, gymnasium, torch; gymnasium.register_envs(ale_py); "
        "e = gymnasium.make('ALE/Pong-v5'); e.reset(seed=1); e.step(0); print(torch.ones(3).sum().item())"
    )
    namespace.apply(restricted("probe", cluster.worker_image, "python", "-c", program))
    assert namespace.wait("pods", "probe", ended, 120) == "Succeeded"
    assert namespace.kubectl("logs", "probe").splitlines()[-1] == "3.0"


def test_the_chart_deploys_the_operator_of_this_checkout(cluster, namespace, deployed):
    deployed()
    (pod,) = namespace.items("pods")
    assert pod["spec"]["containers"][0]["image"] == cluster.operator_image
    assert all(status["ready"] for status in pod["status"]["containerStatuses"])
