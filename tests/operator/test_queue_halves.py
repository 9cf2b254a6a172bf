"""The work queue with work of two parts, of which the second may wait."""

import asyncio
from collections.abc import Callable

from gala_operator.queue import FAIR_TURN, Rest, WorkQueue
from queue_work import run, stop, working


class Halves:
    """A handler that does and then tells, and writes down in which order."""

    def __init__(self, queue: WorkQueue[str]) -> None:
        self.queue = queue
        self.order: list[str] = []
        self.during: dict[str, Callable[[], None]] = {}
        self.news = asyncio.Event()

    def _note(self, what: str) -> None:
        self.order.append(what)
        self.news.set()
        self.during.pop(what, lambda: None)()

    async def __call__(self, key: str) -> Rest:
        self._note(f"do {key}")

        async def tell() -> float | None:
            self._note(f"tell {key}")
            return None

        return tell

    async def until(self, number: int) -> list[str]:
        """What was done, one thing at a time, once it is so much."""
        task = await working(self.queue, self, workers=1)
        while len(self.order) < number:
            self.news.clear()
            await self.news.wait()
        await stop(task)
        return self.order


def test_what_tells_of_a_look_waits_until_nothing_urgent_does() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        halves = Halves(queue)
        for key in ("a", "b", "c"):
            queue.add_urgent(key)
        queue.add("news")
        halves.during["tell a"] = lambda: waiting.append(len(queue))
        waiting: list[int] = []
        expected = ["do a", "do b", "do c", "tell a", "tell b", "tell c", "do news", "tell news"]
        assert await halves.until(8) == expected
        assert waiting == [3]  # b and c, which are half done, and the news
        assert not queue._busy
        assert len(queue) == 0

    run(scenario)


def test_a_key_that_becomes_urgent_while_it_is_half_done_does_not_wait_for_the_others() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        halves = Halves(queue)
        for key in ("a", "b", "c", "d"):
            queue.add_urgent(key)
        halves.during["do b"] = lambda: queue.add_urgent("a")
        expected = ["do a", "do b", "do c", "do d", "tell a", "do a", "tell b", "tell c", "tell d", "tell a"]
        assert await halves.until(10) == expected

    run(scenario)


def test_a_key_that_becomes_urgent_while_its_first_half_is_done_does_not_wait_for_the_others() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        halves = Halves(queue)
        for key in ("a", "b"):
            queue.add_urgent(key)
        halves.during["do a"] = lambda: queue.add_urgent("a")
        assert await halves.until(6) == ["do a", "do b", "tell a", "do a", "tell b", "tell a"]

    run(scenario)


def test_what_tells_of_a_look_does_not_wait_for_ever() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str]()
        halves = Halves(queue)
        for number in range(2 * FAIR_TURN):
            halves.during[f"do {number}"] = lambda number=number: queue.add_urgent(f"{number + 2}")
        queue.add_urgent("0")
        queue.add_urgent("1")
        order = await halves.until(2 * FAIR_TURN)
        assert [order.index("tell 0"), order.index("tell 1")] == [FAIR_TURN - 1, 2 * FAIR_TURN - 1]

    run(scenario)


def test_a_key_whose_second_half_fails_comes_back_whole() -> None:
    async def scenario() -> None:
        queue = WorkQueue[str](first_back_off=0.01)
        halves = Halves(queue)

        def fail() -> None:
            raise RuntimeError("the server is away")

        halves.during["tell a"] = fail
        queue.add_urgent("a")
        queue.add_urgent("b")
        assert await halves.until(6) == ["do a", "do b", "tell a", "tell b", "do a", "tell a"]
        assert not queue._busy

    run(scenario)
