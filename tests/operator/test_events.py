"""Kubernetes Events: in the background, counted and not repeated, and never in the way."""

import asyncio
from typing import Any

import pytest

from gala_operator import records
from gala_operator.actions import RunEvent
from gala_operator.cluster import ApiError
from gala_operator.events import MAX_WAITING, REPEAT_SECONDS, EventPoster
from gala_operator.observed import RunObject
from gala_operator.testing import FakeCluster, run_raw

FORMED = RunEvent(type="Normal", reason="RingFormed", message="2 learners")


def run_named(name: str = "pong") -> RunObject:
    run = records.run_object(run_raw(name, uid=f"uid-{name}"))
    assert run is not None
    return run


class World:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.cluster = FakeCluster()
        self.poster = EventPoster(self.cluster, identity="replica-0", clock=lambda: self.now)

    def flush(self) -> None:
        asyncio.run(self.poster.flush(1.0))

    @property
    def events(self) -> list[dict[str, Any]]:
        return [raw for raw in self.cluster.objects.values() if raw["kind"] == "Event"]


def test_an_event_is_posted_by_the_worker_and_not_by_who_has_it() -> None:
    world = World()

    async def life() -> None:
        worker = asyncio.create_task(world.poster.work())
        world.poster.post(run_named(), FORMED)
        assert world.cluster.calls == [], "posting takes no request"
        async with asyncio.timeout(5):
            while not world.events:
                await asyncio.sleep(0)
        world.poster.post(run_named("other"), FORMED)
        async with asyncio.timeout(5):
            while len(world.events) < 2:
                await asyncio.sleep(0)
        worker.cancel()

    asyncio.run(life())
    first = world.events[0]
    assert (first["reason"], first["involvedObject"]["name"], first["count"]) == ("RingFormed", "pong", 1)
    assert first["involvedObject"]["uid"] == "uid-pong"


def test_repetitions_that_wait_are_one_event_with_their_count() -> None:
    world = World()
    for _ in range(5):
        world.poster.post(run_named(), FORMED)
        world.now += 1
    world.flush()
    (event,) = world.events
    assert event["count"] == 5
    assert event["firstTimestamp"] < event["lastTimestamp"]
    assert world.cluster.calls == [("create", "Event", event["metadata"]["name"])]


def test_a_repetition_of_what_was_posted_raises_its_count() -> None:
    world = World()
    for _ in range(2):
        world.poster.post(run_named(), FORMED)
        world.poster.post(run_named(), FORMED)
        world.flush()
    assert [event["count"] for event in world.events] == [4]
    world.now += REPEAT_SECONDS + 1
    world.poster.post(run_named(), FORMED)
    world.flush()
    assert [event["count"] for event in world.events] == [4, 1]


def test_different_events_of_the_same_moment_have_different_names() -> None:
    world = World()
    for reason in ("RingFormed", "Scaled", "Resumed"):
        world.poster.post(run_named(), RunEvent(type="Normal", reason=reason, message="x"))
    world.flush()
    assert [event["reason"] for event in world.events] == ["RingFormed", "Scaled", "Resumed"]


def test_more_events_than_can_wait_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    for number in range(MAX_WAITING + 3):
        world.poster.post(run_named(f"run-{number}"), FORMED)
    assert len([record for record in caplog.records if "dropped" in record.message]) == 3
    world.flush()
    assert len(world.events) == MAX_WAITING


def test_an_event_that_is_refused_does_not_keep_the_others_back() -> None:
    world = World()
    world.cluster.fail("create", "Event", ApiError(403, "Forbidden", "no"))
    world.poster.post(run_named(), FORMED)
    world.poster.post(run_named("other"), FORMED)
    world.flush()
    assert [event["involvedObject"]["name"] for event in world.events] == ["other"]


def test_what_is_left_at_the_end_is_given_so_much_time_and_no_more() -> None:
    world = World()

    async def hang(manifest: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    world.cluster.create = hang  # type: ignore[assignment, method-assign]
    world.poster.post(run_named(), FORMED)
    asyncio.run(world.poster.flush(0.05))
    assert world.events == []
