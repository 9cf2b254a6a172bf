"""The worker's HTTP face, served on a real socket of a real asyncio loop."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from gala_worker import address, http_server
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
        self.status: dict[str, Any] = {"state": "starting", "meanReturn": math.nan, "updates": 3}
        self.server = StatusServer(
            "127.0.0.1:0",
            status=lambda: self.status,
            exposition=lambda: b"gala_updates_total 3\n",
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


def test_status_is_json_with_null_for_what_is_not_a_number() -> None:
    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        async with session.get("/status") as response:
            assert response.status == 200
            assert response.content_type == "application/json"
            assert await response.json() == {"state": "starting", "meanReturn": None, "updates": 3}

    serve(scenario)


def test_metrics_are_prometheus_text() -> None:
    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        async with session.get("/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert await response.text() == "gala_updates_total 3\n"

    serve(scenario)


@pytest.mark.parametrize(
    ("state", "expected"),
    [("starting", 503), ("training", 200), ("waiting", 200), ("stopping", 503), ("finished", 503)],
)
def test_a_worker_is_ready_while_it_trains(state: str, expected: int) -> None:
    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        worker.status["state"] = state
        async with session.get("/readyz") as response:
            assert response.status == expected

    serve(scenario)


def test_a_learner_that_hangs_is_unhealthy_and_recovers_with_the_next_update() -> None:
    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        async def status() -> int:
            async with session.get("/healthz") as response:
                text = await response.text()
                assert response.status == 200 or "no update for 61 s while training" in text
                return response.status

        worker.heartbeat.beat()
        worker.clock.now += 59
        assert await status() == 200
        worker.clock.now += 2
        assert await status() == 503
        worker.heartbeat.beat()
        assert await status() == 200

    serve(scenario)


def test_a_learner_that_never_starts_is_unhealthy() -> None:
    clock = Clock()
    heartbeat = Heartbeat(60.0, clock)
    clock.now += 61
    assert heartbeat.complaint() == "no update for 61 s while starting"


def test_a_pause_is_excused_for_its_announced_time_only() -> None:
    clock = Clock()
    heartbeat = Heartbeat(60.0, clock)
    with heartbeat.paused("waiting for in-peers", seconds=100.0):
        clock.now += 159
        assert heartbeat.complaint() is None
        clock.now += 2
        assert heartbeat.complaint() is not None
    assert heartbeat.complaint() is None
    clock.now += 61
    assert heartbeat.complaint() is not None


def test_what_is_not_served_is_refused_and_the_server_lives_on() -> None:
    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        async with session.get("/secrets") as response:
            assert response.status == 404
        async with session.post("/status", data=b"x" * 100_000) as response:
            assert response.status == 405
        async with session.get("/status?" + "x" * 20_000) as response:
            assert response.status == 400
        async with session.get("/status", headers={"X-Large": "x" * 20_000}) as response:
            assert response.status == 400
        async with session.get("/status") as response:
            assert response.status == 200

    serve(scenario)


def test_bytes_that_are_not_http_are_refused_and_the_server_lives_on() -> None:
    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", worker.server.port)
        writer.write(bytes(range(256)) * 100)
        async with asyncio.timeout(20):
            assert (await reader.read()).startswith(b"HTTP/1.0 400")
        writer.close()
        async with session.get("/status") as response:
            assert response.status == 200

    serve(scenario)


def test_idle_strangers_are_closed_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)

    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        strangers = [await asyncio.open_connection("127.0.0.1", worker.server.port) for _ in range(5)]
        async with asyncio.timeout(20):
            assert await strangers[0][0].read() == b""
            assert await strangers[2][0].read() == b""
        async with session.get("/status") as response:
            assert response.status == 200
        for _, writer in strangers:
            writer.close()

    serve(scenario)


def test_the_port_that_the_launcher_holds_can_be_served() -> None:
    async def main(port: int) -> None:
        server = StatusServer(
            f"127.0.0.1:{port}", status=lambda: {"state": "training"}, exposition=bytes, heartbeat=Heartbeat()
        )
        await server.start()
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/readyz") as response:
            assert response.status == 200
        await server.stop()

    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        asyncio.run(main(held.getsockname()[1]))
        asyncio.run(main(held.getsockname()[1]))  # a restarted worker


def test_a_learner_s_own_name_need_not_resolve_for_it_to_listen() -> None:
    async def main() -> None:
        server = StatusServer(
            "pong-0.pong.default.svc:0", status=lambda: {"state": "training"}, exposition=bytes, heartbeat=Heartbeat()
        )
        await server.start()
        base = f"http://127.0.0.1:{server.port}"
        async with aiohttp.ClientSession() as session, session.get(f"{base}/readyz") as response:
            assert response.status == 200
        await server.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("host", "has_ipv6", "hosts"),
    [
        ("10.0.0.7", True, ("10.0.0.7",)),
        ("::1", True, ("::1",)),
        ("localhost", True, ("localhost",)),
        ("pong-0.pong.default.svc", True, ("0.0.0.0", "::")),
        ("pong-0.pong.default.svc", False, ("0.0.0.0",)),
    ],
)
def test_a_name_stands_for_all_interfaces_that_there_are(
    monkeypatch: pytest.MonkeyPatch, host: str, has_ipv6: bool, hosts: tuple[str, ...]
) -> None:
    monkeypatch.setattr(address, "has_ipv6", lambda: has_ipv6)
    assert address.listening_hosts(host) == hosts
