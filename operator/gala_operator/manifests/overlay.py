"""What a GalaRun's author may put into a pod: `spec.worker` and `spec.checkpoint.volume` as parts of a pod's manifest.

`gala.spec_worker` lists the fields that there are; here they find their place. Nothing of a spec reaches a pod but
through this module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from posixpath import normpath
from typing import Any, Final

from kubernetes.utils.quantity import parse_quantity

from gala import names
from gala.spec_base import Section
from gala.spec_worker import GPU_RESOURCE, CheckpointVolume, PodSpec, Worker
from gala_operator.manifests.metadata import Owner, learner_selector

PLAN_VOLUME: Final = "gala-plan"
OUTPUT_VOLUME: Final = "gala-output"
TEMPORARY_VOLUME: Final = "gala-tmp"
SHARED_MEMORY_VOLUME: Final = "gala-shm"
SHARED_MEMORY_SIZE: Final = "1Gi"
"""Of /dev/shm at most; it counts as the container's memory."""
FILE_SYSTEM_GROUP: Final = 65532
"""Group that owns a claim's files when the run names none: a fresh volume belongs to root, and no learner is root."""

RESULTS_REQUESTS: Final = {"cpu": "50m", "memory": "128Mi"}
"""What the results pod asks for at most. It must find room while the learners, which wait for it without computing,
still hold theirs: in a cluster full of learners that wait for such pods no room would ever become free."""
RESULTS_LIMITS: Final = {"cpu": "500m", "memory": "1Gi"}
"""What it can do with, where a quota leaves no more: torch alone takes some 300Mi, and more if it is built for CUDA."""


MAX_THREADS: Final = 4096
"""More than any node has cores."""


def scheduling(worker: Worker, owner: Owner) -> dict[str, Any]:
    """Where a learner may run."""
    pod = _pod(worker)
    spread = [
        {"labelSelector": learner_selector(owner), **_dumped(constraint)}
        for constraint in pod.topology_spread_constraints
    ]
    affinity = _dumped(worker.affinity) if worker.affinity is not None else {}
    return results_scheduling(worker) | _without_empty({"affinity": affinity, "topologySpreadConstraints": spread})


def results_scheduling(worker: Worker) -> dict[str, Any]:
    """Where the results pod may run: the learners' rules about nodes, but not those about one another."""
    pod = _pod(worker)
    to_nodes = worker.affinity.node_affinity if worker.affinity is not None else None
    return _without_empty(
        {
            "nodeSelector": dict(worker.node_selector),
            "tolerations": [_dumped(toleration) for toleration in worker.tolerations],
            "affinity": {"nodeAffinity": to_nodes} if to_nodes is not None else None,
            "priorityClassName": worker.priority_class_name,
            "schedulerName": pod.scheduler_name,
        }
    )


def resources(worker: Worker) -> dict[str, Any]:
    """A learner's, GPUs included."""
    gpus = {GPU_RESOURCE: str(worker.gpus)} if worker.gpus else {}
    return _without_empty(
        {
            "requests": {**worker.resources.requests, **gpus},
            "limits": {**worker.resources.limits, **gpus},
        }
    )


def results_resources(worker: Worker, *, modest: bool, frugal: bool) -> dict[str, Any]:
    """The results pod's: a learner's limits, or lower ones if `frugal`, little set aside if `modest`, and neither GPUs
    nor other devices."""
    limits = {name: value for name, value in worker.resources.limits.items() if name in RESULTS_REQUESTS}
    asked = {name: value for name, value in worker.resources.requests.items() if name in RESULTS_REQUESTS}
    if frugal:
        limits = _at_most(RESULTS_LIMITS, limits)
    requests = _at_most(RESULTS_REQUESTS, {**limits, **asked}) if modest else _at_most({**asked, **limits}, asked)
    return _without_empty({"requests": requests, "limits": limits})


def _at_most(most: Mapping[str, str], amounts: Mapping[str, str]) -> dict[str, str]:
    return {name: min(amount, most[name], key=_amount) for name, amount in amounts.items()}


def environment(worker: Worker, own: dict[str, str], *, gpus: int) -> list[dict[str, Any]]:
    """The user's variables, which win over the defaults for a container without a home, and then the operator's own.

    `gpus`: how many this very pod asks for.
    """
    users = [_dumped(variable) for variable in worker.env]
    defaults = {
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "XDG_CACHE_HOME": "/tmp/.cache",
        "XDG_CONFIG_HOME": "/tmp/.config",
        "MPLCONFIGDIR": "/tmp/.config/matplotlib",
        "USER": "gala",  # getpass.getuser fails for a user id without an entry in /etc/passwd
        "PYTHONUNBUFFERED": "1",
    }
    if gpus == 0:
        # Where NVIDIA's runtime is the nodes' default, an image of CUDA's gets every GPU of the node without asking.
        defaults["NVIDIA_VISIBLE_DEVICES"] = "void"
    if threads := _threads(worker):
        defaults["OMP_NUM_THREADS"] = threads
        own = {**own, names.ENV_THREADS: threads}
    taken = {variable["name"] for variable in users}
    return [
        *({"name": name, "value": value} for name, value in defaults.items() if name not in taken),
        *users,
        *({"name": name, "value": value} for name, value in own.items()),
    ]


def volumes(worker: Worker, owner: Owner, checkpoint: CheckpointVolume | None, claim: str) -> dict[str, Any]:
    """The pod's volumes and the container's volumeMounts.

    A user's mount at the place of one of ours wins: a larger /dev/shm, a /tmp on a disk of one's own. Only the plan is
    always ours: `gala.spec` refuses mounts there, and without it no learner starts.

    Args:
        worker: of the run.
        owner: the run.
        checkpoint: where checkpoints live; None = in the pod.
        claim: the name of this pod's own claim, where each has one.
    """
    pod = _pod(worker)
    output: dict[str, Any] = {"emptyDir": {}}
    if checkpoint is not None:
        output = {"persistentVolumeClaim": {"claimName": checkpoint.claim_name or claim}}
    users_mounts = [_dumped(mount) for mount in pod.volume_mounts]
    taken = {normpath(mount["mountPath"]) for mount in users_mounts}
    own = [
        (PLAN_VOLUME, names.PLAN_MOUNT, {"configMap": {"name": names.plan_name(owner.name)}}),
        (OUTPUT_VOLUME, names.OUTPUT_MOUNT, output),
        (TEMPORARY_VOLUME, "/tmp", {"emptyDir": {}}),
        (SHARED_MEMORY_VOLUME, "/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY_SIZE}}),
    ]
    kept = [(name, path, source) for name, path, source in own if name == PLAN_VOLUME or path not in taken]
    mounts: list[dict[str, Any]] = [
        {"name": name, "mountPath": path} | ({"readOnly": True} if name == PLAN_VOLUME else {})
        for name, path, _ in kept
    ]
    return {
        "volumes": [
            *({"name": name, **source} for name, _, source in kept),
            *(_dumped(volume) for volume in pod.volumes),
        ],
        "volumeMounts": [*mounts, *users_mounts],
    }


def identity(worker: Worker, checkpoint: CheckpointVolume | None) -> dict[str, Any]:
    """The pod's securityContext: the restricted standard, and whose user and groups the run asks for."""
    chosen = _dumped(security) if (security := _pod(worker).security_context) is not None else {}
    groups: dict[str, Any] = {}
    if checkpoint is not None:
        groups = {"fsGroup": FILE_SYSTEM_GROUP, "fsGroupChangePolicy": "OnRootMismatch"}
    return {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **groups, **chosen}


def pod_metadata(worker: Worker) -> tuple[dict[str, str], dict[str, str]]:
    """The user's labels and annotations of the pods."""
    if worker.pod_template is None:
        return {}, {}
    metadata = worker.pod_template.metadata
    return dict(metadata.labels), dict(metadata.annotations)


def pod_fields(worker: Worker, *, gpus: int) -> dict[str, Any]:
    """The fields of a pod's spec that stand for themselves. `gpus`: how many this very pod asks for.

    A RuntimeClass for learners with GPUs is not for a pod without: it may come to a node that has no such runtime.
    """
    pod = _pod(worker)
    return {
        "terminationGracePeriodSeconds": pod.termination_grace_period_seconds,
        **_without_empty(
            {
                "serviceAccountName": worker.service_account_name,
                "imagePullSecrets": [_dumped(secret) for secret in pod.image_pull_secrets],
                "runtimeClassName": pod.runtime_class_name if gpus == worker.gpus else None,
            }
        ),
    }


def _pod(worker: Worker) -> PodSpec:
    return worker.pod_template.spec if worker.pod_template is not None else PodSpec()


def _dumped(section: Section) -> dict[str, Any]:
    """In the API's own words, without what nobody set."""
    return section.model_dump(mode="json", by_alias=True)


def _threads(worker: Worker) -> str | None:
    """Threads to compute with: the cores that a learner may use, or else those set aside for it.

    Without a limit a worker sees all cores of the node, and learners that each start a thread for every one of them are
    many times slower than learners with a thread each.
    """
    cores = worker.resources.limits.get("cpu") or worker.resources.requests.get("cpu")
    # Bounded first: as an integer, 1e9999999 would take ten million digits.
    return str(math.ceil(min(max(_amount(cores), Decimal(1)), Decimal(MAX_THREADS)))) if cores else None


def _amount(quantity: str) -> Decimal:
    amount: Decimal = parse_quantity(quantity)
    return amount


def _without_empty(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value not in (None, {}, [], ())}
