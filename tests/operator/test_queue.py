"""The work queue."""

import asyncio
import itertools
import logging

import pytest

from gala_operator.queue import FAIR_TURN, WorkQueue
from queue_work import run, stop, working


def test_a_key_added_many_times_is_worked_on_once() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        for _ in range(10):
            queue.add("pong")
        assert len(queue) == 1
        assert await queue.get() == "pong"
        queue.done("pong")
        assert len(queue) == 0

    run(scenario)


def test_keys_come_in_the_order_in_which_they_were_added() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        for key in ("b", "a", "c", "a"):
            queue.add(key)
        assert [await queue.get() for _ in range(3)] == ["b", "a", "c"]

    run(scenario)


def test_routine_waits_behind_what_has_happened_but_not_for_ever() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        for number in range(20):
            queue.add_routine(f"routine-{number}")
        for number in range(20):
            queue.add(f"news-{number}")
        order = [await queue.get() for _ in range(20)]
        assert order[:3] == ["news-0", "news-1", "news-2"]
        assert [order.index(key) for key in order if key.startswith("routine")] == [
            FAIR_TURN - 1,
            2 * FAIR_TURN - 1,
        ]

    run(scenario)


def test_a_key_that_waits_as_routine_moves_up_when_something_happens() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        queue.add_routine("pong")
        queue.add("quake")
        queue.add("pong")
        queue.add_routine("quake")
        assert len(queue) == 2
        assert [await queue.get(), await queue.get()] == ["quake", "pong"]
        assert len(queue) == 0

    run(scenario)


def test_what_is_urgent_comes_before_what_has_happened_and_takes_along_who_waits_already() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        queue.add_routine("polled")
        queue.add("changed")
        queue.add("lost")
        queue.add_urgent("hit")
        queue.add_urgent("lost")
        queue.add("hit")
        queue.add_routine("lost")
        assert len(queue) == 4
        assert [await queue.get() for _ in range(4)] == ["hit", "lost", "changed", "polled"]
        assert len(queue) == 0

    run(scenario)


def test_nothing_waits_for_ever_behind_what_is_urgent() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        queue.add("news")
        queue.add_routine("routine")
        order = []
        for number in range(2 * FAIR_TURN):
            queue.add_urgent(f"urgent-{number}")
            queue.add_urgent(f"more-{number}")
            order.append(await queue.get())
        assert [order.index("news"), order.index("routine")] == [FAIR_TURN - 1, 2 * FAIR_TURN - 1]

    run(scenario)


def test_what_is_added_while_its_key_is_worked_on_keeps_its_rank() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        for key in ("routine", "news", "both", "urgent"):
            queue.add(key)
            assert await queue.get() == key
        queue.add_routine("routine")
        queue.add_routine("both")
        queue.add("both")
        queue.add("news")
        queue.add_urgent("urgent")
        queue.add_routine("urgent")
        for key in ("routine", "news", "both", "urgent"):
            queue.done(key)
        assert [await queue.get() for _ in range(4)] == ["urgent", "news", "both", "routine"]

    run(scenario)


def test_a_key_is_never_worked_on_twice_at_the_same_time_and_again_if_added_meanwhile() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        entered, leave = asyncio.Event(), asyncio.Event()
        busy, most, passes = 0, 0, 0
        finished = asyncio.Event()

        async def handle(key: str) -> float | None:
            nonlocal busy, most, passes
            busy += 1
            most = max(most, busy)
            passes += 1
            entered.set()
            await leave.wait()
            busy -= 1
            if passes == 2:
                finished.set()
            return None

        task = await working(queue, handle)
        queue.add("pong")
        await entered.wait()
        queue.add("pong")
        queue.add("pong")
        await asyncio.sleep(0)
        assert passes == 1
        leave.set()
        await finished.wait()
        await stop(task)
        assert (passes, most) == (2, 1)

    run(scenario)


def test_no_more_keys_are_worked_on_than_there_are_workers() -> None:
    async def scenario() -> None:
        queue = WorkQueue[int]()
        busy, most, done = 0, 0, 0
        finished = asyncio.Event()

        async def handle(key: int) -> float | None:
            nonlocal busy, most, done
            busy += 1
            most = max(most, busy)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            busy -= 1
            done += 1
            if done == 50:
                finished.set()
            return None

        task = asyncio.create_task(queue.work(handle, workers=3))
        for key in range(50):
            queue.add(key)
        await finished.wait()
        await stop(task)
        assert most == 3

    run(scenario)


def test_a_failure_comes_back_after_a_back_off_that_doubles_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        queue = WorkQueue[str](first_back_off=0.01, max_back_off=0.04)
        times: list[float] = []
        succeeded = asyncio.Event()

        async def handle(key: str) -> float | None:
            times.append(asyncio.get_running_loop().time())
            if len(times) < 5:
                raise RuntimeError("no luck")
            succeeded.set()
            return None

        task = await working(queue, handle)
        queue.add("pong")
        await succeeded.wait()
        await asyncio.sleep(0)
        await stop(task)
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert gaps[0] >= 0.008
        assert gaps[1] >= 0.016
        assert gaps[2] >= 0.032
        assert queue.retry("pong") <= 0.012, "a success forgets the failures"

    with caplog.at_level(logging.ERROR):
        run(scenario)
    assert sum("no luck" in (record.exc_text or str(record.exc_info)) for record in caplog.records) == 4


def test_back_off_is_bounded_for_ever() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str](first_back_off=1.0, max_back_off=60.0)
        assert all(queue.retry("pong") <= 72.0 for _ in range(2000))

    run(scenario)


def test_what_a_handler_asks_for_later_comes_later() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        again = asyncio.Event()
        passes = 0

        async def handle(key: str) -> float | None:
            nonlocal passes
            passes += 1
            if passes == 2:
                again.set()
                return None
            return 0.02

        task = await working(queue, handle)
        started = asyncio.get_running_loop().time()
        queue.add("pong")
        await again.wait()
        assert asyncio.get_running_loop().time() - started >= 0.02
        await stop(task)
        assert not queue._due

    run(scenario)


def test_of_several_times_the_earliest_counts_and_working_on_a_key_drops_them() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        queue.add_after("pong", 1000.0)
        queue.add_after("pong", 0.01)
        queue.add_after("pong", 500.0)
        assert len(queue._due) == 1
        assert await queue.get() == "pong"
        assert not queue._due
        queue.add_after("pong", 1000.0)
        queue.add("pong")
        queue.done("pong")
        assert await queue.get() == "pong"
        assert not queue._due, "an earlier look makes the later one superfluous"

    run(scenario)


def test_deadlines_decided_again_and_again_do_not_pile_up() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        for _ in range(5000):
            queue.add_after("pong", 86_400.0)
            queue.add("pong")
            await queue.get()
            queue.done("pong")
        assert len(queue._heap) < 200

    run(scenario)


def test_time_in_the_queue_is_told() -> None:
    async def scenario() -> None:
        waits: list[float] = []
        queue = WorkQueue[str](waited=waits.append)
        queue.add("pong")
        await queue.get()
        assert len(waits) == 1
        assert 0 <= waits[0] < 5

    run(scenario)


def test_a_worker_that_is_cancelled_in_waiting_does_not_swallow_a_key() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        queue.add("pong")
        first.cancel()
        assert await second == "pong"
        await asyncio.gather(first, return_exceptions=True)

    run(scenario)
