"""Kubernetes Events about a GalaRun: what `kubectl describe galarun` shows below the status.

`decide` says what is news; here it is only made sure that a repetition raises the count of the Event that is there.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from gala import names
from gala_operator import times
from gala_operator.actions import RunEvent
from gala_operator.cluster import ApiError
from gala_operator.kinds import FIELD_MANAGER
from gala_operator.observed import RunObject

log = logging.getLogger(__name__)

REPEAT_SECONDS: Final = 1800.0
"""A server keeps an Event for an hour by default; a repetition after this long is a new one."""
MAX_REMEMBERED: Final = 4096
MAX_MESSAGE: Final = 1024
"""Characters, by the API."""


class EventApi(Protocol):
    """What is needed of the cluster."""

    async def create(self, manifest: dict[str, Any]) -> Any: ...
    async def patch_event(self, namespace: str, name: str, patch: dict[str, Any]) -> Any: ...


@dataclass(slots=True)
class _Posted:
    name: str
    count: int
    at: float


class EventPoster:
    """Posts Events. That it cannot is logged and nothing else: an Event is a courtesy."""

    def __init__(
        self,
        cluster: EventApi,
        *,
        identity: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`identity` of this replica; `clock` in seconds since the epoch."""
        self._cluster = cluster
        self._identity = identity
        self._clock = clock
        self._posted: OrderedDict[tuple[str, str, str], _Posted] = OrderedDict()

    async def post(self, run: RunObject, event: RunEvent) -> None:
        """Once: the same reason and message about the same run within half an hour is counted, not repeated."""
        now = self._clock()
        message = event.message if len(event.message) <= MAX_MESSAGE else event.message[: MAX_MESSAGE - 3] + "..."
        key = run.uid, event.reason, message
        posted = self._posted.get(key)
        try:
            if posted is not None and now - posted.at < REPEAT_SECONDS:
                patch = {"count": posted.count + 1, "lastTimestamp": _time(now)}
                if await self._cluster.patch_event(run.namespace, posted.name, patch) is not None:
                    posted.count, posted.at = posted.count + 1, now
                    return
            name = f"{run.name}.{int(now * 1e6):x}"
            await self._cluster.create(self._manifest(run, event, message, name, _time(now)))
        except ApiError as error:
            log.warning("cannot post the event %s: %s", event.reason, error)
            return
        self._posted[key] = _Posted(name, 1, now)
        self._posted.move_to_end(key)
        while len(self._posted) > MAX_REMEMBERED:
            self._posted.popitem(last=False)

    def _manifest(self, run: RunObject, event: RunEvent, message: str, name: str, now: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": run.namespace},
            "involvedObject": {
                "apiVersion": f"{names.GROUP}/{names.VERSION}",
                "kind": names.KIND,
                "namespace": run.namespace,
                "name": run.name,
                "uid": run.uid,
            },
            "type": event.type,
            "reason": event.reason,
            "message": message,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": FIELD_MANAGER, "host": self._identity},
            "reportingComponent": f"{names.GROUP}/{FIELD_MANAGER}",
            "reportingInstance": self._identity,
        }


def _time(seconds: float) -> str:
    return times.write(datetime.fromtimestamp(seconds, UTC))
