"""A worker's HTTP server on a real socket of a real asyncio loop, and what it asks."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from gala_worker.health import Heartbeat
from gala_worker.http import StatusServer


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """What the server asks."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.heartbeat = Heartbeat(limit_seconds=60.0, clock=self.clock)
        self.exposition = b"gala_updates_total 3\n"
        self.status: dict[str, Any] = {"state": "starting", "meanReturn": math.nan, "updates": 3}
        self.server = StatusServer(
            "127.0.0.1:0",
            status=lambda: self.status,
            exposition=lambda: self.exposition,
            heartbeat=self.heartbeat,
        )


def serve(scenario: Callable[[Worker, aiohttp.ClientSession], Awaitable[None]]) -> None:
    """Runs `scenario` against a served worker."""

    async def main() -> None:
        worker = Worker()
        await worker.server.start()
        try:
            base = f"http://127.0.0.1:{worker.server.port}"
            timeout = aiohttp.ClientTimeout(total=20)
            async with aiohttp.ClientSession(base, timeout=timeout) as session:
                await scenario(worker, session)
        finally:
            await worker.server.stop()

    asyncio.run(main())
