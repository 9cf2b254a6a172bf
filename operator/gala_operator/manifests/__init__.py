"""Every Kubernetes object that a run has, as pure functions of the run: nothing here reads a clock or a cluster."""

from gala_operator.manifests.children import (
    children,
    claims,
    disruption_budget,
    network_policy,
    plan_config_map,
    service,
)
from gala_operator.manifests.metadata import Owner, common_hash, immutable_hash, plan_hash
from gala_operator.manifests.pods import learner_pod, results_pod

__all__ = [
    "Owner",
    "children",
    "claims",
    "common_hash",
    "disruption_budget",
    "immutable_hash",
    "learner_pod",
    "network_policy",
    "plan_config_map",
    "plan_hash",
    "results_pod",
    "service",
]
