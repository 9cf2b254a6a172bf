"""The worker's HTTP face, served on a real socket of a real asyncio loop."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gala import http_server
from gala.http_server import HttpServer
from gala_worker import address
from gala_worker.downloads import Downloads
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
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 4)

    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        strangers = [await asyncio.open_connection("127.0.0.1", worker.server.port) for _ in range(7)]
        async with asyncio.timeout(20):
            for reader, _ in strangers[:3]:
                assert await reader.read() == b""
        async with session.get("/status") as response:
            assert response.status == 200
        for _, writer in strangers:
            writer.close()

    serve(scenario)


class Deaf:
    """Has asked for something, and does not read the answer until told to."""

    def __init__(self, server: HttpServer, path: str) -> None:
        self._server = server
        self._request = f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)

    async def ask(self) -> Deaf:
        """Returns once the answer has begun."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", self._server.port))
        await loop.sock_sendall(self._socket, self._request)
        async with asyncio.timeout(20):
            assert (await loop.sock_recv(self._socket, 12)) == b"HTTP/1.1 200"
        return self

    async def rest(self) -> int:
        """Reads to the end of the answer or of the connection. Returns how much that was."""
        loop = asyncio.get_running_loop()
        received = 0
        async with asyncio.timeout(20):
            with suppress(ConnectionResetError):
                while received < LARGE and (piece := await loop.sock_recv(self._socket, 1 << 20)):
                    received += len(piece)
        self._socket.close()
        return received


LARGE = 24 << 20
"""More than the kernel keeps for a reader."""
MODEL = "/files/final/model.safetensors"


def holding(worker: Worker, folder: Path) -> None:
    """The worker holds a large result, and /metrics is as large."""
    (folder / "final").mkdir()
    with (folder / "final" / "model.safetensors").open("wb") as file:
        file.truncate(LARGE)
    worker.server.hold(Downloads(folder), lambda: None)
    worker.server._exposition = lambda: bytes(LARGE)


@pytest.mark.parametrize("path", [MODEL, "/metrics"])
def test_readers_that_have_stopped_are_cut_off_when_there_are_too_many_connections(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 4)

    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        holding(worker, tmp_path)
        readers = [await Deaf(worker.server, path).ask() for _ in range(7)]
        received = [await reader.rest() for reader in readers]
        assert [count >= LARGE for count in received] == 3 * [False] + 4 * [True]

    serve(scenario)


def test_a_download_goes_on_beside_idle_strangers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 4)

    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        holding(worker, tmp_path)
        download = await Deaf(worker.server, MODEL).ask()
        strangers = [await asyncio.open_connection("127.0.0.1", worker.server.port) for _ in range(9)]
        async with asyncio.timeout(20):
            assert await strangers[0][0].read() == b""
        assert await download.rest() >= LARGE
        for _, writer in strangers:
            writer.close()

    serve(scenario)


def test_who_comes_is_answered_though_all_others_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 4)

    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        holding(worker, tmp_path)
        downloads = [await Deaf(worker.server, MODEL).ask() for _ in range(4)]
        reader, writer = await asyncio.open_connection("127.0.0.1", worker.server.port)
        async with asyncio.timeout(20):
            assert await downloads[0].rest() < LARGE  # it has made room
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        for download in downloads[1:]:
            assert await download.rest() >= LARGE

    serve(scenario)


def test_a_reader_that_takes_nothing_for_too_long_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(http_server, "WRITE_SECONDS", 0.1)

    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        holding(worker, tmp_path)
        reader = await Deaf(worker.server, MODEL).ask()
        async with asyncio.timeout(20):
            while worker.server._sockets:
                await asyncio.sleep(0.01)
        assert await reader.rest() < LARGE

    serve(scenario)


def test_a_server_that_stops_waits_for_no_reader(tmp_path: Path) -> None:
    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        holding(worker, tmp_path)
        readers = [await Deaf(worker.server, path).ask() for path in (MODEL, "/metrics")]
        await worker.server.stop()
        assert [await reader.rest() < LARGE for reader in readers] == [True, True]

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
