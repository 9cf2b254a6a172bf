"""A controller in a cluster in memory, with nobody else at work."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from gala_operator.actions import Actions
from gala_operator.cache import Cache
from gala_operator.controller import Controller
from gala_operator.events import EventPoster
from gala_operator.metrics import Metrics
from gala_operator.observed import Observed, RunObject
from gala_operator.records import Key
from gala_operator.settings import OperatorSettings
from gala_operator.testing import FakeCluster

KEY = ("lab", "pong")
NOW = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
STATUS = {"state": "Starting", "learners": 2}


class FakeWorkers:
    def __init__(self) -> None:
        self.watched: dict[Key, bool] = {}
        self.released: list[str] = []

    def watch(self, key: Key, wanted: bool) -> None:
        self.watched[key] = wanted

    async def release(self, ip: str) -> None:
        self.released.append(ip)


class World:
    """A controller between a scripted decide and a cluster in memory."""

    def __init__(self, decide: Callable[[RunObject, Observed], Actions]) -> None:
        self.cluster = FakeCluster()
        self.cache = Cache()
        self.workers = FakeWorkers()
        self.metrics = Metrics()
        self.events = EventPoster(self.cluster, identity="replica-0")
        self.controller = Controller(
            cache=self.cache,
            cluster=self.cluster,
            workers=self.workers,
            events=self.events,
            decide=lambda run, observed, now, settings: decide(run, observed),
            settings=OperatorSettings(),
            metrics=self.metrics,
            clock=lambda: NOW,
        )

    def see(self, raw: Mapping[str, Any]) -> None:
        """The object exists and the watch has delivered it."""
        self.cache.put(raw["kind"], self.cluster.put(raw))

    def reconcile(self) -> float | None:
        """And everything that it has left to be done in the background."""

        async def reconcile() -> float | None:
            try:
                tell = await self.controller.reconcile(KEY)
                return await tell()
            finally:
                await self.events.flush(1.0)

        return asyncio.run(reconcile())

    def results(self) -> dict[str, float]:
        return {
            result: self.metrics.registry.get_sample_value("galarun_operator_reconcile_total", {"result": result}) or 0
            for result in ("success", "error")
        }


def labelled(raw: dict[str, Any]) -> dict[str, Any]:
    """As our manifests are: without what only a server writes."""
    meta = {name: value for name, value in raw["metadata"].items() if name not in ("uid", "resourceVersion")}
    return {**raw, "metadata": meta}
