"""Which ends of a pod count against `backoffLimit`, how often a pod has failed, and when it may try again.

The count lives in the run's status, because the operator may forget everything: a failure is written there, with the
uid of its pod, before that pod is deleted. So each pod counts once, however often it is seen, and none is missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from gala_operator import times
from gala_operator.observed import ObservedPod
from gala_operator.settings import OperatorSettings

USAGE_EXIT_CODE: Final = 2
"""A worker's exit code for the user's mistake: trying again will not help."""
MISCONFIGURED: Final = "Misconfigured"
"""Reason of such a failure."""
FIRST_RESTART: Final = timedelta(seconds=1)
"""The first failure may have been an accident; the next ones wait `restart_seconds`, then twice as long each."""
YOUNG: Final = timedelta(seconds=10)
"""A pod that the cluster ended within this time of its creation is replaced only after it: a node that refuses pods
would else be offered hundreds of them."""
MAX_MESSAGE: Final = 1024
MAX_REASON: Final = 256
MAX_LINE: Final = 300
_SIGNALS: Final = {134: "SIGABRT", 137: "SIGKILL", 139: "SIGSEGV", 143: "SIGTERM"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """How a pod failed."""

    pod_uid: str
    reason: str
    message: str
    time: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """The failures of one learner, or of the results pod, as the status remembers them."""

    failures: int = 0
    last: Failure | None = None

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Tally:
        """From `{failures, lastFailure}`; what is missing or foreign counts as never failed."""
        failures, last = entry.get("failures"), entry.get("lastFailure")
        count = failures if isinstance(failures, int) and failures > 0 else 0
        if not isinstance(last, Mapping) or (time := times.read(last.get("time"))) is None:
            return cls(failures=count)
        text = {key: str(last.get(key, "")) for key in ("podUID", "reason", "message")}
        return cls(
            failures=count,
            last=Failure(pod_uid=text["podUID"], reason=text["reason"], message=text["message"], time=time),
        )

    def document(self) -> dict[str, Any]:
        """What `read` reads."""
        if self.last is None:
            return {"failures": self.failures}
        return {
            "failures": self.failures,
            "lastFailure": {
                "podUID": self.last.pod_uid,
                "reason": self.last.reason,
                "message": self.last.message,
                "time": times.write(self.last.time),
            },
        }

    def has_counted(self, pod: ObservedPod) -> bool:
        """Whether this pod's failure is in the count."""
        return self.last is not None and self.last.pod_uid == pod.uid

    def count(self, pod: ObservedPod, now: datetime) -> Tally:
        """With this pod's failure in the count. Should the status be lost, the pod's own attempt is the floor."""
        if self.has_counted(pod):
            return self
        # A node's clock may be ahead of ours.
        time = min(pod.finished_at or now, now)
        failure = Failure(pod_uid=pod.uid, reason=_reason(pod), message=_message(pod), time=time)
        return Tally(failures=max(self.failures, pod.attempt) + 1, last=failure)

    def is_final(self, limit: int) -> bool:
        """Whether there is to be no further try."""
        return self.failures > limit or (self.last is not None and self.last.reason == MISCONFIGURED)

    def delay(self, settings: OperatorSettings) -> timedelta:
        """From the last failure to the next try."""
        if self.failures <= 1:
            return FIRST_RESTART
        doublings = min(self.failures - 2, 32)
        return timedelta(seconds=min(settings.restart_seconds * 2**doublings, settings.restart_seconds_max))

    def retry_at(self, settings: OperatorSettings) -> datetime | None:
        """When the next try may begin; None = at any time."""
        return None if self.last is None else self.last.time + self.delay(settings)


def has_failed(pod: ObservedPod) -> bool:
    """Whether the pod ended by a fault of its own."""
    return pod.phase == "Failed" and not pod.disrupted and not pod.deleting


def replaceable_at(pod: ObservedPod) -> datetime:
    """When a pod that ended without a fault of its own may be replaced: at once, unless it hardly lived."""
    return pod.created + YOUNG


def last_line(text: str | None) -> str:
    """The last line of a log that says anything, shortened."""
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1][:MAX_LINE] if lines else ""


def verdict(pod: ObservedPod) -> str:
    """Why the cluster ended a pod, in its words."""
    reason, message = pod.termination_reason or "disruption", last_line(pod.termination_message).rstrip(". ")
    return f"{reason}: {message}" if message else reason


def _reason(pod: ObservedPod) -> str:
    if pod.exit_code == USAGE_EXIT_CODE:
        return MISCONFIGURED
    return (pod.termination_reason or "Error")[:MAX_REASON]


def _message(pod: ObservedPod) -> str:
    parts = [last_line(pod.termination_message)]
    if pod.exit_code is not None:
        signal = f" ({_SIGNALS[pod.exit_code]})" if pod.exit_code in _SIGNALS else ""
        parts.append(f"exit code {pod.exit_code}{signal}")
    return "; ".join(part for part in parts if part)[:MAX_MESSAGE]
