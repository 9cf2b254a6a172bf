"""For tests: raw objects as an API server delivers them, and a cluster in memory at the seam of `cluster.Cluster`."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from gala import names
from gala_operator import times
from gala_operator.cluster import ApiError
from gala_operator.observed import RunObject

Raw = dict[str, Any]

NAMESPACE: Final = "lab"
RUN_UID: Final = "11111111-0000-4000-8000-000000000001"
START: Final = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
CREATED: Final = times.write(START)


def run_raw(name: str = "pong", *, uid: str = RUN_UID, version: int = 1, **changes: Any) -> Raw:
    """A GalaRun of two learners; `changes` replace whole sections."""
    raw: Raw = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": uid,
            "resourceVersion": str(version),
            "generation": 1,
            "creationTimestamp": CREATED,
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": {"algorithm": "GALA-A2C", "environment": {"id": "CartPole-v1"}, "learners": 2, "totalSteps": 1000},
    }
    raw.update(changes)
    return raw


def run_object(**spec: Any) -> RunObject:
    """A GalaRun called pong, not looked at yet, with such fields of its spec."""
    return RunObject(
        namespace="default",
        name="pong",
        uid="run-1",
        generation=1,
        deleting=False,
        document={
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": "pong", "namespace": "default"},
            "spec": {"environment": {"id": "CartPole-v1"}, **spec},
        },
        status={},
    )


def pod_raw(rank: int = 0, *, run: str = "pong", uid: str | None = None, version: int = 1, **status: Any) -> Raw:
    """A learner's pod, pending unless `status` says otherwise."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": names.learner_name(run, rank),
            "namespace": NAMESPACE,
            "uid": uid or f"pod-{run}-{rank}",
            "resourceVersion": str(version),
            "creationTimestamp": CREATED,
            "labels": {
                names.LABEL_RUN: run,
                names.LABEL_RUN_UID: RUN_UID,
                names.LABEL_RANK: str(rank),
                names.LABEL_ROLE: names.ROLE_ACTOR_LEARNER,
            },
            "annotations": {names.ANNOTATION_ATTEMPT: "2", names.ANNOTATION_PLAN_EPOCH: "3"},
        },
        "spec": {"containers": [{"name": "learner"}]},
        "status": {"phase": "Pending", **status},
    }


def child_raw(kind: str, name: str = "pong", *, uid: str | None = None, version: int = 1, run: str = "pong") -> Raw:
    """A Service, ConfigMap... of a run."""
    return {
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": uid or f"{kind}-{name}",
            "resourceVersion": str(version),
            "labels": {names.LABEL_RUN: run},
            "annotations": {names.ANNOTATION_MANIFEST_HASH: "abc", "kubectl.kubernetes.io/last-applied": "x"},
            "ownerReferences": [{"kind": names.KIND, "uid": RUN_UID, "controller": True}],
        },
    }


class FakeCluster:
    """Objects in memory with uids and resource versions; no scheduler, no kubelet, no garbage collector."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Raw] = {}
        self.calls: list[tuple[str, str, str]] = []
        """(verb, resource, name) of every request, in order; of a list the namespace."""
        self.failures: list[Callable[[str, str, str], ApiError | None]] = []
        """Asked about every request; what one returns is raised."""
        self._version = 1000

    @property
    def writes(self) -> list[tuple[str, str, str]]:
        """The calls that were no reads."""
        return [call for call in self.calls if call[0] not in ("get", "list")]

    def fail(self, verb: str, resource: str, error: ApiError, *, times: int = 1) -> None:
        """The next requests of that kind fail."""
        left = times

        def failure(called: str, on: str, name: str) -> ApiError | None:
            nonlocal left
            if (called, on) != (verb, resource) or left == 0:
                return None
            left -= 1
            return error

        self.failures.append(failure)

    def put(self, raw: Mapping[str, Any]) -> Raw:
        """Stores an object as if somebody else had written it. Returns it as the watch would deliver it."""
        meta = raw["metadata"]
        place = raw["kind"], meta["namespace"], meta["name"]
        before = self.objects.get(place)
        self._version += 1
        stored = copy.deepcopy(dict(raw))
        stored["metadata"] = {
            "creationTimestamp": CREATED,
            "uid": before["metadata"]["uid"] if before is not None else f"uid-{self._version}",
            **stored["metadata"],
            "resourceVersion": str(self._version),
        }
        self.objects[place] = stored
        return copy.deepcopy(stored)

    async def get(self, kind: str, namespace: str, name: str) -> Raw | None:
        self._called("get", kind, name)
        return copy.deepcopy(self.objects.get((kind, namespace, name)))

    async def apply(self, manifest: Mapping[str, Any]) -> Raw:
        self._called("apply", manifest["kind"], manifest["metadata"]["name"])
        return self.put(manifest)

    async def create(self, manifest: Mapping[str, Any]) -> Raw | None:
        kind, meta = manifest["kind"], manifest["metadata"]
        self._called("create", kind, meta["name"])
        if (kind, meta["namespace"], meta["name"]) in self.objects:
            return None
        return self.put(manifest)

    async def delete_pod(self, namespace: str, name: str, uid: str) -> Raw | None:
        self._called("delete", "Pod", name)
        stored = self.objects.get(("Pod", namespace, name))
        if stored is None or stored["metadata"]["uid"] != uid:
            return None
        del self.objects["Pod", namespace, name]
        return None

    async def delete_run(self, namespace: str, name: str, uid: str) -> None:
        self._called("delete", names.KIND, name)
        self.objects.pop((names.KIND, namespace, name), None)

    async def annotate_pod(self, namespace: str, name: str, uid: str, annotations: Mapping[str, str]) -> Raw | None:
        self._called("patch", "Pod", name)
        stored = self.objects.get(("Pod", namespace, name))
        if stored is None or stored["metadata"]["uid"] != uid:
            return None
        stored["metadata"].setdefault("annotations", {}).update(annotations)
        return self.put(stored)

    async def patch_status(self, namespace: str, name: str, version: str, patch: Mapping[str, Any]) -> Raw | None:
        self._called("patch", f"{names.KIND}/status", name)
        stored = self.objects.get((names.KIND, namespace, name))
        if stored is None or stored["metadata"]["resourceVersion"] != version:
            return None
        stored["status"] = merged(stored.get("status", {}), patch)
        return self.put(stored)

    async def patch_event(self, namespace: str, name: str, patch: Mapping[str, Any]) -> Raw | None:
        self._called("patch", "Event", name)
        stored = self.objects.get(("Event", namespace, name))
        return None if stored is None else self.put({**stored, **patch})

    async def replace_lease(self, manifest: Mapping[str, Any]) -> Raw | None:
        meta = manifest["metadata"]
        self._called("update", "Lease", meta["name"])
        stored = self.objects.get(("Lease", meta["namespace"], meta["name"]))
        if stored is None or stored["metadata"]["resourceVersion"] != meta.get("resourceVersion"):
            return None
        return self.put(manifest)

    async def list_metadata(self, kind: str, namespace: str | None) -> AsyncIterator[Raw]:
        self._called("list", kind, namespace or "")
        for (stored_kind, stored_in, _), raw in list(self.objects.items()):
            if stored_kind == kind and namespace in (None, stored_in):
                yield copy.deepcopy(raw["metadata"])

    def _called(self, verb: str, resource: str, name: str) -> None:
        self.calls.append((verb, resource, name))
        for failure in self.failures:
            error = failure(verb, resource, name)
            if error is not None:
                raise error


def merged(before: Mapping[str, Any], patch: Mapping[str, Any]) -> Raw:
    """A JSON merge patch (RFC 7386), applied."""
    result = dict(before)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping):
            old = result.get(name)
            result[name] = merged(old if isinstance(old, Mapping) else {}, value)
        else:
            result[name] = value
    return result
