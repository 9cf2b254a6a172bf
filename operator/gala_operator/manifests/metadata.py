"""What all manifests have in common: owner, labels, hashes.

A hash is taken over canonical JSON with defaults left out, so that an operator that knows more fields than the one
before it computes the same hash for the same run: an upgrade is not a change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic.main import IncEx

from gala import names
from gala.algorithms import A2C, IMPALA
from gala.plan import RunPlan
from gala.spec import GalaRun, RunSpec
from gala_operator.actions import Manifest

MANAGED_BY: Final = "gala-operator"
HASH_CHARACTERS: Final = 16
_IMMUTABLE: Final[dict[str, Any]] = {
    "algorithm": True,
    "environment": True,
    "policy": True,
    "topology": {"type": True},
    "gossip": {"precision": True, "mixing": True},
    "seed": True,
}
"""`spec.immutable_fields`, as pydantic wants them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """The GalaRun that all children belong to: what the API server needs to know to delete them with it."""

    name: str
    namespace: str
    uid: str

    def reference(self) -> dict[str, Any]:
        """Its entry in a child's `ownerReferences`."""
        return {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }


def labels(owner: Owner, component: str = "training") -> dict[str, str]:
    """The labels of every child of a run."""
    return {
        "app.kubernetes.io/name": "gala",
        "app.kubernetes.io/instance": owner.name,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/managed-by": MANAGED_BY,
        names.LABEL_RUN: owner.name,
        names.LABEL_RUN_UID: owner.uid,
    }


def pod_labels(owner: Owner, role: str, rank: int | None = None) -> dict[str, str]:
    """Those of a pod, and of the claim that goes with it."""
    own = labels(owner, role) | {names.LABEL_ROLE: role}
    return own if rank is None else own | {names.LABEL_RANK: str(rank)}


def run_selector(owner: Owner) -> dict[str, str]:
    """Selects every pod of this very run, whatever its role, and none of an earlier run of the same name."""
    return {names.LABEL_RUN: owner.name, names.LABEL_RUN_UID: owner.uid}


def learner_selector(owner: Owner) -> dict[str, Any]:
    """A LabelSelector of the learners of this very run: its pods that have a rank, whatever their role.

    Roles are the algorithm's business, and the pods of every version of the operator have had a rank.
    """
    return {
        "matchLabels": run_selector(owner),
        "matchExpressions": [{"key": names.LABEL_RANK, "operator": "Exists"}],
    }


def metadata(
    owner: Owner, name: str, labels: Mapping[str, str], annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A child's metadata."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": dict(labels),
        "annotations": dict(annotations or {}),
        "ownerReferences": [owner.reference()],
    }


def stamped(manifest: Manifest, covers: Any = None) -> dict[str, Any]:
    """The manifest with its hash in an annotation; `covers` = what the hash is taken over, by default all of it."""
    stamp = {names.ANNOTATION_MANIFEST_HASH: digest(manifest if covers is None else covers)}
    return {
        **manifest,
        "metadata": {**manifest["metadata"], "annotations": {**manifest["metadata"]["annotations"], **stamp}},
    }


def plan_hash(plan: RunPlan) -> str:
    """What the workers are to know, but for the epoch: a new hash asks for a new epoch.

    What only a launcher reads is left out: suspending a run or giving its pods more memory is no news to the learners.
    """
    spec = _chosen(plan.spec, exclude={"worker", "run_policy"})
    return digest({"run": plan.run_name, "uid": plan.run_uid, "learners": len(plan.learners), "spec": spec})


def immutable_hash(run: GalaRun) -> str:
    """The fields that may not change while the run exists."""
    return digest(_chosen(run.spec, include=_IMMUTABLE))


def common_hash(run: GalaRun) -> str:
    """The fields that workers read at their start and must have alike, under algorithms where that is so.

    A2C's workers make the same update of the same gradients; IMPALA's learner takes rollouts of one length only.
    """
    is_common = run.spec.algorithm in (A2C, IMPALA)
    return digest(_chosen(run.spec, include={"hyperparameters", "precision"}) if is_common else {})


def spec_hash(run: GalaRun, image: str) -> str:
    """The part of the spec that pods are made from."""
    return digest([image, _chosen(run.spec, include={"worker": True, "checkpoint": {"volume"}})])


def digest(content: Any) -> str:
    """A short hash of anything JSON-like; the order of keys does not matter."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARACTERS]


def _chosen(spec: RunSpec, include: IncEx | None = None, exclude: IncEx | None = None) -> dict[str, Any]:
    """What somebody chose to have otherwise than by default."""
    chosen = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=include, exclude=exclude)
    return {key: value for key, value in chosen.items() if value != {}}
