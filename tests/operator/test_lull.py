"""What waits while pods are being lost, and for how long."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gala_operator.lull import LULL_SECONDS, MAX_UNREST_SECONDS, Lull
from gala_operator.queue import WorkQueue
from queue_work import stop, working


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time passes only by `advance`."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    async def advance(self, seconds: float) -> None:
        """Lets all that can happen now happen, and then all that can happen so much later."""
        await self._settle()
        self.now += seconds
        await self._settle()

    async def _settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)


def on_a_clock(scenario: Callable[[Clock], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=Clock) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, Clock)
        runner.run(scenario(loop))


def test_it_is_calm_until_something_happens_and_a_moment_after_it() -> None:
    async def scenario(clock: Clock) -> None:
        came: list[float] = []
        lull = Lull(lambda: came.append(clock.time() - 1000))
        assert lull.is_now
        lull.disturb()
        assert not lull.is_now
        await clock.advance(0.9 * LULL_SECONDS)
        lull.disturb()
        await clock.advance(0.9 * LULL_SECONDS)
        assert not lull.is_now
        assert came == []
        await clock.advance(0.1 * LULL_SECONDS)
        assert lull.is_now
        assert came == [pytest.approx(1.9 * LULL_SECONDS)]

    on_a_clock(scenario)


def test_nobody_waits_for_calm_longer_than_the_bound_and_the_next_unrest_has_its_own() -> None:
    async def scenario(clock: Clock) -> None:
        came: list[float] = []
        lull = Lull(lambda: came.append(clock.time() - 1000))
        unrest = []
        for _ in range(30):
            lull.disturb()
            unrest.append(not lull.is_now)
            await clock.advance(0.1)
        held = round(MAX_UNREST_SECONDS / 0.1)
        assert unrest == [True] * held + [False] * (30 - held)
        assert came == [pytest.approx(MAX_UNREST_SECONDS)]
        await clock.advance(LULL_SECONDS)
        lull.disturb()
        assert not lull.is_now
        await clock.advance(LULL_SECONDS)
        assert len(came) == 2

    on_a_clock(scenario)


def test_what_is_not_urgent_waits_for_a_lull_though_every_worker_is_idle_and_then_all_of_it_is_done() -> None:
    async def scenario(clock: Clock) -> None:
        queue = WorkQueue[str]()
        done: list[list[str]] = [[]]

        async def handle(key: str) -> None:
            done[-1].append(key)

        task = await working(queue, handle, workers=4)
        queue.add_urgent("lost-0")
        for number in range(6):
            queue.add(f"news-{number}")
            queue.add_routine(f"routine-{number}")
        for number in range(1, 4):
            await clock.advance(0.9 * LULL_SECONDS)
            done.append([])
            queue.add_urgent(f"lost-{number}")
        await clock.advance(0.9 * LULL_SECONDS)
        assert done == [["lost-0"], ["lost-1"], ["lost-2"], ["lost-3"]]
        assert len(queue) == 12
        await clock.advance(0.1 * LULL_SECONDS)
        assert sorted(done[-1]) == ["lost-3", *(f"{kind}-{n}" for kind in ("news", "routine") for n in range(6))]
        assert len(queue) == 0
        await stop(task)

    on_a_clock(scenario)
