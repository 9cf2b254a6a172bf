"""The kinds of objects that the operator deals in, and where the API serves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gala import names

FIELD_MANAGER: Final = "gala-operator"
"""Owner of the fields that the operator sets: one name for ever, so that no version is in another's way."""

POD: Final = "Pod"
RUN: Final = names.KIND


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind as URLs name it."""

    group: str
    version: str
    plural: str

    @property
    def base(self) -> str:
        """`/api/v1`, `/apis/policy/v1`."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Of the collection, or of one object; without a namespace that of the whole cluster."""
        parts = [self.base, *(("namespaces", namespace) if namespace else ()), self.plural]
        return "/".join([*parts, *(part for part in (name, subresource) if part)])


RESOURCES: Final = {
    RUN: Resource(names.GROUP, names.VERSION, names.PLURAL),
    POD: Resource("", "v1", "pods"),
    "Service": Resource("", "v1", "services"),
    "ConfigMap": Resource("", "v1", "configmaps"),
    "NetworkPolicy": Resource("networking.k8s.io", "v1", "networkpolicies"),
    "PodDisruptionBudget": Resource("policy", "v1", "poddisruptionbudgets"),
    "PersistentVolumeClaim": Resource("", "v1", "persistentvolumeclaims"),
    "Event": Resource("", "v1", "events"),
    "Lease": Resource("coordination.k8s.io", "v1", "leases"),
}
OLD_DISRUPTION_BUDGET: Final = Resource("policy", "v1beta1", "poddisruptionbudgets")
"""Where servers before 1.21 have it."""
UNHEALTHY_POLICY: Final = "unhealthyPodEvictionPolicy"
"""A field of disruption budgets that those servers do not know."""

CHILD_KINDS: Final = ("Service", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "PersistentVolumeClaim")
WATCHED_KINDS: Final = (RUN, POD, *CHILD_KINDS)
