"""A small HTTP server on the worker's asyncio thread, with limits on what strangers can make it hold."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Final

from aiohttp import web

from gala_worker import address as addresses

MAX_BODY_BYTES: Final = 1024
"""Nobody sends a body to these."""
MAX_HEADER_BYTES: Final = 4096
MAX_CONNECTIONS: Final = 64
"""Of more open connections the oldest are closed, once a second: idle strangers cannot use up the open files."""


class HttpServer(ABC):
    """Listens from `start` to `stop`; a subclass says what there is to ask."""

    def __init__(self, address: str) -> None:
        """`address` is `host:port`; where the host is a name, the server listens on all interfaces."""
        host, self._port = addresses.split(address)
        self._hosts = addresses.listening_hosts(host)
        self._runner: web.AppRunner | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @abstractmethod
    def routes(self) -> Iterable[web.RouteDef]:
        """What is served."""

    @property
    def port(self) -> int:
        """The port it listens on: the one asked for, or the one found if that was 0."""
        if self._runner is None or not self._runner.addresses:
            return self._port
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        """Listens once it returns.

        Raises:
            OSError: the address cannot be used.
        """
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes(self.routes())
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=15.0,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            shutdown_timeout=1.0,
        )
        await self._runner.setup()
        for host in self._hosts:
            # The launcher holds the port with the same option: nobody can take it between two lives of a worker.
            await web.TCPSite(self._runner, host, self._port, reuse_port=True).start()
        self._sweeper = asyncio.create_task(self._sweep(self._runner), name="http-sweeper")

    async def stop(self) -> None:
        """Closes the port and every connection."""
        runner, self._runner = self._runner, None
        sweeper, self._sweeper = self._sweeper, None
        if sweeper is not None:
            sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sweeper
        if runner is not None:
            await runner.cleanup()

    @staticmethod
    async def _sweep(runner: web.AppRunner) -> None:
        while (server := runner.server) is not None:
            for connection in server.connections[:-MAX_CONNECTIONS]:  # in the order of their arrival
                connection.force_close()
            await asyncio.sleep(1.0)
