"""`python -m gala_operator`: settings from the environment, everything put together, signals, the end.

API server -> handlers (kopf) -> cache, queue -> controller -> decide -> cluster -> API server
workers    -> poller ----------> cache, queue
              resync ----------> cache, queue
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Iterable
from typing import Any, Final

import kopf

from gala.errors import GalaError
from gala_operator import handlers, logs
from gala_operator.cache import Cache
from gala_operator.cluster import ApiError, Cluster, load_configuration
from gala_operator.controller import Controller
from gala_operator.decide import decide
from gala_operator.events import EventPoster
from gala_operator.leader import LeaderElector
from gala_operator.metrics import Metrics
from gala_operator.poller import Poller
from gala_operator.queue import WorkQueue
from gala_operator.records import Key
from gala_operator.resync import Health, Resync
from gala_operator.server import HealthServer
from gala_operator.settings import OperatorSettings

log = logging.getLogger("gala_operator")

DISCOVERY_SECONDS: Final = 5.0
LEASE_REQUESTS: Final = 1
"""At a time: the elector asks one after the other."""
MAX_NESTING: Final = 11_000
"""Calls within each other. An API server takes objects that are nested 10,000 deep, and a watch that could not read one
would take the operator down, now and at every start. Python's JSON, comparisons and texts of such objects take half of
a thread's usual 8 MiB."""
STOP_SECONDS: Final = 1.0
"""For what is left of the Events, and for kopf's tasks to end by themselves: they have nothing to lose."""


async def serve(settings: OperatorSettings) -> int:
    """The operator, until SIGTERM or SIGINT. Returns the exit code: 1 if it stopped for another reason."""
    stop = asyncio.Event()
    _on_signals(stop)
    metrics = Metrics()
    health = Health(settings.resync_seconds)
    cluster = Cluster(await load_configuration(), concurrency=settings.api_concurrency, observe=metrics.observe_request)
    # Behind hundreds of requests for the runs a renewal would come too late, and the lease would be lost.
    lease_cluster = Cluster(await load_configuration(), concurrency=LEASE_REQUESTS, observe=metrics.observe_request)
    elector = LeaderElector(
        lease_cluster,
        namespace=settings.namespace,
        identity=settings.identity,
        lease_seconds=settings.lease_seconds,
    )
    try:
        async with HealthServer(settings.http_port, health=health, metrics=metrics):
            if not await _unless_stopped(stop, _prepare(cluster, elector, settings, health)):
                return 0
            metrics.is_leader.set(1)
            return await _lead(stop, settings, cluster, elector, metrics, health)
    finally:
        metrics.is_leader.set(0)
        if settings.leader_election:
            await elector.release()
        await lease_cluster.close()
        await cluster.close()


async def _prepare(cluster: Cluster, elector: LeaderElector, settings: OperatorSettings, health: Health) -> None:
    """Waits for the API server, for the GalaRun resource, and for the lease."""
    while True:
        health.beat()
        try:
            await cluster.discover()
            break
        except ApiError as error:
            log.warning("waiting for the API server: %s", error)
            await asyncio.sleep(DISCOVERY_SECONDS)
    if settings.leader_election:
        health.is_ready = True
        await _beating(health, elector.acquire())
        health.is_ready = False


async def _lead(
    stop: asyncio.Event,
    settings: OperatorSettings,
    cluster: Cluster,
    elector: LeaderElector,
    metrics: Metrics,
    health: Health,
) -> int:
    cache = Cache()
    queue = WorkQueue[Key](waited=metrics.queue_wait_seconds.observe)
    metrics.watch(cache, depth=lambda: len(queue))
    poller = Poller(cache=cache, add=queue.add_routine, poll_seconds=settings.poll_seconds, metrics=metrics)
    events = EventPoster(cluster, identity=settings.identity)
    controller = Controller(
        cache=cache,
        cluster=cluster,
        workers=poller,
        events=events,
        decide=decide,
        settings=settings,
        metrics=metrics,
    )
    resync = Resync(
        cluster=cluster,
        cache=cache,
        add=queue.add_routine,
        health=health,
        metrics=metrics,
        namespaces=settings.namespaces,
        period_seconds=settings.resync_seconds,
    )

    async def reconcile() -> None:
        await resync.first()
        health.is_ready = True
        log.info("reconciling, %d runs at a time", settings.workers)
        async with asyncio.TaskGroup() as group:
            group.create_task(queue.work(controller.reconcile, workers=settings.workers), name="queue")
            group.create_task(resync.work(), name="resync")
            group.create_task(poller.work(), name="poller")
            group.create_task(events.work(), name="events")

    async with poller:
        watches_stop = asyncio.Event()
        # Started last and stopped first: what must not go on without the lease or without the watches.
        watches = asyncio.create_task(_watch(settings, cluster, cache, queue, resync, metrics, stop, watches_stop))
        duties = {asyncio.create_task(reconcile(), name="reconcile")}
        if settings.leader_election:
            duties.add(asyncio.create_task(elector.hold(), name="lease"))
        stopped = asyncio.create_task(stop.wait(), name="stop")
        done, _ = await asyncio.wait({watches, stopped, *duties}, return_when=asyncio.FIRST_COMPLETED)
        health.is_ready = False
        await _cancel([stopped, *duties])
        await events.flush(STOP_SECONDS)
        watches_stop.set()
        await asyncio.wait({watches}, timeout=STOP_SECONDS)
        await _cancel([watches])
    if stop.is_set():
        log.info("stopped")
        return 0
    for task in done:
        error = None if task.cancelled() else task.exception()
        log.error("%s ended, and with it the operator", task.get_name(), exc_info=error)
    return 1


async def _watch(
    settings: OperatorSettings,
    cluster: Cluster,
    cache: Cache,
    queue: WorkQueue[Key],
    resync: Resync,
    metrics: Metrics,
    stop: asyncio.Event,
    watches_stop: asyncio.Event,
) -> None:
    """kopf's operator, embedded: its tasks end when `watches_stop` is set."""
    others = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=handlers.register(
            cache=cache,
            add=queue.add,
            add_urgent=queue.add_urgent,
            relisted=resync.wake,
            metrics=metrics,
            resource=cluster.resource,
            configuration=load_configuration,
        ),
        settings=handlers.watch_settings(cluster.resource),
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        standalone=True,
        stop_flag=watches_stop,
    )
    _on_signals(stop)  # kopf has put its own handlers there: ours stops in the right order
    await kopf.run_tasks(tasks, ignored=others)


def _on_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether the work has ended before the signal came."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        await _cancel([task])
        return False
    await _cancel([stopped])
    task.result()
    return True


async def _beating(health: Health, work: Coroutine[Any, Any, None]) -> None:
    """Waits for `work`, which may rightly take for ever."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            health.beat()
            await asyncio.wait({task}, timeout=1.0)
        task.result()
    finally:
        await _cancel([task])


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


def main() -> int:
    """Returns the exit code: 2 for settings that cannot be used."""
    try:
        settings = OperatorSettings.from_environment(os.environ)
    except GalaError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    logs.set_up(settings.log_format)
    sys.setrecursionlimit(MAX_NESTING)
    try:
        return asyncio.run(serve(settings))
    except GalaError as error:
        log.error("%s", error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
