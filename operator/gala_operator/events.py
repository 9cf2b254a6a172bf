"""Kubernetes Events about a GalaRun: what `kubectl describe galarun` shows below the status.

`decide` says what is news; here it is only made sure that a repetition raises the count of the Event that is there.
They are posted in the background: a run is not kept waiting for a courtesy.
"""

from __future__ import annotations

import asyncio
import contextlib
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
MAX_WAITING: Final = 2048
"""Events that have not been posted yet; what comes on top is dropped."""
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


@dataclass(slots=True)
class _Waiting:
    namespace: str
    run: str
    event: RunEvent
    first: float
    last: float
    count: int = 1


Key = tuple[str, str, str]
"""uid of the run, reason, message."""


class EventPoster:
    """`post` puts an Event into a queue, `work` sends what is there. That it cannot is logged and nothing else."""

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
        self._posted: OrderedDict[Key, _Posted] = OrderedDict()
        self._waiting: OrderedDict[Key, _Waiting] = OrderedDict()
        self._news = asyncio.Event()
        self._last = 0

    def post(self, run: RunObject, event: RunEvent) -> None:
        """Once: the same reason and message about the same run within half an hour is counted, not repeated."""
        now = self._clock()
        message = event.message if len(event.message) <= MAX_MESSAGE else event.message[: MAX_MESSAGE - 3] + "..."
        key = run.uid, event.reason, message
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.count, waiting.last = waiting.count + 1, now
        elif len(self._waiting) >= MAX_WAITING:
            log.warning("%d events wait to be posted; this one is dropped: %s: %s", MAX_WAITING, event.reason, message)
        else:
            self._waiting[key] = _Waiting(run.namespace, run.name, event, first=now, last=now)
            self._news.set()

    async def work(self) -> None:
        """Until cancelled: one after the other, so that they do not crowd out what matters."""
        while True:
            await self._news.wait()
            await self._send_all()

    async def flush(self, seconds: float) -> None:
        """When `work` has ended: sends what is left, for so long at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._send_all()

    async def _send_all(self) -> None:
        while self._waiting:
            key, waiting = self._waiting.popitem(last=False)
            try:
                await self._send(key, waiting)
            except ApiError as error:
                log.warning("cannot post the event %s: %s", waiting.event.reason, error)
        self._news.clear()

    async def _send(self, key: Key, waiting: _Waiting) -> None:
        posted = self._posted.get(key)
        if posted is not None and waiting.last - posted.at < REPEAT_SECONDS:
            count = posted.count + waiting.count
            patch = {"count": count, "lastTimestamp": _time(waiting.last)}
            if await self._cluster.patch_event(waiting.namespace, posted.name, patch) is not None:
                posted.count, posted.at = count, waiting.last
                return
        self._last = max(int(waiting.first * 1e6), self._last + 1)  # no two of one name, however short the time between
        name = f"{waiting.run}.{self._last:x}"
        await self._cluster.create(self._manifest(key, waiting, name))
        self._posted[key] = _Posted(name, waiting.count, waiting.last)
        self._posted.move_to_end(key)
        while len(self._posted) > MAX_REMEMBERED:
            self._posted.popitem(last=False)

    def _manifest(self, key: Key, waiting: _Waiting, name: str) -> dict[str, Any]:
        uid, reason, message = key
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": waiting.namespace},
            "involvedObject": {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "namespace": waiting.namespace,
                "name": waiting.run,
                "uid": uid,
            },
            "type": waiting.event.type,
            "reason": reason,
            "message": message,
            "firstTimestamp": _time(waiting.first),
            "lastTimestamp": _time(waiting.last),
            "count": waiting.count,
            "source": {"component": FIELD_MANAGER, "host": self._identity},
            "reportingComponent": f"{names.GROUP}/{FIELD_MANAGER}",
            "reportingInstance": self._identity,
        }


def _time(seconds: float) -> str:
    return times.write(datetime.fromtimestamp(seconds, UTC))
