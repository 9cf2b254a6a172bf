"""What strangers can make a worker's HTTP server hold, and write into its log."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from gala import http_server
from gala.http_server import HttpServer
from gala_worker.downloads import Downloads
from http_worker import Worker, serve

LARGE = 24 << 20
"""More than the kernel keeps for a reader."""
MODEL = "/files/final/model.safetensors"


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
        self.leave()
        return received

    def leave(self) -> None:
        """Without a word."""
        self._socket.close()


def holding(worker: Worker, folder: Path) -> None:
    """The worker holds a large result, and /metrics is as large."""
    (folder / "final").mkdir()
    with (folder / "final" / "model.safetensors").open("wb") as file:
        file.truncate(LARGE)
    worker.server.hold(Downloads(folder), lambda: None)
    worker.exposition = bytes(LARGE)


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


NONSENSE = {
    "BadHttpMethod": b"\x16\x03\x01\x02 TLS\r\n\r\n",
    "LineTooLong": b"GET /status HTTP/1.1\r\nHost: here\r\nX: " + 9000 * b"x" + b"\r\n\r\n",
    "InvalidURLError": b"GET http://[ HTTP/1.1\r\nHost: here\r\n\r\n",
    "BadHttpMessage": b"POST /release HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "RequestPayloadError": b"GET /x HTTP/1.1\r\nHost: here\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_costs_one_line_of_the_log_however_often_it_is_sent(
    caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", worker.server.port)
            writer.write(NONSENSE[kind])
            async with asyncio.timeout(20):
                assert (await reader.read()).startswith(b"HTTP/1")
            writer.close()

    serve(scenario)
    [record] = caplog.records
    assert record.getMessage().startswith(f"an HTTP request failed: {kind}: ")
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) < 300
    assert record.exc_info is None


def test_readers_that_go_away_cost_one_line_of_the_log(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        holding(worker, tmp_path)
        for _ in range(3):
            (await Deaf(worker.server, MODEL).ask()).leave()
        async with asyncio.timeout(20):
            while worker.server._sockets:
                await asyncio.sleep(0.01)

    serve(scenario)
    assert len(caplog.records) == len({record.getMessage() for record in caplog.records}) >= 1
    assert all(record.exc_info is None for record in caplog.records)


def test_a_mistake_of_ours_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(worker: Worker, session: aiohttp.ClientSession) -> None:
        del worker.status["state"]
        async with session.get("/readyz") as response:
            assert response.status == 500

    serve(scenario)
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError
