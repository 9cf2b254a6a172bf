"""The pods of a run: whatever a GalaRun's author asks for, they stay within the restricted Pod Security Standard."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from importlib.metadata import version
from posixpath import normpath
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import HealthCheck, given, settings

from gala import names
from gala.errors import SpecError
from gala.plan import plan
from gala.spec import GalaRun, parse
from gala_operator import manifests
from gala_operator.actions import Manifest
from gala_operator.manifests import Owner
from gala_operator.settings import OperatorSettings
from pod_standard import laxities, violations
from worker_specs import EVERYTHING, checkpoints, workers

UID = "11111111-0000-4000-8000-000000000001"
OWNER = Owner(name="pong", namespace="lab", uid=UID)
SETTINGS = OperatorSettings(worker_image="registry.example/gala-worker:1")
CREATED = datetime(2026, 11, 22, 18, 0, 0, 250_000, tzinfo=UTC)
SERVERS = ("1.29", kubernetes_validate.latest_version())


def run_with(**spec: Any) -> GalaRun:
    return parse(
        {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {"name": "pong", "namespace": "lab"},
            "spec": {"environment": {"id": "ALE/Pong-v5"}, **spec},
        }
    )


def learner_of(run: GalaRun, rank: int = 1, attempt: int = 0, epoch: int = 0) -> Manifest:
    return manifests.learner_pod(
        run, OWNER, plan(run, epoch=epoch, uid=UID), rank, attempt=attempt, created=CREATED, settings=SETTINGS
    )


def results_of(run: GalaRun, *, modest: bool = True) -> Manifest:
    return manifests.results_pod(run, OWNER, plan(run, uid=UID), created=CREATED, settings=SETTINGS, modest=modest)


def container_of(pod: Manifest) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    return dict(container)


def environment_of(pod: Manifest) -> dict[str, Any]:
    entries = container_of(pod)["env"]
    variables = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in entries}
    assert len(variables) == len(entries)
    return variables


def mounts_of(pod: Manifest) -> dict[str, dict[str, Any]]:
    """What is mounted where: the volume's source."""
    sources = {
        volume["name"]: {key: value for key, value in volume.items() if key != "name"}
        for volume in pod["spec"]["volumes"]
    }
    assert len(sources) == len(pod["spec"]["volumes"])
    mounts = {normpath(mount["mountPath"]): sources[mount["name"]] for mount in container_of(pod)["volumeMounts"]}
    assert len(mounts) == len(container_of(pod)["volumeMounts"])
    return mounts


@given(worker=workers, checkpoint=checkpoints)
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_no_run_gets_a_pod_beyond_the_restricted_standard(worker: dict[str, Any], checkpoint: dict[str, Any]) -> None:
    run = run_with(worker=worker, checkpoint=checkpoint)
    for pod in (learner_of(run), results_of(run)):
        assert [*violations(pod), *laxities(pod)] == []
        # What tells the operator's pods apart is not for the author to say.
        assert pod["metadata"]["labels"][names.LABEL_RUN_UID] == UID
        assert pod["metadata"]["labels"]["app.kubernetes.io/name"] == "gala"
        assert pod["metadata"]["ownerReferences"][0]["uid"] == UID
        assert environment_of(pod)[names.ENV_PLAN_FILE] == "/etc/gala/plan.json"
        assert mounts_of(pod)["/etc/gala"] == {"configMap": {"name": "pong-plan"}}
        assert {"/tmp", "/dev/shm", "/var/lib/gala"} <= set(mounts_of(pod))


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("spec", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_pod_is_what_an_api_server_takes(server: str, spec: dict[str, Any]) -> None:
    run = run_with(**spec)
    kubernetes_validate.validate(learner_of(run), server, strict=True)
    kubernetes_validate.validate(results_of(run), server, strict=True)


def test_everything_that_was_asked_for_is_in_the_learners_pod() -> None:
    pod = learner_of(run_with(**EVERYTHING))
    asked = EVERYTHING["worker"]
    spec, container = pod["spec"], container_of(pod)
    assert container["image"] == "registry.example/mine:2"
    assert container["resources"] == {
        "requests": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "2"},
        "limits": {"memory": "32Gi", "amd.com/gpu": "1", "nvidia.com/gpu": "2"},
    }
    for field in ("nodeSelector", "affinity", "priorityClassName", "serviceAccountName"):
        assert spec[field] == asked[field]
    assert spec["tolerations"] == asked["tolerations"]
    template = asked["podTemplate"]["spec"]
    for field in ("imagePullSecrets", "schedulerName", "runtimeClassName", "terminationGracePeriodSeconds"):
        assert spec[field] == template[field]
    assert spec["securityContext"].items() >= template["securityContext"].items()
    assert environment_of(pod)["TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token", "optional": False}}
    assert environment_of(pod)["HOME"] == "/scratch"
    assert mounts_of(pod)["/dev/shm"] == {"emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}
    assert mounts_of(pod)["/data"] == {"persistentVolumeClaim": {"claimName": "data", "readOnly": True}}
    assert {volume["name"] for volume in template["volumes"]} <= {volume["name"] for volume in spec["volumes"]}
    assert pod["metadata"]["labels"]["team"] == "rl"
    assert pod["metadata"]["annotations"]["example.com/note"] == "x"


def test_a_learner_is_started_under_its_name_with_its_rank_and_plan() -> None:
    pod = learner_of(run_with(), rank=3)
    assert pod["metadata"]["name"] == "pong-3"
    assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == ("pong-3", "pong")
    assert pod["spec"]["restartPolicy"] == "Never"
    container = container_of(pod)
    assert container["command"] == ["python", "-m", "gala_worker"]
    assert container["image"] == "registry.example/gala-worker:1"
    assert (
        environment_of(pod).items()
        >= {
            names.ENV_RANK: "3",
            names.ENV_PLAN_FILE: "/etc/gala/plan.json",
            names.ENV_OUTPUT_DIR: "/var/lib/gala/pong",
            names.ENV_INCARNATION: str(int(CREATED.timestamp()) * 1000 + 250),
            names.ENV_HOLD: "86400",
            "HOME": "/tmp",
        }.items()
    )
    assert "subPath" not in container["volumeMounts"][0]  # else the plan would never refresh


def test_a_pod_is_stamped_with_what_it_was_made_from() -> None:
    run = run_with()
    annotations = learner_of(run, attempt=2, epoch=5)["metadata"]["annotations"]
    assert annotations[names.ANNOTATION_ATTEMPT] == "2"
    assert annotations[names.ANNOTATION_PLAN_EPOCH] == "5"
    assert annotations[names.ANNOTATION_OPERATOR_VERSION] == version("gala")
    changed = learner_of(run_with(worker={"resources": {"limits": {"cpu": 2}}}))["metadata"]["annotations"]
    assert annotations[names.ANNOTATION_SPEC_HASH] != changed[names.ANNOTATION_SPEC_HASH]
    longer = learner_of(run_with(totalSteps=1))["metadata"]["annotations"]
    assert annotations[names.ANNOTATION_SPEC_HASH] == longer[names.ANNOTATION_SPEC_HASH]


def test_probes_ask_the_workers_http_server_and_give_it_time_to_start() -> None:
    for pod in (learner_of(run_with()), results_of(run_with())):
        container = container_of(pod)
        probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}
        assert {kind: probe["httpGet"]["path"] for kind, probe in probes.items()} == {
            "startup": "/healthz",
            "liveness": "/healthz",
            "readiness": "/readyz",
        }
        assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] >= 300
        assert {"name": "http", "containerPort": names.PORT_HTTP, "protocol": "TCP"} in container["ports"]


def test_a_run_without_gpus_gets_none_even_where_every_container_would() -> None:
    pod = learner_of(run_with(worker={"gpus": 0}))
    assert container_of(pod)["resources"] == {}
    assert environment_of(pod)["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "NVIDIA_VISIBLE_DEVICES" not in environment_of(learner_of(run_with()))


def test_the_results_pod_of_learners_with_gpus_sees_none_and_can_run_where_their_runtime_is_not() -> None:
    nvidia = {"podTemplate": {"spec": {"runtimeClassName": "nvidia"}}}
    run = run_with(worker=nvidia)
    assert learner_of(run)["spec"]["runtimeClassName"] == "nvidia"
    assert "runtimeClassName" not in results_of(run)["spec"]
    assert environment_of(results_of(run))["NVIDIA_VISIBLE_DEVICES"] == "void"
    sandboxed = run_with(worker={"gpus": 0, "podTemplate": {"spec": {"runtimeClassName": "gvisor"}}})
    assert results_of(sandboxed)["spec"]["runtimeClassName"] == "gvisor"


@pytest.mark.parametrize(
    ("resources", "threads"),
    [
        ({}, None),
        ({"requests": {"cpu": "300m"}}, "1"),
        ({"requests": {"cpu": 2}}, "2"),
        ({"requests": {"cpu": 1}, "limits": {"cpu": "2500m"}}, "3"),
        ({"limits": {"cpu": "1e99"}}, "4096"),
    ],
)
def test_a_learner_computes_with_as_many_threads_as_it_has_cores_to_itself(
    resources: dict[str, Any], threads: str | None
) -> None:
    environment = environment_of(learner_of(run_with(worker={"resources": resources})))
    assert environment.get("GALA_THREADS") == threads
    assert environment.get("OMP_NUM_THREADS") == threads


def test_the_plan_is_mounted_whatever_a_mount_of_the_users_says() -> None:
    pod = {"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "a", "mountPath": "/etc/x"}]}
    run = run_with(worker={"podTemplate": {"spec": pod}})
    template = run.spec.worker.pod_template
    assert template is not None
    # As if a spelling of that place had passed gala.spec.
    mount = template.spec.volume_mounts[0].model_copy(update={"mount_path": "/etc//gala"})
    overlaid = template.model_copy(update={"spec": template.spec.model_copy(update={"volume_mounts": (mount,)})})
    worker = run.spec.worker.model_copy(update={"pod_template": overlaid})
    unchecked = run.model_copy(update={"spec": run.spec.model_copy(update={"worker": worker})})
    mounts = container_of(learner_of(unchecked))["volumeMounts"]
    assert {"name": "gala-plan", "mountPath": "/etc/gala", "readOnly": True} in mounts


def test_checkpoints_live_where_the_run_says() -> None:
    def output(checkpoint: dict[str, Any], pod: Any) -> dict[str, Any]:
        return mounts_of(pod(run_with(checkpoint=checkpoint)))["/var/lib/gala"]

    assert output({}, learner_of) == {"emptyDir": {}}
    assert output({"volume": {"size": "1Gi"}}, learner_of) == {"persistentVolumeClaim": {"claimName": "pong-1"}}
    assert output({"volume": {"size": "1Gi"}}, results_of) == {"persistentVolumeClaim": {"claimName": "pong-results"}}
    for pod in (learner_of, results_of):
        assert output({"volume": {"claimName": "all"}}, pod) == {"persistentVolumeClaim": {"claimName": "all"}}


def test_a_learner_that_is_not_root_can_write_to_its_claim() -> None:
    context = learner_of(run_with(checkpoint={"volume": {"size": "1Gi"}}))["spec"]["securityContext"]
    assert context["fsGroup"] > 0
    assert context["fsGroupChangePolicy"] == "OnRootMismatch"
    assert "fsGroup" not in learner_of(run_with())["spec"]["securityContext"]


def test_learners_are_spread_among_themselves_unless_the_run_says_otherwise() -> None:
    chosen = {"matchLabels": {"team": "rl"}}
    constraints = [{"topologyKey": "zone"}, {"topologyKey": "zone", "labelSelector": chosen}]
    run = run_with(worker={"podTemplate": {"spec": {"topologySpreadConstraints": constraints}}})
    own, users = learner_of(run)["spec"]["topologySpreadConstraints"]
    assert own["labelSelector"] == {
        "matchLabels": {names.LABEL_RUN: "pong", names.LABEL_RUN_UID: UID},
        "matchExpressions": [{"key": names.LABEL_RANK, "operator": "Exists"}],
    }
    assert users["labelSelector"]["matchLabels"] == chosen["matchLabels"]


def test_the_results_pod_finds_room_while_the_learners_hold_theirs() -> None:
    pod = results_of(run_with(**EVERYTHING))
    assert container_of(pod)["command"] == ["python", "-m", "gala_worker.results"]
    assert container_of(pod)["resources"] == {
        "requests": {"cpu": "50m", "memory": "128Mi"},
        "limits": {"memory": "32Gi"},
    }
    assert set(pod["spec"]["affinity"]) == {"nodeAffinity"}
    assert "topologySpreadConstraints" not in pod["spec"]
    assert pod["spec"]["nodeSelector"] == {"pool": "gpu"}
    small = results_of(run_with(worker={"resources": {"requests": {"cpu": "20m"}, "limits": {"memory": "100Mi"}}}))
    assert container_of(small)["resources"]["requests"] == {"cpu": "20m", "memory": "100Mi"}
    assert container_of(results_of(run_with()))["resources"] == {}
    asked = {"requests": {"cpu": "4"}, "limits": {"cpu": "4", "memory": "8Gi", "example.com/fpga": "1"}}
    as_much_as_a_learner = results_of(run_with(worker={"resources": asked}), modest=False)
    assert container_of(as_much_as_a_learner)["resources"] == {
        "requests": {"cpu": "4"},
        "limits": {"cpu": "4", "memory": "8Gi"},
    }
    assert pod["metadata"]["labels"][names.LABEL_ROLE] == names.ROLE_RESULTS
    assert names.ENV_RANK not in environment_of(pod)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hostPath", {"volumes": [{"name": "a", "hostPath": {"path": "/"}}]}),
        ("projected", {"volumes": [{"name": "a", "projected": {"sources": [{"serviceAccountToken": {}}]}}]}),
        ("csi", {"volumes": [{"name": "a", "csi": {"driver": "x"}}]}),
        ("medium", {"volumes": [{"name": "a", "emptyDir": {"medium": "HugePages"}}]}),
        ("dataSourceRef", {"volumes": [{"name": "a", "ephemeral": {"volumeClaimTemplate": {"spec": {
            "resources": {"requests": {}}, "dataSourceRef": {"namespace": "other"}}}}}]}),
        ("volumeName", {"volumes": [{"name": "a", "ephemeral": {"volumeClaimTemplate": {"spec": {
            "resources": {"requests": {}}, "volumeName": "pv-of-others"}}}}]}),
        ("hostNetwork", {"hostNetwork": True}),
        ("hostPID", {"hostPID": True}),
        ("containers", {"containers": [{"name": "x"}]}),
        ("initContainers", {"initContainers": [{"name": "x"}]}),
        ("automountServiceAccountToken", {"automountServiceAccountToken": True}),
        ("nodeName", {"nodeName": "control-plane"}),
        ("runAsUser", {"securityContext": {"runAsUser": 0}}),
        ("privileged", {"securityContext": {"privileged": True}}),
        ("seccompProfile", {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
        ("namespaceSelector", {"topologySpreadConstraints": [{"topologyKey": "a", "namespaceSelector": {}}]}),
    ],
)  # fmt: skip
def test_what_is_not_on_the_list_is_refused_by_name(field: str, value: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=field):
        run_with(worker={"podTemplate": {"spec": value}})


def test_a_profile_by_annotation_is_refused() -> None:
    annotations = {"container.apparmor.security.beta.kubernetes.io/learner": "unconfined"}
    with pytest.raises(SpecError, match="AppArmor"):
        run_with(worker={"podTemplate": {"metadata": {"annotations": annotations}}})


def _set(pod: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    node: Any = pod
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
    node[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.hostNetwork", True),
        ("spec.hostPID", True),
        ("spec.hostIPC", True),
        ("spec.volumes", [{"name": "a", "hostPath": {"path": "/"}}]),
        ("metadata.annotations.seccomp.security", "unconfined"),
        ("spec.securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
        ("spec.securityContext.runAsUser", 0),
        ("spec.securityContext.seccompProfile", {"type": "Unconfined"}),
        ("spec.securityContext.seLinuxOptions", {"type": "spc_t"}),
        ("spec.securityContext.appArmorProfile", {"type": "Unconfined"}),
        ("spec.containers.0.securityContext.runAsNonRoot", False),
        ("spec.containers.0.securityContext.privileged", True),
        ("spec.containers.0.securityContext.allowPrivilegeEscalation", True),
        ("spec.containers.0.securityContext.procMount", "Unmasked"),
        ("spec.containers.0.securityContext.capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
        ("spec.containers.0.securityContext.capabilities", {"drop": ["KILL"]}),
        ("spec.containers.0.ports", [{"containerPort": 1, "hostPort": 1}]),
        ("spec.containers.0.livenessProbe", {"httpGet": {"host": "169.254.169.254"}}),
        ("spec.initContainers", [{"name": "x"}]),
        ("spec.automountServiceAccountToken", True),
        ("spec.enableServiceLinks", True),
        ("spec.containers.0.securityContext.readOnlyRootFilesystem", False),
        ("spec.containers.0.startupProbe", {"exec": {"command": ["true"]}}),
    ],
)
def test_the_checker_sees_every_kind_of_violation(path: str, value: Any) -> None:
    pod = copy.deepcopy(dict(learner_of(run_with())))
    if path.startswith("metadata.annotations."):
        pod["metadata"]["annotations"][path.removeprefix("metadata.annotations.")] = value
    else:
        _set(pod, path, value)
    assert [*violations(pod), *laxities(pod)]
