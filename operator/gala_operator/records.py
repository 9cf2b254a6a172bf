"""From raw Kubernetes objects to the slim records of `observed`.

Place in the flow: `handlers` and `cluster` hold raw dicts, `cache` keeps what these functions make of them. Nothing
here raises on what a cluster may deliver; an object that is not ours gives None.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast, get_args

from gala import names
from gala.answers import items, mapping, text
from gala_operator import times
from gala_operator.observed import ChildKind, ObservedChild, ObservedPod, PodPhase, RunObject

Raw = Mapping[str, Any]
Key = tuple[str, str]
"""(namespace, name) of a run: the unit of work."""

EPOCH: Final = datetime.fromtimestamp(0, UTC)
MAX_MESSAGE: Final = 2000
"""Characters kept of what a container, the kubelet or the scheduler says."""
DISRUPTIONS: Final = frozenset(
    {
        "Preempting",
        "Preempted",
        "PreemptionByScheduler",
        "PreemptionByKubeScheduler",
        "DeletionByTaintManager",
        "EvictionByEvictionAPI",
        "DeletionByPodGC",
        "TerminationByKubelet",
        "NodeLost",
        "NodeShutdown",
        "Shutdown",
        "Terminated",
        "NodeAffinity",
        "OutOfcpu",
        "OutOfmemory",
        "OutOfpods",
        "OutOfnvidia.com/gpu",
        "UnexpectedAdmissionError",
    }
)
"""`status.reason` of pods that the cluster ended, not themselves."""
EVICTED: Final = "Evicted"
OWN_USE: Final = re.compile(r"exceeds the (total )?limit|exceeded its local ephemeral storage limit")
"""The kubelet of pods that it evicts for what they use themselves, where they may not use as much. Others it evicts
since their node is short of something."""
DISRUPTION_TARGET: Final = "DisruptionTarget"
"""Condition of such pods, on newer servers."""
DEADLINE_EXCEEDED: Final = "DeadlineExceeded"
"""`status.reason` of a pod that used up the time its own spec gives it, maybe before anything of it had started."""
IMAGE_PROBLEMS: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError"}
)


def metadata(raw: Raw) -> Raw:
    """The object's metadata."""
    return mapping(raw.get("metadata"))


def key_of(kind: str, raw: Raw) -> Key | None:
    """The run that an object belongs to; None if it is none of ours."""
    meta = metadata(raw)
    name = meta.get("name") if kind == names.KIND else mapping(meta.get("labels")).get(names.LABEL_RUN)
    namespace = meta.get("namespace")
    if not isinstance(name, str) or not isinstance(namespace, str) or not name or not namespace:
        return None
    return sys.intern(namespace), sys.intern(name)


def run_object(raw: Raw) -> RunObject | None:
    """A GalaRun, whatever its spec says."""
    meta = metadata(raw)
    name, namespace, uid = meta.get("name"), meta.get("namespace"), meta.get("uid")
    if not (isinstance(name, str) and isinstance(namespace, str) and isinstance(uid, str)):
        return None
    document: dict[str, Any] = {
        "apiVersion": raw.get("apiVersion", names.API_VERSION),
        "kind": raw.get("kind", names.KIND),
        "metadata": {"name": name, "namespace": namespace},
    }
    if "spec" in raw:
        document["spec"] = raw["spec"]
    return RunObject(
        namespace=namespace,
        name=name,
        uid=uid,
        generation=_number(meta.get("generation")),
        deleting=bool(meta.get("deletionTimestamp")),
        document=document,
        status=mapping(raw.get("status")),
    )


def pod(raw: Raw) -> ObservedPod | None:
    """A pod that carries a run's label and ours; None for others."""
    meta, status = metadata(raw), mapping(raw.get("status"))
    labels, annotations = mapping(meta.get("labels")), mapping(meta.get("annotations"))
    name, uid = meta.get("name"), meta.get("uid")
    role = text(labels.get(names.LABEL_ROLE))
    rank = _rank(labels.get(names.LABEL_RANK))
    if not isinstance(name, str) or not isinstance(uid, str):
        return None
    if not role or (role == names.ROLE_RESULTS) != (rank is None):
        return None
    conditions = {text(condition.get("type")): condition for condition in items(status.get("conditions"))}
    containers = items(status.get("containerStatuses"))
    ours = names.CONTAINER_LEARNER if role != names.ROLE_RESULTS else names.CONTAINER_RESULTS
    # The kubelet sorts them by their names, and admission may have added some.
    container = next((each for each in containers if each.get("name") == ours), {})
    waiting, ended = _waiting(status, container), _ended(container)
    # While none of them is left the kubelet is about to say itself how the pod has ended: evicted, for one.
    lingering = bool(ended) and any(not _ended(each) for each in containers if each is not container)
    phase = _phase(status, ended, lingering=lingering)
    scheduled = conditions.get("PodScheduled", {})
    disrupted = _disrupted(status, phase, conditions)
    # Who has ended the pod says why; else the container does, and of its log the end is what tells.
    verdict = status if status.get("reason") else conditions.get(DISRUPTION_TARGET, {}) if disrupted else {}
    last_words = "" if disrupted else text(ended.get("message"))[-MAX_MESSAGE:]
    return ObservedPod(
        name=name,
        uid=uid,
        run_uid=sys.intern(text(labels.get(names.LABEL_RUN_UID))),
        role=sys.intern(role),
        rank=rank,
        attempt=_number(annotations.get(names.ANNOTATION_ATTEMPT)),
        plan_epoch=_number(annotations.get(names.ANNOTATION_PLAN_EPOCH)),
        created=times.read(meta.get("creationTimestamp")) or EPOCH,
        deleting=bool(meta.get("deletionTimestamp")),
        phase=phase,
        ready=conditions.get("Ready", {}).get("status") == "True",
        ip=_optional(status.get("podIP")),
        scheduling_problem=_optional(scheduled.get("message"), "cannot be scheduled")
        if scheduled.get("status") == "False"
        else None,
        scheduled=times.read(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None,
        waiting_reason=_optional(waiting.get("reason")),
        waiting_message=_optional(waiting.get("message")),
        exit_code=_exit_code(ended),
        termination_reason=_optional(verdict.get("reason")) or _optional(ended.get("reason")),
        termination_message=_optional(verdict.get("message")) or last_words or _optional(status.get("message")),
        disrupted=disrupted,
        finished_at=times.read(ended.get("finishedAt")),
        node=_optional(mapping(raw.get("spec")).get("nodeName")),
        lingering=lingering,
        end_due=times.read(meta.get("deletionTimestamp")),
    )


def child(kind: ChildKind, raw: Raw) -> ObservedChild | None:
    """A Service, ConfigMap... that carries a run's label."""
    meta = metadata(raw)
    name, uid = meta.get("name"), meta.get("uid")
    if not isinstance(name, str) or not isinstance(uid, str):
        return None
    owners = (owner for owner in items(meta.get("ownerReferences")) if owner.get("kind") == names.KIND)
    return ObservedChild(
        kind=kind,
        name=name,
        uid=uid,
        owner_uid=next((_optional(owner.get("uid")) for owner in owners), None),
        annotations={
            sys.intern(key): value
            for key, value in mapping(meta.get("annotations")).items()
            if isinstance(key, str) and isinstance(value, str) and key.startswith(f"{names.GROUP}/")
        },
        deleting=bool(meta.get("deletionTimestamp")),
    )


def _waiting(status: Raw, container: Raw) -> Raw:
    """What the pod waits for: the first init container that does not get on, or the container itself."""
    for each in [*items(status.get("initContainerStatuses")), container]:
        waiting = mapping(mapping(each.get("state")).get("waiting"))
        if waiting and (each is container or text(waiting.get("reason")) in IMAGE_PROBLEMS):
            return waiting
    return {}


def _ended(container: Raw) -> Raw:
    return mapping(mapping(container.get("state")).get("terminated"))


def _phase(status: Raw, ended: Raw, *, lingering: bool) -> PodPhase:
    phase = status.get("phase", "Pending")
    if lingering and phase in ("Pending", "Running"):
        return "Succeeded" if _exit_code(ended) == 0 else "Failed"
    return cast("PodPhase", sys.intern(phase)) if phase in get_args(PodPhase) else "Unknown"


def _disrupted(status: Raw, phase: PodPhase, conditions: Mapping[str, Raw]) -> bool:
    if phase == "Failed" and conditions.get(DISRUPTION_TARGET, {}).get("status") == "True":
        return True
    reason = text(status.get("reason"))
    if reason == EVICTED:
        return OWN_USE.search(text(status.get("message"))) is None
    if reason in DISRUPTIONS:
        return True
    # A node that does not admit a pod has many reasons: TopologyAffinityError, OutOf<any resource>...
    refused = status.get("phase") == "Failed" and reason not in ("", DEADLINE_EXCEEDED)
    return refused and not _has_started(status)


def _has_started(status: Raw) -> bool:
    """Whether any container of the pod runs or has run."""
    for each in [*items(status.get("initContainerStatuses")), *items(status.get("containerStatuses"))]:
        state = mapping(each.get("state"))
        if "running" in state or "terminated" in state or mapping(each.get("lastState")):
            return True
    return False


def _exit_code(ended: Raw) -> int | None:
    code = ended.get("exitCode")
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def _rank(value: Any) -> int | None:
    if not isinstance(value, str) or not value.isascii() or not value.isdigit() or len(value) > 4:
        return None
    return int(value) if int(value) < names.MAX_LEARNERS else None


def _number(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16 else 0


def _optional(value: Any, default: str | None = None) -> str | None:
    return value[:MAX_MESSAGE] if isinstance(value, str) and value else default
