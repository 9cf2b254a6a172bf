"""One look at a run: what is observed -> `decide` -> the API.

Place in the flow: the workers of `queue` call `reconcile`. A look has two parts: what is to be done, and the status and
the Events that tell of it. The second may wait while other runs miss a pod. In the steady state nothing is written:
`decide` asks only for what differs, and the status is sent only where it differs from what was last seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from gala_operator.actions import Actions, DeletePod, Manifest, RunEvent
from gala_operator.cache import Cache
from gala_operator.cluster import ApiError
from gala_operator.conditions import NAME_TAKEN, REFUSED
from gala_operator.kinds import POD, RUN
from gala_operator.logs import run_context
from gala_operator.metrics import Metrics
from gala_operator.observed import Observed, RunObject
from gala_operator.patches import merge_patch, without_nulls
from gala_operator.queue import Rest
from gala_operator.records import Key, key_of
from gala_operator.settings import OperatorSettings
from gala_operator.status import with_problem

log = logging.getLogger(__name__)

Decide = Callable[[RunObject, Observed, datetime, OperatorSettings], Actions]
SOON_SECONDS: Final = 0.05
"""A time that decide asks for in the past, or right now, is at least so far away."""
CHANGED_SECONDS: Final = 2.0
"""A run that has changed since it was looked at is looked at again when its event comes, or else after so long."""
CLAIM: Final = "PersistentVolumeClaim"
MOMENTARY: Final = frozenset({0, 409, 429})
"""HTTP's statuses of failures that say nothing about what was asked for: no answer, somebody was quicker, overload."""
DISPENSABLE: Final = frozenset({CLAIM, "PodDisruptionBudget"})
"""Children without which the run goes on, but for the one pod that mounts a claim."""


class ClusterApi(Protocol):
    """What the controller needs of `cluster.Cluster`; see there."""

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None: ...
    async def apply(self, manifest: Mapping[str, Any]) -> dict[str, Any]: ...
    async def create(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None: ...
    async def delete_pod(self, namespace: str, name: str, uid: str) -> dict[str, Any] | None: ...
    async def delete_run(self, namespace: str, name: str, uid: str) -> None: ...
    async def annotate_pod(
        self, namespace: str, name: str, uid: str, annotations: Mapping[str, str]
    ) -> dict[str, Any] | None: ...
    async def patch_status(
        self, namespace: str, name: str, version: str, patch: Mapping[str, Any]
    ) -> dict[str, Any] | None: ...


class Workers(Protocol):
    """What the controller needs of `poller.Poller`; see there."""

    def watch(self, key: Key, wanted: bool) -> None: ...
    async def release(self, ip: str) -> None: ...


class Events(Protocol):
    """What the controller needs of `events.EventPoster`; see there."""

    def post(self, run: RunObject, event: RunEvent) -> None: ...


class NameTakenError(ApiError):
    """An object that is not the run's has the name of one of its children."""


class Controller:
    """Carries out what `decide` says. The queue sees to it that a run is looked at by one worker at a time."""

    def __init__(
        self,
        *,
        cache: Cache,
        cluster: ClusterApi,
        workers: Workers,
        events: Events,
        decide: Decide,
        settings: OperatorSettings,
        metrics: Metrics,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cache = cache
        self._cluster = cluster
        self._workers = workers
        self._events = events
        self._decide = decide
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._written: dict[Key, tuple[str, Mapping[str, Any]]] = {}
        """The run's resourceVersion after our last status, and that status: what the server prunes of it is not sent
        again and again."""
        self._failed: set[Key] = set()
        """Runs of which the last look has failed, by an answer that is neither a refusal nor `MOMENTARY`."""

    async def reconcile(self, key: Key) -> Rest:
        """One look, but for what tells of it, which is the `Rest`.

        Raises:
            ApiError: of both parts: something could not be done; what was decided after it has not been tried, unless
                the refused object was one that the rest can do without. The status tells of a refusal at once, and of
                a failure (an admission webhook that does not answer: 500) when it comes twice.
        """
        began = time.perf_counter()
        with self._error_counted(key):
            tell = await self._act(key)
        spent = time.perf_counter() - began

        async def rest() -> float | None:
            began = time.perf_counter()
            with self._error_counted(key):
                seconds = await tell()
            self._metrics.reconcile_seconds.observe(spent + time.perf_counter() - began)
            self._metrics.reconciles.labels("success").inc()
            return seconds

        return rest

    @contextlib.contextmanager
    def _error_counted(self, key: Key) -> Iterator[None]:
        with run_context(*key):
            try:
                yield
            except BaseException:
                self._metrics.reconciles.labels("error").inc()
                raise

    async def _act(self, key: Key) -> Rest:
        run = self._cache.run(key)
        if run is None or run.deleting:
            # What it owned goes with it: the garbage collector's work, also while no operator runs.
            self._workers.watch(key, False)
            self._written.pop(key, None)
            self._failed.discard(key)
            return _nothing
        now, version = self._clock(), self._cache.version(key)
        actions = self._decide(run, self._cache.observed(key), now, self._settings)
        refusal, decided = None, actions.status
        try:
            await self._carry_out(key, run, actions)
            self._failed.discard(key)
        except ApiError as error:
            if not self._may_last(key, error):
                raise
            # It may be refused for as long as a quota is used up: the status goes on, and says so.
            refusal = error
            reason = NAME_TAKEN if isinstance(error, NameTakenError) else REFUSED
            decided = with_problem(decided, reason, error.message, generation=run.generation, now=now)
            if decided["message"] != run.status.get("message"):
                self._events.post(run, RunEvent(type="Warning", reason=reason, message=error.message))
        self._workers.watch(key, actions.poll)
        return lambda: self._tell(key, run, version, actions, decided, refusal)

    def _may_last(self, key: Key, error: ApiError) -> bool:
        """Whether the status should not wait until it is over: a refusal, or the second failure in a row."""
        if _is_refusal(error):
            return True
        if error.status in MOMENTARY:
            return False
        is_second = key in self._failed
        self._failed.add(key)
        return is_second

    async def _tell(
        self,
        key: Key,
        run: RunObject,
        version: str,
        actions: Actions,
        decided: Mapping[str, Any],
        refusal: ApiError | None,
    ) -> float | None:
        if actions.delete_run:
            log.info("the run's time to live is over")
            await self._cluster.delete_run(run.namespace, run.name, run.uid)
            return None
        told = await self._write_status(key, run, version, decided)
        if told:
            for event in actions.events:
                log.info("%s: %s", event.reason, event.message)
                self._events.post(run, event)
        if refusal is not None:
            raise refusal
        if not told:
            return CHANGED_SECONDS
        if actions.requeue_at is None:
            return None
        return max((actions.requeue_at - self._clock()).total_seconds(), SOON_SECONDS)

    async def _carry_out(self, key: Key, run: RunObject, actions: Actions) -> None:
        refusals: list[ApiError] = []
        refused_claims: set[str] = set()
        for manifest in actions.apply:
            kind, name = manifest["kind"], manifest["metadata"]["name"]
            try:
                await self._apply(key, run, manifest)
            except ApiError as error:
                if kind not in DISPENSABLE or not _is_refusal(error):
                    raise
                refusals.append(error)
                if kind == CLAIM:
                    refused_claims.add(name)
        # A claim has the name of the pod that it is for.
        create = [manifest for manifest in actions.create if manifest["metadata"]["name"] not in refused_claims]
        await _together(self._delete(run, deletion) for deletion in actions.delete)
        await _together(self._create(key, run, manifest) for manifest in create)
        await _together(
            self._put_pod(self._cluster.annotate_pod(run.namespace, note.name, note.uid, note.annotations))
            for note in actions.annotate
        )
        await asyncio.gather(*(self._workers.release(ip) for ip in actions.release))
        if refusals:
            raise refusals[0]

    async def _apply(self, key: Key, run: RunObject, manifest: Manifest) -> None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if self._cache.has_child(key, kind, name):
            log.info("applying %s %s", kind, name)
            self._cache.put(kind, await self._cluster.apply(manifest))
        else:
            # Without our label we do not see it: an apply would make somebody else's object ours.
            await self._create(key, run, manifest)

    async def _delete(self, run: RunObject, deletion: DeletePod) -> None:
        log.info("deleting pod %s", deletion.name)
        left = await self._cluster.delete_pod(run.namespace, deletion.name, deletion.uid)
        if left is None:
            self._cache.remove_uid(POD, (run.namespace, deletion.name), deletion.uid)
        else:
            self._cache.put(POD, left)

    async def _create(self, key: Key, run: RunObject, manifest: Manifest) -> None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        log.info("creating %s %s", kind, name)
        made = await self._cluster.create(manifest)
        if made is None:
            made = await self._cluster.get(kind, run.namespace, name)
            if made is not None and key_of(kind, made) != key:
                raise _taken(kind, name, run)
        if made is not None:
            self._cache.put(kind, made)

    async def _put_pod(self, answer: Any) -> None:
        raw = await answer
        if raw is not None:
            self._cache.put(POD, raw)

    async def _write_status(self, key: Key, run: RunObject, version: str, status: Mapping[str, Any]) -> bool:
        """Whether the status that was decided of this version of the run is now the run's."""
        status = without_nulls(status)
        if self._written.get(key) == (version, status):
            return True
        patch = merge_patch(run.status, status)
        if not patch:
            return True
        answer = await self._cluster.patch_status(run.namespace, run.name, version, patch)
        if answer is None:  # changed or deleted meanwhile
            return False
        self._cache.put(RUN, answer)
        self._written[key] = (str(answer.get("metadata", {}).get("resourceVersion", "")), status)
        return True


async def _nothing() -> None:
    """Of a run that is no more, nothing is told."""


async def _together(awaitables: Any) -> None:
    """All at once; the first failure is raised when all have ended."""
    for result in await asyncio.gather(*awaitables, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _is_refusal(error: ApiError) -> bool:
    """Whether trying again will not help before somebody has done something about it."""
    return error.is_refusal or isinstance(error, NameTakenError)


def _taken(kind: str, name: str, run: RunObject) -> NameTakenError:
    return NameTakenError(
        409,
        "NameTaken",
        f"there is a {kind} {name} in namespace {run.namespace} that does not belong to this run; "
        "remove it, or use another name for the run",
    )
