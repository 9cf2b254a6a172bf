"""Workers of a work queue for tests."""

import asyncio
from collections.abc import Awaitable, Callable

from gala_operator.queue import Handler, WorkQueue


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """In a loop of its own, for 20 s at most."""
    asyncio.run(asyncio.wait_for(scenario(), 20))


async def working(queue: WorkQueue[str], handle: Handler[str], workers: int = 4) -> asyncio.Task[None]:
    """The queue's workers, until `stop`."""
    return asyncio.create_task(queue.work(handle, workers=workers))


async def stop(task: asyncio.Task[None]) -> None:
    """Ends them."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
