"""kopf's part: it watches, and every event goes into the cache and the run's key into the queue. Nothing else.

Only `kopf.on.event` is used, with the label selector on the server's side: such an operator leaves neither annotations
nor finalizers on anything, so that nothing hangs while it is down.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final

import kopf
from kubernetes.aio.client.configuration import Configuration

from gala import names
from gala_operator.cache import Cache
from gala_operator.kinds import POD, RUN, WATCHED_KINDS, Resource
from gala_operator.metrics import Metrics
from gala_operator.records import Key

WATCH_SECONDS: Final = 300
PAGE: Final = 500
MAX_BACK_OFF_SECONDS: Final = 5.0


class EndlessBackOffs(Iterable[float]):
    """Of a watch whose server is away: kopf gives a watch up for ever when its back-offs are used up."""

    def __iter__(self) -> Iterator[float]:
        seconds = 0.5
        while True:
            yield seconds
            seconds = min(2 * seconds, MAX_BACK_OFF_SECONDS)


class NoComparison(kopf.DiffBaseStorage):
    """kopf copies and compares every object of every event for handlers of changes. There are none here."""

    def build(self, *, body: kopf.Body, extra_fields: object = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Leaves no annotation."""


def register(
    *,
    cache: Cache,
    add: Callable[[Key], None],
    add_urgent: Callable[[Key], None],
    relisted: Callable[[], None],
    metrics: Metrics,
    resource: Callable[[str], Resource],
    configuration: Callable[[], Awaitable[Configuration]],
) -> kopf.OperatorRegistry:
    """A registry with a handler for every watched kind: `add_urgent` gets the runs that have lost a pod.

    `relisted` is called when a watch lists what there is: at first, and when the server does not know any more what has
    happened since the watch broke (410 Gone). Of what was deleted meanwhile nothing is told then.

    `resource` says where this server has a kind.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry, id="login")
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return _connection(await configuration())

    async def on_event(event: Any, param: Any = None, **_: Any) -> None:
        metrics.watch_last_event.labels(resource(param).plural).set(time.time())
        if event["type"] is None:
            relisted()
        is_gone = event["type"] == "DELETED"
        key = (cache.remove if is_gone else cache.put)(param, event["object"])
        if key is not None:
            (add_urgent if is_gone and param == POD else add)(key)

    for kind in WATCHED_KINDS:
        place = resource(kind)
        watch = kopf.on.event(
            place.group, place.version, place.plural, registry=registry, id=f"watch-{place.plural}", param=kind
        )
        watch(on_event)
    return registry


def watch_settings(resource: Callable[[str], Resource]) -> kopf.OperatorSettings:
    """kopf's settings: quiet, bounded, and with no trace in the cluster."""
    settings = kopf.OperatorSettings()
    settings.persistence.finalizer = f"{names.GROUP}/unused"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"kopf.{names.GROUP}")
    settings.persistence.diffbase_storage = NoComparison()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # no watches of namespaces and CRDs, and no rights for them
    settings.peering.standalone = True
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + 30
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = PAGE
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = EndlessBackOffs()
    settings.queueing.idle_timeout = 1.0  # tasks of thousands of quiet objects are not kept
    for kind in WATCHED_KINDS:
        if kind != RUN:
            place = resource(kind)
            settings.watching.label_selectors[place.group, place.version, place.plural] = names.LABEL_RUN
    return settings


def _connection(configuration: Configuration) -> kopf.ConnectionInfo:
    header = configuration.api_key.get("BearerToken") or configuration.api_key.get("authorization") or ""
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        token=header.split(" ", 1)[-1].strip() or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )
