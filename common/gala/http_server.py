"""The small HTTP server of workers and operator, with limits on what strangers can make it hold.

It needs aiohttp, which the command line is installed without: only those two import this.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gala.complaints import Complaints

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 1024
"""Nobody sends a body to these."""
MAX_CONNECTIONS: Final = 64
"""Of more, one is closed for each that comes: strangers cannot use up the open files, nor what an answer holds."""
WRITE_SECONDS: Final = 60.0
"""A reader that has not taken a chunk after so long is taken for gone."""
_LIMITS: Final = {"keepalive_timeout": 15.0, "max_line_size": 4096, "max_field_size": 4096}
_ACCEPTED_AT_A_STROKE: Final = 64
"""Twice as many more may be open before the first of them is counted."""
_PROBLEM_CHARACTERS: Final = 200
"""Of what is logged: it quotes what was sent."""


class HttpServer(ABC):
    """Listens from `start` to `stop`; a subclass says what there is to ask."""

    def __init__(self, hosts: Sequence[str | None], port: int, *, reuse_port: bool = False) -> None:
        """A host of None is every address, IPv4 and IPv6; port 0 finds a free one."""
        self._hosts = hosts
        self._port = port
        self._reuse_port = reuse_port
        self._runner: web.AppRunner | None = None
        self._listeners: list[asyncio.Server] = []
        self._sockets: dict[web.RequestHandler, asyncio.Transport] = {}  # in the order of their arrival
        self._streaming: set[web.RequestHandler] = set()
        self._log = _Log(log)

    @abstractmethod
    def routes(self) -> Iterable[web.RouteDef]:
        """What is served."""

    @property
    def port(self) -> int:
        """The port it listens on: the one asked for, or the one found if that was 0."""
        return int(self._listeners[0].sockets[0].getsockname()[1]) if self._listeners else self._port

    async def start(self) -> None:
        """Listens once it returns.

        Raises:
            OSError: the address cannot be used.
        """
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes(self.routes())
        self._runner = web.AppRunner(app, shutdown_timeout=1.0)
        await self._runner.setup()
        loop, server = asyncio.get_running_loop(), self._runner.server
        assert server is not None

        def connection() -> _Connection:
            return _Connection(self, server, loop=loop, logger=self._log, access_log=None, **_LIMITS)

        for host in self._hosts:
            listener = await loop.create_server(
                connection, host, self._port, reuse_port=self._reuse_port, backlog=_ACCEPTED_AT_A_STROKE
            )
            self._listeners.append(listener)

    async def stop(self) -> None:
        """Closes the port and every connection."""
        runner, self._runner = self._runner, None
        while self._listeners:
            self._listeners.pop().close()
        if runner is not None:
            await runner.cleanup()
        for connection in list(self._sockets):
            self._drop(connection)
        await asyncio.sleep(0)  # the loop closes them in its next round

    async def stream(
        self, request: web.Request, chunks: AsyncGenerator[bytes, None], *, num_bytes: int, content_type: str
    ) -> web.StreamResponse:
        """Answers with `chunks`, `num_bytes` together, as fast as they are taken.

        Not with `sendfile`, which for ever waits for a reader that has stopped, and survives even an `abort`.
        """
        response = web.StreamResponse(headers={"Content-Type": content_type})
        response.content_length = num_bytes
        self._streaming.add(request.protocol)
        try:
            await response.prepare(request)
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    await self._write(request, response, chunk)
            await response.write_eof()
        finally:
            self._streaming.discard(request.protocol)
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse, chunk: bytes) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await response.write(chunk)
        except TimeoutError as error:
            self._drop(request.protocol)
            raise ConnectionResetError(f"{len(chunk):,} bytes were not taken in {WRITE_SECONDS:g} s") from error

    def opened(self, connection: web.RequestHandler, socket: asyncio.Transport) -> None:
        """Makes room if need be: of the older ones the first that nothing is streamed to goes, else the first.

        The newest are spared: even where all others stream, who comes has the time to ask.
        """
        self._sockets[connection] = socket
        excess = len(self._sockets) - MAX_CONNECTIONS
        if excess > 0:
            older = list(self._sockets)[: -(MAX_CONNECTIONS // 4)]
            for victim in sorted(older, key=self._streaming.__contains__)[:excess]:
                self._drop(victim)

    def closed(self, connection: web.RequestHandler) -> None:
        """Its socket is no more."""
        self._sockets.pop(connection, None)

    def _drop(self, connection: web.RequestHandler) -> None:
        """At once: a mere `close` first waits until all is sent, which is up to the reader."""
        socket = self._sockets.pop(connection, None)
        if socket is not None:
            socket.abort()


class _Connection(web.RequestHandler):
    """aiohttp's, but it says how long its socket is open.

    aiohttp forgets the transport of a connection that it closes, though with something left to send it stays open.
    """

    __slots__ = ("_host",)

    def __init__(self, host: HttpServer, server: web.Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._host = host

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self._host.opened(self, transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._host.closed(self)


class _Log(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's. What anybody can bring about, by nonsense or by going away, is said in a line once in a while."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger)
        self._complaints = Complaints(logger)

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        error = kwargs.get("exc_info")
        if not isinstance(error, (HttpProcessingError, web.RequestPayloadError, ConnectionError)):
            super().log(level, msg, *args, **kwargs)
            return
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:_PROBLEM_CHARACTERS]
        self._complaints.add(type(error).__name__, None, f"an HTTP request failed: {problem}", time.monotonic())
