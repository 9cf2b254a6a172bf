"""The asyncio loop of a worker, on a thread of its own: gossip streams and HTTP, while the learner computes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs an event loop in a daemon thread from construction to `stop`.

    grpc.aio wants one event loop per process: share one LoopThread between everything that lives on it.
    """

    def __init__(self, name: str = "gossip-loop") -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Starts a coroutine on the loop and returns at once. Thread-safe."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_seconds: float | None = None) -> T:
        """Runs a coroutine on the loop and waits for its result. Not to be called from the loop's own thread.

        Raises: TimeoutError (the coroutine is cancelled), and whatever the coroutine raises.
        """
        future = self.submit(coroutine)
        try:
            return future.result(timeout_seconds)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def call_soon(self, function: Callable[..., object], *args: Any) -> None:
        """Calls a function on the loop, soon. Thread-safe; silently without effect once the loop has stopped."""
        if threading.current_thread() is self._thread:
            self.loop.call_soon(function, *args)
            return
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            if not self.loop.is_closed():
                raise

    @property
    def is_current(self) -> bool:
        """Whether the caller is on the loop's own thread."""
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """Cancels what still runs on the loop, closes it and ends the thread. May be called twice."""
        if self.loop.is_closed():
            return
        self.run(self._cancel_all(), timeout_seconds=5.0)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self.loop.close()

    @staticmethod
    async def _cancel_all() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
