"""One of several replicas does the work: whoever holds the Lease.

The protocol is that of every Kubernetes controller (client-go), and so is the Lease. `kubernetes.aio.leaderelection`
speaks it too, but writes local times as if they were UTC, keeps the Lease when it stops, and has no bound on a renewal
that hangs. Clocks of replicas are never compared: a Lease is expired when it has not changed for its duration as seen
here.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from gala.answers import mapping
from gala_operator.cluster import ApiError

log = logging.getLogger(__name__)

LEASE_NAME: Final = "gala-operator"


class LeaseApi(Protocol):
    """What is needed of the cluster."""

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None: ...
    async def create(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None: ...
    async def replace_lease(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None: ...


class LeaderElector:
    """`acquire`, then `hold` for as long as the work goes on, then `release`."""

    def __init__(
        self,
        api: LeaseApi,
        *,
        namespace: str,
        identity: str,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`identity` must be of this replica alone: a pod's name."""
        self._api = api
        self._namespace = namespace
        self._identity = identity
        self._lease_seconds = lease_seconds
        self._renew_seconds = lease_seconds * 2 / 3
        """Without a renewal for so long the work stops, well before anybody else may take over."""
        self._retry_seconds = lease_seconds * 2 / 15
        self._clock = clock
        self._wall_clock = wall_clock
        self._lease: dict[str, Any] | None = None
        self._seen: tuple[Any, Any] = (None, None)
        self._seen_at = clock()

    async def acquire(self) -> None:
        """Returns when this replica is the leader; until then it asks every few seconds."""
        log.info("standing by for the lease %s/%s as %s", self._namespace, LEASE_NAME, self._identity)
        while True:
            try:
                async with asyncio.timeout(self._renew_seconds):
                    if await self._try():
                        log.info("leading")
                        return
            except (ApiError, TimeoutError) as error:
                log.warning("cannot ask for the lease: %s", str(error) or "no answer in time")
            await asyncio.sleep(self._retry_seconds * random.uniform(1.0, 1.2))

    async def hold(self) -> None:
        """Renews; returns when the lease is lost: whoever leads must stop at once then."""
        renewed = self._clock()
        while True:
            await asyncio.sleep(self._retry_seconds)
            left = renewed + self._renew_seconds - self._clock()
            asked = self._clock()
            try:
                async with asyncio.timeout(max(left, 0.0)):
                    if not await self._try():
                        log.error("the lease is held by %s now", self._holder())
                        return
                renewed = asked
            except (ApiError, TimeoutError) as error:
                if self._clock() - renewed >= self._renew_seconds:
                    log.error("the lease could not be renewed in time: %s", str(error) or "no answer")
                    return
                log.warning("the lease could not be renewed yet: %s", str(error) or "no answer")

    async def release(self) -> None:
        """Lets the next replica have it at once. Best effort."""
        if self._lease is None or self._holder() != self._identity:
            return
        spec = {**self._lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": self._now()}
        try:
            async with asyncio.timeout(2.0):
                await self._api.replace_lease({**self._lease, "spec": spec})
        except (ApiError, TimeoutError) as error:
            if isinstance(error, ApiError) and error.status in (401, 403):
                return  # uninstalled: the rights went before the pods did, and nobody waits for the lease
            log.warning("cannot release the lease: %s", str(error) or "no answer in time")

    async def _try(self) -> bool:
        """Whether the lease is ours now."""
        lease = await self._api.get("Lease", self._namespace, LEASE_NAME)
        if lease is None:
            lease = await self._api.create(self._manifest())
            self._note(lease)
            return lease is not None
        self._note(lease)
        holder = self._holder()
        if holder and holder != self._identity:
            duration = mapping(lease.get("spec")).get("leaseDurationSeconds")
            seconds = float(duration) if isinstance(duration, int) else self._lease_seconds
            if self._clock() - self._seen_at < seconds:
                return False
            log.info("the lease of %s has expired", holder)
        before = dict(mapping(lease.get("spec")))
        spec = {**before, **self._manifest()["spec"]}
        if holder == self._identity:
            spec["acquireTime"] = before.get("acquireTime", spec["acquireTime"])
        else:
            transitions = before.get("leaseTransitions")
            spec["leaseTransitions"] = (transitions if isinstance(transitions, int) else 0) + 1
        replaced = await self._api.replace_lease({**lease, "spec": spec})
        if replaced is None:
            return False
        self._note(replaced)
        return True

    def _note(self, lease: dict[str, Any] | None) -> None:
        self._lease = lease
        spec = mapping(lease.get("spec")) if lease is not None else {}
        seen = (spec.get("holderIdentity"), spec.get("renewTime"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock()

    def _holder(self) -> str:
        return str(mapping((self._lease or {}).get("spec")).get("holderIdentity") or "")

    def _manifest(self) -> dict[str, Any]:
        now = self._now()
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": self._namespace, "name": LEASE_NAME},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": max(1, round(self._lease_seconds)),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": 0,
            },
        }

    def _now(self) -> str:
        return self._wall_clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
