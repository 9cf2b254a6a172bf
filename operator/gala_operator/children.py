"""The children beside the pods: which plan is in force, which children are to be applied, what is in their way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gala import names
from gala.plan import RunPlan, plan
from gala.spec import GalaRun
from gala_operator import manifests, situation
from gala_operator.actions import Manifest
from gala_operator.observed import Observed, ObservedChild, RunObject


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Between the children that should be and those that are."""

    apply: tuple[Manifest, ...]
    obstacle: str | None
    """What has to go before any pod can be made, as a sentence."""
    claims: Mapping[str, str]
    """Likewise for the pod that has the name of a claim that is in the way."""


def current_plan(run: RunObject, document: GalaRun, observed: Observed) -> RunPlan:
    """The plan with its epoch: the one that the ConfigMap has, or the next one if the plan says something else.

    From a cache that lags behind, a pass computes the same epoch again, and so applies the same manifest again.
    """
    child = plan_child(run, observed)
    if child is not None:
        epoch = _integer(child.annotations.get(names.ANNOTATION_PLAN_EPOCH))
        planned = plan(document, epoch=epoch, uid=run.uid)
        if child.annotations.get(names.ANNOTATION_PLAN_HASH) == manifests.plan_hash(planned):
            return planned
        return plan(document, epoch=epoch + 1, uid=run.uid)
    # At the start, or somebody has deleted it: workers ignore an epoch older than theirs.
    known = [_integer(run.status.get("epoch")), *(pod.plan_epoch for pod in situation.own_pods(run, observed))]
    changed = "epoch" in run.status and run.status.get("observedGeneration") != run.generation
    return plan(document, epoch=max(known) + changed, uid=run.uid)


def plan_child(run: RunObject, observed: Observed) -> ObservedChild | None:
    """This run's ConfigMap."""
    return next(
        (
            child
            for child in observed.children
            if child.kind == "ConfigMap" and child.name == names.plan_name(run.name) and child.owner_uid == run.uid
        ),
        None,
    )


def compare(wanted: Iterable[Manifest], run: RunObject, observed: Observed) -> Difference:
    """Children are compared by the hash of the manifest that was applied, never field by field: servers and others
    add fields of their own."""
    existing = {(child.kind, child.name): child for child in observed.children}
    apply: list[Manifest] = []
    obstacles: list[str] = []
    claims: dict[str, str] = {}
    for manifest in wanted:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        child = existing.get((kind, name))
        in_the_way = None if child is None else _in_the_way(child, run)
        if in_the_way is not None and kind == "PersistentVolumeClaim":
            claims[name] = in_the_way
        elif in_the_way is not None:
            obstacles.append(in_the_way)
        elif child is None or child.annotations.get(names.ANNOTATION_MANIFEST_HASH) != _hash(manifest):
            apply.append(manifest)
    return Difference(apply=tuple(apply), obstacle=obstacles[0] if obstacles else None, claims=claims)


def _in_the_way(child: ObservedChild, run: RunObject) -> str | None:
    if child.owner_uid is None:
        return f"{child.kind} {child.name} is not this run's; delete it, or give the run another name"
    if child.owner_uid != run.uid:
        return f"{child.kind} {child.name} of an earlier run is still there"
    return f"{child.kind} {child.name} is being deleted" if child.deleting else None


def _hash(manifest: Manifest) -> str:
    return str(manifest["metadata"]["annotations"][names.ANNOTATION_MANIFEST_HASH])


def _integer(text: object) -> int:
    try:
        return max(0, int(str(text)))
    except ValueError:
        return 0
