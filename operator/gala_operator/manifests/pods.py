"""The pods of a run: its learners, and the one that gathers their results.

Every pod meets the restricted Pod Security Standard, has a read-only root and no API token. What a GalaRun's author may
change of it comes from `overlay` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from posixpath import join
from typing import Any, Final

from gala import names
from gala.plan import RunPlan
from gala.spec import GalaRun
from gala_operator.actions import Manifest
from gala_operator.manifests import overlay
from gala_operator.manifests.metadata import Owner, metadata, pod_labels, spec_hash
from gala_operator.settings import OperatorSettings

OPERATOR_VERSION: Final = version("gala")
HOLD_SECONDS: Final = 86_400
"""How long a finished learner offers its files though nobody asks for its status any more. The operator does, until the
results are in and it releases the learner: without an operator, too, no room is taken for ever."""
START_SECONDS: Final = 600
"""A cold start may load gigabytes of CUDA libraries from a slow disk before the worker answers."""


def learner_pod(
    run: GalaRun,
    owner: Owner,
    plan: RunPlan,
    rank: int,
    *,
    attempt: int,
    created: datetime,
    settings: OperatorSettings,
) -> Manifest:
    """The pod of one rank. `attempt` and `created` tell this life of the learner from those before it."""
    worker = run.spec.worker
    name = names.learner_name(owner.name, rank)
    return _pod(
        run,
        owner,
        plan,
        settings,
        name=name,
        labels=pod_labels(owner, plan.learner(rank).role, rank),
        annotations={names.ANNOTATION_ATTEMPT: str(attempt)},
        container=names.CONTAINER_LEARNER,
        module="gala_worker",
        environment={
            names.ENV_RANK: str(rank),
            names.ENV_INCARNATION: str(int(created.timestamp() * 1000)),
            names.ENV_HOLD: str(HOLD_SECONDS),
        },
        gpus=worker.gpus,
        resources=overlay.resources(worker),
        scheduling=overlay.scheduling(worker, owner),
    )


def results_pod(
    run: GalaRun,
    owner: Owner,
    plan: RunPlan,
    *,
    created: datetime,
    settings: OperatorSettings,
    modest: bool = True,
    frugal: bool = False,
) -> Manifest:
    """The pod that collects the learners' final models, averages, scores and serves them. It asks for no GPU.

    And for little else if it is `modest`; otherwise for the CPU and memory that a learner asks for. It may use what a
    learner may, unless it is `frugal`: then no more than it needs.
    """
    worker = run.spec.worker
    return _pod(
        run,
        owner,
        plan,
        settings,
        name=names.results_name(owner.name),
        labels=pod_labels(owner, names.ROLE_RESULTS),
        annotations={},
        container=names.CONTAINER_RESULTS,
        module="gala_worker.results",
        environment={names.ENV_INCARNATION: str(int(created.timestamp() * 1000))},
        gpus=0,
        resources=overlay.results_resources(worker, modest=modest, frugal=frugal),
        scheduling=overlay.results_scheduling(worker),
    )


def _pod(
    run: GalaRun,
    owner: Owner,
    plan: RunPlan,
    settings: OperatorSettings,
    *,
    name: str,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    container: str,
    module: str,
    environment: Mapping[str, str],
    gpus: int,
    resources: Mapping[str, Any],
    scheduling: Mapping[str, Any],
) -> Manifest:
    worker, checkpoint = run.spec.worker, run.spec.checkpoint.volume
    image = worker.image or settings.worker_image
    users_labels, users_annotations = overlay.pod_metadata(worker)
    volumes = overlay.volumes(worker, owner, checkpoint, name)
    own_environment = {
        names.ENV_PLAN_FILE: join(names.PLAN_MOUNT, names.PLAN_FILE),
        names.ENV_OUTPUT_DIR: join(names.OUTPUT_MOUNT, owner.name),
        **environment,
    }
    stamps = {
        names.ANNOTATION_PLAN_EPOCH: str(plan.epoch),
        names.ANNOTATION_SPEC_HASH: spec_hash(run, image),
        names.ANNOTATION_OPERATOR_VERSION: OPERATOR_VERSION,
        **annotations,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(owner, name, {**users_labels, **labels}, {**users_annotations, **stamps}),
        "spec": {
            "restartPolicy": "Never",
            "hostname": name,
            "subdomain": names.service_name(owner.name),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": overlay.identity(worker, checkpoint),
            **overlay.pod_fields(worker, gpus=gpus),
            **scheduling,
            "volumes": volumes["volumes"],
            "containers": [
                {
                    "name": container,
                    "image": image,
                    "imagePullPolicy": worker.image_pull_policy,
                    "command": ["python", "-m", module],
                    "env": overlay.environment(worker, own_environment, gpus=gpus),
                    "ports": [
                        {"name": "gossip", "containerPort": names.PORT_GOSSIP, "protocol": "TCP"},
                        {"name": "http", "containerPort": names.PORT_HTTP, "protocol": "TCP"},
                    ],
                    "resources": resources,
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "privileged": False,
                        "readOnlyRootFilesystem": True,
                        "runAsNonRoot": True,
                    },
                    "startupProbe": _probe("/healthz", every=2, failures=START_SECONDS // 2),
                    "livenessProbe": _probe("/healthz", every=10, failures=3),
                    "readinessProbe": _probe("/readyz", every=5, failures=2),
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "volumeMounts": volumes["volumeMounts"],
                }
            ],
        },
    }


def _probe(path: str, *, every: int, failures: int) -> dict[str, Any]:
    """Asks the worker's HTTP server; a busy node may take seconds to let it answer."""
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": every,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
