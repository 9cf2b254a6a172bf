"""Compares what the watches have delivered with what the API server has: at the start, and every few minutes.

At the start nothing may be decided before everything has been seen, or running learners would be missed. Later this
finds what a watch has lost: objects that were deleted while it was broken are removed, as soon as it has been listed
anew, and a watch that delivers nothing any more is noticed, which ends the process; its successor starts with fresh
ones.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from gala.errors import GalaError
from gala_operator.cache import Cache
from gala_operator.cluster import ApiError
from gala_operator.kinds import WATCHED_KINDS
from gala_operator.metrics import Metrics
from gala_operator.records import Key

log = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 10.0
"""How long the watches may take at the start before the lists are read again: something may have been deleted."""
MAX_ATTEMPTS: Final = 6
FAILED_SECONDS: Final = 15.0
"""After a resync that failed."""
SETTLING_SECONDS: Final = 2.0
"""From a list that was read anew to the comparison: mostly there are several lists, and they take their time."""
STALLED_PERIODS: Final = 3
FORBIDDEN: Final = 403


class WatchStalledError(GalaError):
    """A watch has not delivered for a whole period what the API server has."""


class ListApi(Protocol):
    """What is needed of the cluster."""

    def list_metadata(self, kind: str, namespace: str | None) -> AsyncIterator[Mapping[str, Any]]: ...


class Health:
    """Whether the operator is alive and whether it works; `server` tells kubelet."""

    def __init__(self, period_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = STALLED_PERIODS * period_seconds
        self._clock = clock
        self._beat = clock()
        self.is_ready = False
        """Standing by as a replica counts: it does what it should."""

    def beat(self) -> None:
        """The resync loop has come round."""
        self._beat = self._clock()

    def complaint(self) -> str | None:
        """Why the process should be restarted; None while it is healthy."""
        silent = self._clock() - self._beat
        return None if silent <= self._limit else f"no resync for {silent:.0f} s"


@dataclass(slots=True)
class _Listed:
    """All objects of a kind, as far as they may be listed."""

    versions: dict[str, str] = field(default_factory=dict)
    """uid -> resourceVersion."""
    refused: dict[str, ApiError] = field(default_factory=dict)
    """The namespaces that are missing in it."""


class Resync:
    """One loop for the whole operator."""

    def __init__(
        self,
        *,
        cluster: ListApi,
        cache: Cache,
        add: Callable[[Key], None],
        health: Health,
        metrics: Metrics,
        namespaces: Sequence[str],
        period_seconds: float,
    ) -> None:
        """`add` is called with every run at every resync."""
        self._cluster = cluster
        self._cache = cache
        self._add = add
        self._health = health
        self._metrics = metrics
        self._namespaces = namespaces
        self._period_seconds = period_seconds
        self._late: dict[str, str] = {}
        """uid -> our version of it (empty: none), of what was behind when the watches were judged."""
        self._refused: dict[str, ApiError] = {}
        """Namespaces that could not be listed the last time: it has been said."""
        self._relisted = asyncio.Event()

    def wake(self) -> None:
        """A watch has been listed anew: what went in the meantime will not be told of, so that it is looked for."""
        self._relisted.set()

    async def first(self) -> None:
        """Returns when everything that the API server has is in the cache, but for namespaces that refuse.

        Raises:
            ApiError: the operator lacks a right that it needs: in all its namespaces.
            WatchStalledError: a watch does not deliver.
        """
        started = time.monotonic()
        attempts = 0
        while True:
            try:
                lists = {kind: await self._list(kind) for kind in WATCHED_KINDS}
            except ApiError as error:
                if error.is_refusal:
                    raise
                log.warning("cannot list what there is: %s", error)
                self._health.beat()  # to be restarted would not help
                await asyncio.sleep(1.0)
                continue
            self._tell_refused(lists.values())
            patience = time.monotonic() + PATIENCE_SECONDS
            while missing := sum(len(self._missing(kind, listed.versions)) for kind, listed in lists.items()):
                if time.monotonic() > patience:
                    break
                await asyncio.sleep(0.1)
            if not missing:
                break
            attempts += 1
            if attempts == MAX_ATTEMPTS:
                raise WatchStalledError(f"{missing} objects have not come within {time.monotonic() - started:.0f} s")
            log.warning("waiting for the watches: %d objects have not come yet", missing)
        self._health.beat()
        self._relisted.clear()
        runs = self._cache.all_keys()
        log.info("%d runs seen in %.1f s", len(runs), time.monotonic() - started)
        for key in runs:
            self._add(key)

    async def work(self) -> None:
        """Until cancelled.

        Raises:
            WatchStalledError: a watch is dead.
        """
        while True:
            due = time.monotonic() + self._period_seconds
            while await self._is_woken(until=due):
                await self._insist(judge=False)
            await self._insist(judge=True)

    async def _is_woken(self, *, until: float) -> bool:
        try:
            async with asyncio.timeout(until - time.monotonic()):
                await self._relisted.wait()
                await asyncio.sleep(SETTLING_SECONDS)
        except TimeoutError:
            return False
        self._relisted.clear()
        return True

    async def _insist(self, *, judge: bool) -> None:
        while not await self._try(judge):
            self._health.beat()  # to be restarted would not help against a server that is down
            await asyncio.sleep(min(FAILED_SECONDS, self._period_seconds))
        self._health.beat()

    async def _try(self, judge: bool) -> bool:
        try:
            await self.compare(judge=judge)
        except ApiError as error:
            self._metrics.resyncs.labels("error").inc()
            log.warning("resync: %s", error)
            return False
        self._metrics.resyncs.labels("success").inc()
        return True

    async def compare(self, *, judge: bool = True) -> None:
        """One resync. What is in a namespace that refuses is left as it was.

        A watch that is behind is dead if it was as far behind when it was judged the last time, a whole period ago.

        Raises:
            ApiError: the server does not answer, or refuses everywhere.
            WatchStalledError: a watch is dead.
        """
        late: dict[str, str] = {}
        lists: list[_Listed] = []
        for kind in WATCHED_KINDS:
            before = self._cache.versions(kind)
            listed = await self._list(kind)
            lists.append(listed)
            for uid, (place, version) in before.items():
                if uid not in listed.versions and place[0] not in listed.refused and not self._cache.is_gone(uid):
                    log.info("%s %s/%s is gone; its deletion was missed", kind, *place)
                    self._cache.remove_uid(kind, place, uid, version)
            now = self._cache.versions(kind)
            for uid, version in listed.versions.items():
                ours = now[uid][1] if uid in now else ""
                if ours != version and not self._cache.is_gone(uid, version) and not _is_newer(ours, version):
                    late[uid] = ours
                    if judge and self._late.get(uid) == ours:
                        raise WatchStalledError(
                            f"the watch of {kind} is dead: uid {uid} is at version {version}, seen {ours or 'never'}"
                        )
        if judge:
            self._late = late
        self._tell_refused(lists)
        for key in self._cache.all_keys():
            self._add(key)

    async def _list(self, kind: str) -> _Listed:
        """One namespace that refuses, mostly because it was deleted and our rights in it with it, is not all."""
        listed = _Listed()
        places: Sequence[str | None] = self._namespaces or (None,)
        for place in places:
            try:
                async for meta in self._cluster.list_metadata(kind, place):
                    listed.versions[meta["uid"]] = meta["resourceVersion"]
            except ApiError as error:
                if error.status != FORBIDDEN or place is None:
                    raise
                listed.refused[place] = error
                if len(listed.refused) == len(places):
                    raise
        return listed

    def _tell_refused(self, lists: Iterable[_Listed]) -> None:
        refused = {place: error for listed in lists for place, error in listed.refused.items()}
        for place in refused.keys() - self._refused.keys():
            log.warning("namespace %s refuses to be listed, the others go on: %s", place, refused[place])
        self._refused = refused

    def _missing(self, kind: str, listed: Mapping[str, str]) -> set[str]:
        seen = self._cache.versions(kind)
        return {uid for uid, version in listed.items() if uid not in seen and not self._cache.is_gone(uid, version)}


def _is_newer(ours: str, version: str) -> bool:
    return ours.isdigit() and version.isdigit() and int(ours) > int(version)
