"""The children of a run beside its pods, each a pure function of the run."""

from __future__ import annotations

from typing import Any, Final

from gala import names
from gala.errors import Problem, SpecError
from gala.plan import RunPlan
from gala.spec import GalaRun
from gala_operator.actions import Manifest
from gala_operator.manifests.metadata import (
    MANAGED_BY,
    Owner,
    common_hash,
    immutable_hash,
    labels,
    learner_selector,
    metadata,
    plan_hash,
    pod_labels,
    run_selector,
    stamped,
)
from gala_operator.settings import OperatorSettings

MAX_PLAN_BYTES: Final = 1_000_000
"""An API server takes objects of 1 MiB; the ConfigMap is more than the plan in it."""


def children(
    run: GalaRun, owner: Owner, plan: RunPlan, settings: OperatorSettings, *, left_out: int = 0
) -> tuple[Manifest, ...]:
    """All children but the pods, in the order in which they are to be applied.

    `left_out` learners have failed for good.

    Raises: SpecError, see `plan_config_map`.
    """
    return (
        service(owner),
        plan_config_map(run, owner, plan),
        network_policy(owner, plan, settings),
        disruption_budget(owner, left_out=left_out),
        *claims(run, owner, plan),
    )


def service(owner: Owner) -> Manifest:
    """Gives every learner a DNS name, `<run>-<rank>.<run>`, before it is ready: that is how it finds its neighbours.

    A Service selects by equal labels only, and learners of different roles have none in common that the results pod
    has not. So it selects every pod of the run, and the results pod has a name as well, which does no harm: nobody
    asks for the Service's own name. It also selects what an earlier version of the operator has made.
    """
    return stamped(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(owner, names.service_name(owner.name), labels(owner)),
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": run_selector(owner),
                "ports": [
                    {"name": name, "port": port, "targetPort": name, "protocol": "TCP"}
                    for name, port in (("gossip", names.PORT_GOSSIP), ("http", names.PORT_HTTP))
                ],
            },
        }
    )


def plan_config_map(run: GalaRun, owner: Owner, plan: RunPlan) -> Manifest:
    """Carries plan.json, with the epoch and the hashes of what it says in annotations.

    Raises: SpecError when the plan is too large for an API server: only topology Complete comes to that.
    """
    text = plan.to_json()
    if len(text.encode()) > MAX_PLAN_BYTES:
        raise SpecError(
            [
                Problem(
                    path="spec.learners",
                    message=f"make a plan of {len(text):,} bytes, too large for a ConfigMap ({MAX_PLAN_BYTES:,})",
                    remedy="lower it, or use a topology with fewer peers, such as Ring or Exponential",
                )
            ]
        )
    annotations = {
        names.ANNOTATION_PLAN_EPOCH: str(plan.epoch),
        names.ANNOTATION_PLAN_HASH: plan_hash(plan),
        names.ANNOTATION_IMMUTABLE_HASH: immutable_hash(run),
        names.ANNOTATION_COMMON_HASH: common_hash(run),
    }
    return stamped(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(owner, names.plan_name(owner.name), labels(owner), annotations),
            "data": {names.PLAN_FILE: text},
        }
    )


def network_policy(owner: Owner, plan: RunPlan, settings: OperatorSettings) -> Manifest:
    """Who may connect to the run's pods: one another, the operator, and the monitoring namespace where there is one.

    Only incoming traffic is limited. Environments and images may have to reach anything (a licence server, a data
    set, a bucket), which only the user can know; a second policy that selects the same pods can limit it.

    Where ranks open ports of their own choice, all ports are open to the run's own pods; else only those of GALA.
    """
    own = [{"podSelector": {"matchLabels": run_selector(owner)}}]
    http_from: list[dict[str, Any]] = [
        *own,
        {
            "namespaceSelector": _namespace(settings.namespace),
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": MANAGED_BY}},
        },
    ]
    if settings.monitoring_namespace:
        http_from.append({"namespaceSelector": _namespace(settings.monitoring_namespace)})
    among_themselves: dict[str, Any] = {"protocol": "TCP"}
    if not plan.opens_ports:
        among_themselves = {"port": names.PORT_GOSSIP, "protocol": "TCP"}
    return stamped(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata(owner, owner.name, labels(owner)),
            "spec": {
                "podSelector": {"matchLabels": run_selector(owner)},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {"from": own, "ports": [among_themselves]},
                    {"from": http_from, "ports": [{"port": names.PORT_HTTP, "protocol": "TCP"}]},
                ],
            },
        }
    )


def disruption_budget(owner: Owner, *, left_out: int = 0) -> Manifest:
    """Voluntary disruptions take one learner at a time; one that is not ready never stands in the way of a drain.

    The API server counts how many learners there should be through the GalaRun's scale subresource, as it does for
    every controller of pods. To it, learners that have failed for good are missing for ever: `left_out` of them are
    therefore allowed beside the one.
    """
    return stamped(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(owner, owner.name, labels(owner)),
            "spec": {
                "maxUnavailable": 1 + left_out,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": learner_selector(owner),
            },
        }
    )


def claims(run: GalaRun, owner: Owner, plan: RunPlan) -> tuple[Manifest, ...]:
    """One claim per learner and one for the results, where `checkpoint.volume.size` asks for them; else none.

    A claim is made once: most of its spec is immutable, so its hash covers only whose it is, and a change of the
    volume's size or class is not applied to claims that exist.
    """
    volume = run.spec.checkpoint.volume
    if volume is None or volume.size is None:
        return ()
    spec: dict[str, Any] = {
        "accessModes": [volume.access_mode or "ReadWriteOnce"],
        "resources": {"requests": {"storage": volume.size}},
    }
    if volume.storage_class_name is not None:
        spec["storageClassName"] = volume.storage_class_name
    places = [
        (names.learner_name(owner.name, learner.rank), pod_labels(owner, learner.role, learner.rank))
        for learner in plan.learners
    ]
    places.append((names.results_name(owner.name), pod_labels(owner, names.ROLE_RESULTS)))
    return tuple(
        stamped(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": metadata(owner, name, own_labels),
                "spec": spec,
            },
            covers=[name, owner.uid],
        )
        for name, own_labels in places
    )


def _namespace(name: str) -> dict[str, Any]:
    """Selects a namespace by the label that every API server from 1.22 on sets itself."""
    return {"matchLabels": {"kubernetes.io/metadata.name": name}}
