"""What is to be done about a run: the output of `decide`, and all that `controller` can do.

The order in which the controller does it: `apply` in the given order, `delete`, `create`, `annotate`, `release`, then
the status, then the events. A failure of one ends the pass, and the next one decides anew from what is then observed.
A claim or a disruption budget that is refused does not end it: only the pod of that claim is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Manifest = Mapping[str, Any]
"""A Kubernetes object as it goes over the wire."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeletePod:
    """Only this very pod: the uid is a precondition, so that a successor of the same name is safe."""

    name: str
    uid: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatePod:
    """Only this very pod, likewise (the uid goes into the patch)."""

    name: str
    uid: str
    annotations: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEvent:
    """A Kubernetes Event on the GalaRun. The controller posts a (reason, message) once per transition."""

    type: Literal["Normal", "Warning"]
    reason: str
    """CamelCase: RingFormed, LearnerRestarted, Unschedulable..."""
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Actions:
    """One pass over a run. Empty when everything is as it should be."""

    apply: tuple[Manifest, ...] = ()
    """Children beside pods, by server-side apply; only those that are missing or differ."""
    create: tuple[Manifest, ...] = ()
    """Pods. 409 AlreadyExists is success: the next event says what is there."""
    delete: tuple[DeletePod, ...] = ()
    annotate: tuple[AnnotatePod, ...] = ()
    release: tuple[str, ...] = ()
    """Pod IPs whose worker may exit: POST http://IP:7071/release. Best effort."""
    delete_run: bool = False
    """The run's time to live is over."""
    status: Mapping[str, Any] = field(default_factory=dict)
    """The whole status as it should be; the controller writes it if it differs from what was last seen."""
    events: tuple[RunEvent, ...] = ()
    requeue_at: datetime | None = None
    """When to look again although nothing has happened: a back-off, a deadline, a time to live, a status due."""
    poll: bool = False
    """Whether the workers' /status are worth asking."""
