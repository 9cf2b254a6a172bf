"""Leader election: one at a time, quickly handed over, and never held without renewal."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gala_operator.cluster import ApiError
from gala_operator.leader import LEASE_NAME, LeaderElector
from gala_operator.testing import FakeCluster

LEASE_SECONDS = 0.6


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


def elector(cluster: FakeCluster, identity: str, **settings: Any) -> LeaderElector:
    return LeaderElector(cluster, namespace="gala", identity=identity, lease_seconds=LEASE_SECONDS, **settings)


def lease(cluster: FakeCluster) -> dict[str, Any]:
    spec: dict[str, Any] = cluster.objects["Lease", "gala", LEASE_NAME]["spec"]
    return spec


def test_the_first_one_makes_the_lease_and_leads() -> None:
    async def scenario() -> None:
        cluster = FakeCluster()
        await elector(cluster, "a").acquire()
        assert lease(cluster)["holderIdentity"] == "a"
        assert lease(cluster)["leaseTransitions"] == 0
        assert lease(cluster)["renewTime"].endswith("Z")

    run(scenario)


def test_a_second_one_waits_until_the_first_one_releases_and_then_need_not_wait_for_the_lease_to_expire() -> None:
    async def scenario() -> None:
        cluster = FakeCluster()
        first = elector(cluster, "a")
        await first.acquire()
        holding = asyncio.create_task(first.hold())
        second = asyncio.create_task(elector(cluster, "b").acquire())
        await asyncio.wait({second}, timeout=3 * LEASE_SECONDS)
        assert not second.done(), "the lease was renewed all the time"
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)
        await first.release()
        await second
        assert lease(cluster)["holderIdentity"] == "b"
        assert lease(cluster)["leaseTransitions"] == 1

    run(scenario)


def test_a_dead_leader_is_followed_after_its_lease_has_expired_and_not_before() -> None:
    async def scenario() -> None:
        cluster = FakeCluster()
        await elector(cluster, "a").acquire()
        lease(cluster)["leaseDurationSeconds"] = 1
        started = asyncio.get_running_loop().time()
        await elector(cluster, "b").acquire()
        assert asyncio.get_running_loop().time() - started >= 1.0
        assert lease(cluster)["holderIdentity"] == "b"

    run(scenario)


def test_of_two_that_ask_at_the_same_time_one_leads() -> None:
    async def scenario() -> None:
        cluster = FakeCluster()
        tasks = [asyncio.create_task(elector(cluster, name).acquire(), name=name) for name in "ab"]
        done, pending = await asyncio.wait(tasks, timeout=LEASE_SECONDS / 3)
        assert len(done) == 1
        assert lease(cluster)["holderIdentity"] == next(iter(done)).get_name()
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    run(scenario)


def test_a_leader_whose_lease_was_taken_is_told() -> None:
    async def scenario() -> None:
        cluster = FakeCluster()
        leader = elector(cluster, "a")
        await leader.acquire()
        holding = asyncio.create_task(leader.hold())
        await asyncio.sleep(0)
        stored = cluster.objects["Lease", "gala", LEASE_NAME]
        stored["spec"] = {**stored["spec"], "holderIdentity": "b", "leaseDurationSeconds": 3600}
        cluster.put(stored)
        await holding

    run(scenario)


@pytest.mark.parametrize("hang", [False, True], ids=["refuses", "hangs"])
def test_a_leader_that_cannot_renew_stops_before_its_lease_expires(hang: bool) -> None:
    async def scenario() -> None:
        cluster = FakeCluster()
        leader = elector(cluster, "a")
        await leader.acquire()
        if hang:

            async def get(kind: str, namespace: str, name: str) -> Any:
                await asyncio.Event().wait()

            cluster.get = get  # type: ignore[method-assign]
        else:
            cluster.fail("get", "Lease", ApiError(0, "ClientConnectorError", "refused"), times=1000)
        started = asyncio.get_running_loop().time()
        await leader.hold()
        assert asyncio.get_running_loop().time() - started < LEASE_SECONDS + 2.0

    run(scenario)


def test_a_single_failure_to_renew_is_survived() -> None:
    async def scenario() -> None:
        cluster = FakeCluster()
        leader = elector(cluster, "a")
        await leader.acquire()
        cluster.fail("get", "Lease", ApiError(500, "InternalError", "etcd is away"))
        holding = asyncio.create_task(leader.hold())
        before = lease(cluster)["renewTime"]
        while lease(cluster)["renewTime"] == before:
            await asyncio.sleep(0.01)
        assert not holding.done()
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)

    run(scenario)


def test_an_api_server_that_is_away_is_waited_for() -> None:
    async def scenario() -> None:
        cluster = FakeCluster()
        cluster.fail("get", "Lease", ApiError(0, "ClientConnectorError", "refused"), times=2)
        await elector(cluster, "a").acquire()
        assert lease(cluster)["holderIdentity"] == "a"

    run(scenario)


def test_a_restarted_leader_of_the_same_name_goes_on_at_once_and_keeps_its_acquire_time() -> None:
    async def scenario() -> None:
        cluster = FakeCluster()
        await elector(cluster, "a").acquire()
        acquired = lease(cluster)["acquireTime"]
        await elector(cluster, "a").acquire()
        assert lease(cluster)["acquireTime"] == acquired
        assert lease(cluster)["leaseTransitions"] == 0

    run(scenario)


@pytest.mark.parametrize(("error", "lines"), [((403, "Forbidden"), 0), ((500, "InternalError"), 1)])
def test_that_the_rights_are_gone_before_the_lease_is_released_is_not_worth_a_line(
    error: tuple[int, str], lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        cluster = FakeCluster()
        leader = elector(cluster, "a")
        await leader.acquire()
        cluster.fail("update", "Lease", ApiError(*error, "no"))
        await leader.release()

    run(scenario)
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == lines


def test_who_does_not_lead_releases_nothing() -> None:
    async def scenario() -> None:
        cluster = FakeCluster()
        await elector(cluster, "a").acquire()
        other = elector(cluster, "b")
        waiting = asyncio.create_task(other.acquire())
        while not any(call[0] == "get" for call in cluster.calls[2:]):
            await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await other.release()
        assert lease(cluster)["holderIdentity"] == "a"

    run(scenario)
