"""Why a pod does not get ready, lifted from the pod into one reason and one sentence for the run's status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from gala_operator import times
from gala_operator.failures import MISCONFIGURED, Tally
from gala_operator.observed import ObservedPod

_WAITING: Final[Mapping[str, str]] = {
    "ErrImagePull": "ErrImagePull",
    # The kubelet alternates between the two; one name keeps the status still.
    "ImagePullBackOff": "ErrImagePull",
    "ErrImageNeverPull": "ErrImageNeverPull",
    "InvalidImageName": "InvalidImageName",
    "CreateContainerConfigError": "CreateContainerConfigError",
    "CreateContainerError": "CreateContainerError",
    "RunContainerError": "RunContainerError",
}
UNSCHEDULABLE: Final = "Unschedulable"
NAME_CONFLICT: Final = "NameConflict"
BACKOFF_LIMIT_EXCEEDED: Final = "BackoffLimitExceeded"
OOM_KILLED: Final = "OOMKilled"
CRASH_LOOP: Final = "CrashLoopBackOff"
NODE_LOST: Final = "NodeLost"
OVERDUE: Final = timedelta(seconds=60)
"""How long after its grace a deleted pod may still be there before its node counts as lost."""
CONTAINER_CREATING: Final = "ContainerCreating"
SLOW_START: Final = timedelta(minutes=5)
"""How long a node may take to create a pod's container before that is told. A large image takes minutes; for a volume,
a Secret or a runtime that it will never have a node looks without end, and tells in Events only."""
WORTH_TELLING: Final = frozenset({*_WAITING.values(), UNSCHEDULABLE, NAME_CONFLICT, NODE_LOST, CONTAINER_CREATING})
"""Reasons of pods that neither come to life nor go without somebody's help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stuck:
    """Why a pod does not get ready."""

    reason: str
    """CamelCase."""
    message: str
    """Names the pod."""
    is_repetition: bool = False
    """The kubelet's "back-off pulling image": it says less than what it said before, which is worth keeping."""


def of_pod(pod: ObservedPod, now: datetime) -> Stuck | None:
    """Why a pod does not start; None if it only needs time."""
    if pod.phase != "Pending":
        return None
    if pod.scheduling_problem is not None:
        return Stuck(reason=UNSCHEDULABLE, message=f"{pod.name}: {pod.scheduling_problem}")
    if pod.waiting_reason is not None and pod.waiting_reason in _WAITING:
        return Stuck(
            reason=_WAITING[pod.waiting_reason],
            message=f"{pod.name}: {pod.waiting_message or pod.waiting_reason}",
            is_repetition=pod.waiting_reason == "ImagePullBackOff",
        )
    if (told_at := _slow_at(pod)) is not None and now >= told_at:
        since = times.write(pod.scheduled or pod.created)
        return Stuck(
            reason=CONTAINER_CREATING,
            message=f"{pod.name}: node {pod.node} has had it since {since} and has not created its container: it loads "
            "a large image, or lacks a volume, a Secret, a runtime class or an address; the pod's Events tell "
            f"(kubectl describe pod {pod.name})",
        )
    return None


def _slow_at(pod: ObservedPod) -> datetime | None:
    """When a pod that its node makes ready has taken long."""
    if pod.deleting or pod.phase != "Pending" or pod.waiting_reason != CONTAINER_CREATING:
        return None
    return (pod.scheduled or pod.created) + SLOW_START


def of_deletion(pod: ObservedPod, now: datetime) -> Stuck | None:
    """Why a pod that is being deleted does not go: its node does not say that it has ended, and may be lost.

    Nobody but the node, or who knows that the node is gone, can say that the process has ended. So such a pod is never
    removed by force: its successor would write the same volume under the same name.
    """
    if not pod.deleting or pod.end_due is None or now < pod.end_due + OVERDUE:
        return None
    node = f"node {pod.node}" if pod.node is not None else "its node"
    due = times.write(pod.end_due)
    return Stuck(
        reason=NODE_LOST,
        message=f"{pod.name} was to end by {due}, and {node} does not confirm it; it is replaced once the pod is gone:"
        " when the node answers again, or when it is removed from the cluster",
    )


def next_look(pods: Iterable[ObservedPod], now: datetime) -> datetime | None:
    """When the first of these pods has taken long: to go, or to get its container."""
    pods = list(pods)
    due = [pod.end_due + OVERDUE for pod in pods if pod.deleting and pod.end_due is not None]
    due += [at for pod in pods if (at := _slow_at(pod)) is not None]
    return min((at for at in due if at > now), default=None)


def of_failures(name: str, tally: Tally, limit: int) -> Stuck | None:
    """Why a learner that has failed is not ready; None if it never did."""
    if tally.last is None:
        return None
    last = f"{tally.last.reason}: {tally.last.message}" if tally.last.message else tally.last.reason
    if tally.is_final(limit):
        reason = MISCONFIGURED if tally.last.reason == MISCONFIGURED else BACKOFF_LIMIT_EXCEEDED
        return Stuck(reason=reason, message=f"{name} is left out after {_times(tally.failures)}; {last}")
    reason = CRASH_LOOP if tally.failures > 1 else "Error"
    if tally.last.reason == OOM_KILLED:
        reason = OOM_KILLED
    return Stuck(reason=reason, message=f"{name} restarts after {_times(tally.failures)} (limit {limit}); {last}")


def _times(failures: int) -> str:
    return "1 failure" if failures == 1 else f"{failures} failures"
