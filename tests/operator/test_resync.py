"""The comparison of what was seen with what there is."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gala_operator import resync as resync_module
from gala_operator.cache import Cache
from gala_operator.cluster import ApiError
from gala_operator.metrics import Metrics
from gala_operator.records import Key
from gala_operator.resync import Health, Resync, WatchStalledError
from gala_operator.testing import FakeCluster, child_raw, pod_raw, run_raw

KEY = ("lab", "pong")


class World:
    def __init__(self, period_seconds: float = 0.02, namespaces: tuple[str, ...] = ()) -> None:
        self.cluster = FakeCluster()
        self.cache = Cache()
        self.added: list[Key] = []
        self.health = Health(period_seconds)
        self.resync = Resync(
            cluster=self.cluster,
            cache=self.cache,
            add=self.added.append,
            health=self.health,
            metrics=Metrics(),
            namespaces=namespaces,
            period_seconds=period_seconds,
        )

    def see(self, raw: dict) -> None:
        """The object exists and the watch has delivered it."""
        self.cache.put(raw["kind"], self.cluster.put(raw))


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_nothing_is_queued_before_everything_has_been_seen() -> None:
    async def scenario() -> None:
        world = World()
        late = [world.cluster.put(raw) for raw in (run_raw(), pod_raw(0), child_raw("Service"))]
        first = asyncio.create_task(world.resync.first())
        for raw in late:
            await asyncio.wait({first}, timeout=0.15)
            assert not first.done()
            assert world.added == []
            world.cache.put(raw["kind"], raw)
        await first
        assert world.added == [KEY]

    run(scenario)


def test_an_empty_cluster_is_in_view_at_once() -> None:
    async def scenario() -> None:
        world = World()
        await world.resync.first()
        assert world.added == []

    run(scenario)


def test_what_is_deleted_during_the_start_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync_module, "PATIENCE_SECONDS", 0.2)

    async def scenario() -> None:
        world = World()
        seen_to_go, unseen = world.cluster.put(pod_raw(0)), world.cluster.put(pod_raw(1))
        first = asyncio.create_task(world.resync.first())
        await asyncio.wait({first}, timeout=0.05)
        world.cache.remove("Pod", seen_to_go)
        del world.cluster.objects["Pod", "lab", "pong-0"]
        del world.cluster.objects["Pod", "lab", unseen["metadata"]["name"]]
        await first

    run(scenario)


def test_a_watch_that_never_delivers_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync_module, "PATIENCE_SECONDS", 0.01)

    async def scenario() -> None:
        world = World()
        world.cluster.put(run_raw())
        with pytest.raises(WatchStalledError, match="1 objects have not come"):
            await world.resync.first()

    run(scenario)


def test_a_missing_right_ends_the_start_and_a_server_that_is_away_does_not() -> None:
    async def scenario() -> None:
        world = World()
        world.cluster.fail("list", "Pod", ApiError(503, "ServiceUnavailable", "starting"))
        await world.resync.first()
        world.cluster.fail("list", "Pod", ApiError(403, "Forbidden", "cannot list resource pods"))
        with pytest.raises(ApiError, match="cannot list resource pods"):
            await world.resync.first()

    run(scenario)


def refusing(*namespaces: str) -> Callable[[str, str, str], ApiError | None]:
    """As where such a namespace was deleted, and the operator's Role and RoleBinding in it."""

    def failure(verb: str, resource: str, name: str) -> ApiError | None:
        return ApiError(403, "Forbidden", "cannot list") if verb == "list" and name in namespaces else None

    return failure


def elsewhere(raw: dict) -> dict:
    return {**raw, "metadata": {**raw["metadata"], "namespace": "gone", "uid": f"gone-{raw['metadata']['uid']}"}}


def test_a_namespace_that_refuses_does_not_keep_the_others_from_starting(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        world = World(namespaces=("lab", "gone"))
        world.see(run_raw())
        world.cluster.failures.append(refusing("gone"))
        await world.resync.first()
        assert world.added == [KEY]

    run(scenario)
    assert [record.message for record in caplog.records if "gone" in record.message] == [
        "namespace gone refuses to be listed, the others go on: 403 Forbidden: cannot list"
    ]


def test_a_resync_goes_on_without_a_namespace_that_refuses_and_drops_nothing_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        world = World(namespaces=("gone", "lab"))
        for raw in (run_raw(), pod_raw(0), elsewhere(run_raw()), elsewhere(pod_raw(0))):
            world.see(raw)
        world.cluster.objects.clear()
        world.see(run_raw())
        world.cluster.failures.append(refusing("gone"))
        for _ in range(3):
            await world.resync.compare()
        assert world.cache.pods(KEY) == (), "its deletion was missed"
        assert [pod.name for pod in world.cache.pods(("gone", "pong"))] == ["pong-0"]
        world.cluster.failures.clear()
        await world.resync.compare()
        assert world.cache.all_keys() == {KEY}

    run(scenario)
    assert len([record for record in caplog.records if "refuses" in record.message]) == 1, "it is said once"


def test_where_all_namespaces_refuse_the_rights_are_missing() -> None:
    async def scenario() -> None:
        world = World(namespaces=("lab", "gone"))
        world.cluster.failures.append(refusing("gone", "lab"))
        for ask in (world.resync.first, world.resync.compare):
            with pytest.raises(ApiError, match="cannot list"):
                await ask()

    run(scenario)


def test_a_resync_removes_what_went_unseen_and_queues_every_run() -> None:
    async def scenario() -> None:
        world = World()
        world.see(run_raw())
        world.see(pod_raw(0))
        world.see(pod_raw(1))
        del world.cluster.objects["Pod", "lab", "pong-1"]
        await world.resync.compare()
        assert [pod.name for pod in world.cache.pods(KEY)] == ["pong-0"]
        assert world.added == [KEY]
        assert world.cluster.writes == []

    run(scenario)


def test_a_pod_that_got_its_label_back_is_waited_for_and_seen() -> None:
    async def scenario() -> None:
        world = World()
        world.see(pod_raw(0))
        del world.cluster.objects["Pod", "lab", "pong-0"]
        await world.resync.compare()
        back = world.cluster.put(pod_raw(0))
        await world.resync.compare()
        world.cache.put("Pod", back)
        await world.resync.compare()
        assert [pod.name for pod in world.cache.pods(KEY)] == ["pong-0"]
        world.cache.remove("Pod", back)
        world.cluster.put(pod_raw(0))
        await world.resync.compare()
        with pytest.raises(WatchStalledError, match="seen never"):
            await world.resync.compare()

    run(scenario)


def test_a_watch_that_is_late_once_is_not_dead_but_twice_it_is() -> None:
    async def scenario() -> None:
        world = World()
        world.see(run_raw())
        world.see(pod_raw(0))
        world.cluster.put(pod_raw(0, phase="Running"))
        await world.resync.compare()
        with pytest.raises(WatchStalledError, match="the watch of Pod is dead"):
            await world.resync.compare()

    run(scenario)


def test_a_watch_that_never_brought_an_object_is_dead_too() -> None:
    async def scenario() -> None:
        world = World()
        world.cluster.put(run_raw())
        await world.resync.compare()
        with pytest.raises(WatchStalledError, match="seen never"):
            await world.resync.compare()

    run(scenario)


def labelled_by_somebody(**labels: str) -> dict:
    raw = pod_raw(0, uid="theirs")
    raw["metadata"] |= {"name": "debug", "labels": labels}
    return raw


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param({"gala.dev/run": "pong"}, id="no role"),
        pytest.param({"gala.dev/run": ""}, id="no run"),
        pytest.param({"gala.dev/run": "pong", "gala.dev/role": "actor-learner", "gala.dev/rank": "x"}, id="no rank"),
    ],
)
def test_what_carries_our_label_and_is_not_ours_is_no_sign_of_a_dead_watch(labels: dict[str, str]) -> None:
    async def scenario() -> None:
        world = World()
        world.see(run_raw())
        world.see(labelled_by_somebody(**labels))
        await world.resync.first()
        for _ in range(3):
            world.see(labelled_by_somebody(**labels))
            await world.resync.compare()
        assert world.cache.pods(KEY) == ()
        del world.cluster.objects["Pod", "lab", "debug"]
        await world.resync.compare()
        assert world.cache.versions("Pod") == {}, "what is not there any more is not remembered"

    run(scenario)


def test_a_watch_that_is_late_with_what_is_not_ours_is_dead_all_the_same() -> None:
    async def scenario() -> None:
        world = World()
        world.see(labelled_by_somebody(**{"gala.dev/run": "pong"}))
        world.cluster.put(labelled_by_somebody(**{"gala.dev/run": "pong"}))
        await world.resync.compare()
        with pytest.raises(WatchStalledError, match="uid theirs"):
            await world.resync.compare()

    run(scenario)


def test_a_watch_that_keeps_delivering_is_alive_even_if_always_a_little_late() -> None:
    async def scenario() -> None:
        world = World()
        for _ in range(5):
            before = world.cluster.put(pod_raw(0))
            world.cluster.put(pod_raw(0, phase="Running"))
            world.cache.put("Pod", before)
            await world.resync.compare()

    run(scenario)


def test_the_loop_beats_also_while_the_api_server_is_away() -> None:
    async def scenario() -> None:
        world = World()
        world.cluster.fail("list", "GalaRun", ApiError(0, "ClientConnectorError", "refused"), times=3)
        work = asyncio.create_task(world.resync.work())
        while len(world.cluster.calls) < 20:
            await asyncio.sleep(0.01)
        assert not work.done()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    run(scenario)


def test_the_loop_ends_with_a_dead_watch() -> None:
    async def scenario() -> None:
        world = World()
        world.cluster.put(run_raw())
        with pytest.raises(WatchStalledError):
            await world.resync.work()

    run(scenario)


def test_what_went_while_a_watch_was_broken_is_looked_for_as_soon_as_it_has_been_listed_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resync_module, "SETTLING_SECONDS", 0.05)

    async def scenario() -> None:
        world = World(period_seconds=600.0)
        world.see(run_raw())
        world.see(pod_raw(0))
        world.resync.wake()
        await world.resync.first()
        lists = len(world.cluster.calls)
        work = asyncio.create_task(world.resync.work())
        await asyncio.wait({work}, timeout=0.2)
        assert len(world.cluster.calls) == lists, "the first list of a watch is no news"
        del world.cluster.objects["Pod", "lab", "pong-0"]
        world.cluster.fail("list", "GalaRun", ApiError(500, "InternalError", "no"))
        monkeypatch.setattr(resync_module, "FAILED_SECONDS", 0.01)
        for _ in range(20):
            world.resync.wake()
        while world.cache.pods(KEY):
            await asyncio.sleep(0.01)
        await asyncio.wait({work}, timeout=0.2)
        assert len(world.cluster.calls) == 2 * lists + 1, "many lists are one reason"
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    run(scenario)


def test_a_watch_is_not_judged_before_a_period_is_over() -> None:
    async def scenario() -> None:
        world = World()
        world.cluster.put(run_raw())
        await world.resync.compare()
        for _ in range(3):
            await world.resync.compare(judge=False)
        with pytest.raises(WatchStalledError):
            await world.resync.compare()

    run(scenario)
