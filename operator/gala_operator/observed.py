"""What the operator knows of a run, as plain frozen data: the input of `decide`.

Place in the flow: watches deliver raw objects -> `cache` keeps these slim records of them -> `decide` reads them.
Nothing here does input or output, and nothing raises on what a cluster may deliver: a field that is missing or foreign
is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

PodPhase = Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]
ChildKind = Literal["Service", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "PersistentVolumeClaim"]
"""Children beside the pods, in the order in which they are made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunObject:
    """A GalaRun as the API server delivered it; its spec may be anything."""

    namespace: str
    name: str
    uid: str
    generation: int
    deleting: bool
    document: Mapping[str, Any]
    """apiVersion, kind, metadata, spec: what `gala.spec.parse` takes."""
    status: Mapping[str, Any]
    """As last seen; {} at first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservedPod:
    """A pod that carries a run's label."""

    name: str
    uid: str
    run_uid: str
    """Of the run that it was made for: a pod of an earlier run of the same name is not one of ours."""
    role: str
    """What the plan gave its rank when it was made, or `names.ROLE_RESULTS`."""
    rank: int | None
    """None for the results pod."""
    attempt: int
    plan_epoch: int
    """Of the annotation; it is patched when the plan changes, which makes the kubelet refresh the mounted plan."""
    created: datetime
    deleting: bool
    phase: PodPhase
    """Of our container: Succeeded or Failed as soon as that has ended, also where others of the pod go on."""
    ready: bool
    ip: str | None
    scheduling_problem: str | None = None
    """The scheduler's message while the pod cannot be placed."""
    scheduled: datetime | None = None
    """When it was placed."""
    waiting_reason: str | None = None
    """Of the container: ErrImagePull, ImagePullBackOff, CreateContainerConfigError, ContainerCreating..."""
    waiting_message: str | None = None
    exit_code: int | None = None
    termination_reason: str | None = None
    """OOMKilled, Error, Completed; Evicted and the like where the cluster says why."""
    termination_message: str | None = None
    """The cluster's words, or else the last lines of the container's log (FallbackToLogsOnError)."""
    disrupted: bool = False
    """Ended by the cluster and not by itself: condition DisruptionTarget, or reason Evicted (but for storage that it
    used itself), Preempted, NodeLost, NodeShutdown, Terminated, NodeAffinity..., or refused by its node. Does not count
    against backoffLimit."""
    finished_at: datetime | None = None
    node: str | None = None
    """Where it runs; None before it is placed."""
    lingering: bool = False
    """Our container has ended and another one of the pod goes on: a sidecar that somebody has injected."""
    end_due: datetime | None = None
    """Of a pod that is being deleted: when it was to have ended, its grace included (deletionTimestamp)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservedChild:
    """A child beside the pods."""

    kind: ChildKind
    name: str
    uid: str
    owner_uid: str | None
    """uid of the GalaRun that owns it; None for an object of somebody else's that happens to have the name."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Those under gala.dev/: manifest hash, plan epoch, immutable hash."""
    deleting: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerProgress:
    """A learner's answer to GET /status."""

    rank: int
    pod_uid: str
    """Of the pod that answered."""
    state: str
    """starting, training, waiting, stopping or finished."""
    epoch: int
    steps: int
    """Agent decisions of this learner."""
    global_steps: int
    """Agent decisions of all learners, as far as this one knows."""
    steps_per_second: float
    mean_return: float | None = None
    staleness: int | None = None
    disagreement: float | None = None
    """||x - m|| / ||x||."""
    in_peers: tuple[int, ...] = ()
    """Ranks that it hears from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsProgress:
    """The results pod's answer to GET /status."""

    pod_uid: str
    state: str
    """collecting, evaluating, ready or failed."""
    message: str = ""
    card: Mapping[str, Any] | None = None
    """The final model's card (`final/card.json`), once state is ready."""
    sha256: str | None = None
    """Of final/model.safetensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """Everything about one run beside the run itself."""

    pods: tuple[ObservedPod, ...] = ()
    children: tuple[ObservedChild, ...] = ()
    progress: Mapping[int, LearnerProgress] = field(default_factory=dict)
    """The last answer of each rank; of pods that are gone too, until their successor answers."""
    results: ResultsProgress | None = None
