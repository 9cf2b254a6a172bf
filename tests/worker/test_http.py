"""The worker's HTTP face, served on a real socket of a real asyncio loop."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest

from gala_worker import address, http
from gala_worker.downloads import Downloads
from gala_worker.health import Heartbeat
from gala_worker.http import StatusServer
from http_worker import Clock, Worker, serve


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


def test_a_worker_that_is_asked_and_asked_but_not_released_is_forgotten_in_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock()
    monkeypatch.setattr(http, "time", SimpleNamespace(monotonic=clock))

    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        clock.now += 1000  # it trains
        worker.server.hold(Downloads(tmp_path), lambda: None)
        for _ in range(29):
            clock.now += 59
            async with session.get("/status") as response:
                assert response.status == 200
            assert not worker.server.is_forgotten(60)
        clock.now += 30 * 60 - 29 * 59
        async with session.get("/status") as response:
            assert response.status == 200
        assert worker.server.is_forgotten(60)

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
