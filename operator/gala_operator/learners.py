"""One learner: what its pod, its last answer and the status say about it, and what its pod needs next.

A running pod is never a candidate here: only pods that have ended are deleted, and only missing ones are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from gala import names
from gala.status_schema import LEARNER_STATES
from gala_operator import failures, stuck
from gala_operator.children import Difference
from gala_operator.failures import Tally
from gala_operator.observed import LearnerProgress, ObservedPod
from gala_operator.situation import Situation
from gala_operator.stuck import Stuck

WORKING: Final = frozenset({"training", "waiting"})
"""States of a learner in the ring; it changes between them too often to be worth a write."""
FINISHED: Final = "finished"
FAILED: Final = "failed"
BACKING_OFF: Final = "backing off"
_SETTLING: Final = timedelta(seconds=60)
"""How long after its restart a failure still explains why a learner is not ready."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learner:
    """One rank of the plan, assessed."""

    rank: int
    name: str
    pod: ObservedPod | None
    tally: Tally
    """With the failure of the present pod."""
    state: str
    """pending, starting, training, waiting, stopping, finished, backing off or failed."""
    progress: LearnerProgress | None
    """Of the present pod only."""
    stuck: Stuck | None = None
    create: bool = False
    delete: bool = False
    look_again: datetime | None = None
    disrupted: bool = False
    """The cluster ended its pod."""

    @property
    def ready(self) -> bool:
        """Whether it takes part in the ring, or has finished and serves its files."""
        return is_ready(self.pod)

    @property
    def troubled(self) -> bool:
        """Whether waiting alone may not make it ready."""
        return self.stuck is not None


def is_ready(pod: ObservedPod | None) -> bool:
    """Whether a pod runs, answers and stays."""
    return pod is not None and pod.ready and pod.phase == "Running" and not pod.deleting


def assess(situation: Situation, rank: int, difference: Difference) -> Learner:
    """What is so with one rank, and what its pod needs."""
    name = names.learner_name(situation.run.name, rank)
    pod = situation.pods.get(name)
    entry = situation.entries.get(rank, {})
    tally = Tally.read(entry)
    progress = situation.observed.progress.get(rank)
    if pod is None or progress is None or progress.pod_uid != pod.uid:
        progress = None
    if pod is None:
        return _without_pod(situation, rank, name, tally, difference)
    if pod.deleting:
        return Learner(
            rank=rank, name=name, pod=pod, tally=tally, state="stopping", progress=progress,
            stuck=stuck.of_deletion(pod, situation.now), look_again=stuck.next_look([pod], situation.now),
        )  # fmt: skip
    if failures.has_failed(pod):
        return _failed(situation, rank, pod, tally)
    if pod.phase == "Failed" or (pod.phase == "Succeeded" and not _has_finished(progress, entry)):
        return _ended_early(situation, rank, pod, tally)
    state = _state(pod, progress, entry)
    why = None
    if not is_ready(pod) and state != FINISHED:
        why = stuck.of_pod(pod, situation.now) or _aftermath(situation, name, pod, tally)
    return Learner(rank=rank, name=name, pod=pod, tally=tally, state=state, progress=progress, stuck=why)


def _without_pod(situation: Situation, rank: int, name: str, tally: Tally, difference: Difference) -> Learner:
    limit, now = situation.spec.run_policy.backoff_limit, situation.now
    if tally.is_final(limit):
        why = stuck.of_failures(name, tally, limit)
        return Learner(rank=rank, name=name, pod=None, tally=tally, state=FAILED, progress=None, stuck=why)
    why = _aftermath(situation, name, None, tally)
    retry_at = tally.retry_at(situation.settings)
    if retry_at is not None and retry_at > now:
        return Learner(
            rank=rank, name=name, pod=None, tally=tally, state=BACKING_OFF, progress=None, stuck=why,
            look_again=retry_at,
        )  # fmt: skip
    in_the_way = difference.claims.get(name)
    if situation.is_taken(name):
        in_the_way = f"pod {name} of an earlier run is still there"
    if in_the_way is not None:
        why = Stuck(reason=stuck.NAME_CONFLICT, message=in_the_way)
    create = in_the_way is None and difference.obstacle is None
    # What this very pass makes is starting when its status is written: one write, and not two.
    return Learner(
        rank=rank, name=name, pod=None, tally=tally, state="starting" if create else "pending", progress=None,
        stuck=why, create=create,
    )  # fmt: skip


def _failed(situation: Situation, rank: int, pod: ObservedPod, before: Tally) -> Learner:
    limit, now = situation.spec.run_policy.backoff_limit, situation.now
    tally = before.count(pod, now)
    why = stuck.of_failures(pod.name, tally, limit)
    if tally.is_final(limit):
        # Its pod stays, for its log.
        return Learner(rank=rank, name=pod.name, pod=pod, tally=tally, state=FAILED, progress=None, stuck=why)
    if not before.has_counted(pod):
        # First into the status; the next pass sees it there.
        look_again, delete = now + timedelta(seconds=1), False
    else:
        # Until the back-off is over the pod stays, for its log.
        retry_at = tally.retry_at(situation.settings) or now
        look_again, delete = retry_at, retry_at <= now
    return Learner(
        rank=rank, name=pod.name, pod=pod, tally=tally, state=BACKING_OFF, progress=None, stuck=why,
        delete=delete, look_again=look_again,
    )  # fmt: skip


def _ended_early(situation: Situation, rank: int, pod: ObservedPod, tally: Tally) -> Learner:
    """Disrupted, or it left because a plan of the past was without it: replaced, and nobody's fault."""
    at = failures.replaceable_at(pod)
    return Learner(
        rank=rank, name=pod.name, pod=pod, tally=tally, state="pending", progress=None, disrupted=pod.disrupted,
        delete=at <= situation.now, look_again=at,
    )  # fmt: skip


def _has_finished(progress: LearnerProgress | None, entry: Mapping[str, Any]) -> bool:
    """Whether a pod that succeeded was at the end of the training: unless it was last seen in the midst of it."""
    if progress is not None and progress.state == FINISHED:
        return True
    if entry.get("state") == FINISHED:
        return True
    return progress is None and entry.get("state") not in WORKING


def _state(pod: ObservedPod, progress: LearnerProgress | None, entry: Mapping[str, Any]) -> str:
    if pod.phase == "Succeeded":
        return FINISHED
    if pod.phase == "Pending":
        return "pending" if pod.scheduling_problem is not None else "starting"
    if not is_ready(pod):
        return "starting"
    previous = str(entry.get("state"))
    if progress is None:
        # After a restart of the operator, until it has asked.
        return previous if previous in WORKING or previous == FINISHED else "starting"
    if progress.state == "stopping" and previous == FINISHED:
        return FINISHED
    return progress.state if progress.state in LEARNER_STATES else "training"


def _aftermath(situation: Situation, name: str, pod: ObservedPod | None, tally: Tally) -> Stuck | None:
    """A failure explains why its successor is not ready, but only for a while: later there are other causes."""
    if tally.last is None or (pod is not None and pod.attempt != tally.failures):
        return None
    since = (situation.now if pod is None else pod.created) - tally.last.time
    if since > tally.delay(situation.settings) + _SETTLING:
        return None
    return stuck.of_failures(name, tally, situation.spec.run_policy.backoff_limit)
