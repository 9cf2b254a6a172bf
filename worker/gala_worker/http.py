"""/healthz, /readyz, /metrics and /status of a worker; of one that has finished and holds, its files as well.

Place in the flow: runs on the asyncio thread that also carries the gossip; kubelet, Prometheus, the operator and the
local launcher ask. Nothing here touches the learner thread: it reads what that thread leaves behind.

    /healthz        200, or 503 when the learner thread hangs: the pod is then restarted
    /readyz         200 while training, and while a finished worker holds; else 503
    /metrics        Prometheus text
    /status         JSON, see `StatusServer`
    /files          while it holds: JSON, a list of {path, bytes, sha256}; else 409
    /files/<path>   one of these files
    /release        POST while it holds: 204, and the worker exits; else 409
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiohttp import web

from gala_worker import address as addresses
from gala_worker.downloads import Downloads
from gala_worker.health import Heartbeat
from gala_worker.metrics import to_json

READY_STATES: Final = frozenset({"training", "waiting"})
MAX_BODY_BYTES: Final = 1024
"""Nobody sends a body to these."""
MAX_HEADER_BYTES: Final = 4096
MAX_CONNECTIONS: Final = 64
"""Of more open connections the oldest are closed, once a second: idle strangers cannot use up the open files."""
FILE_CHUNK_BYTES: Final = 1 << 20
EXPOSITION_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class StatusServer:
    """Serves one worker. `status` returns at least `state`: starting, training, waiting, stopping or finished."""

    def __init__(
        self,
        address: str,
        *,
        status: Callable[[], Mapping[str, Any]],
        exposition: Callable[[], bytes],
        heartbeat: Heartbeat,
    ) -> None:
        """`address` is `host:port`; the functions are called on the asyncio thread and must be quick."""
        host, self._port = addresses.split(address)
        self._hosts = addresses.listening_hosts(host)
        self._status = status
        self._exposition = exposition
        self._heartbeat = heartbeat
        self._downloads: Downloads | None = None
        self._release: Callable[[], None] | None = None
        self._runner: web.AppRunner | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port it listens on: the one asked for, or the one found if that was 0."""
        if self._runner is None or not self._runner.addresses:
            return self._port
        return int(self._runner.addresses[0][1])

    def hold(self, downloads: Downloads, release: Callable[[], None]) -> None:
        """From now on the worker's files are served, it counts as ready, and who asks may have it `release`d.

        Thread-safe; `release` is called on the asyncio thread.
        """
        self._release = release
        self._downloads = downloads

    async def start(self) -> None:
        """Listens once it returns: where the address says, or on all interfaces where it is a name.

        Raises:
            OSError: the address cannot be used.
        """
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/healthz", self._get_healthz),
                web.get("/readyz", self._get_readyz),
                web.get("/metrics", self._get_metrics),
                web.get("/status", self._get_status),
                web.get("/files", self._get_files),
                web.get("/files/{path:.+}", self._get_file),
                web.post("/release", self._post_release),
            ]
        )
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
        # The launcher holds the port with the same option, so that nobody can take it between two lives of a worker.
        for host in self._hosts:
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

    async def _get_healthz(self, request: web.Request) -> web.Response:
        complaint = self._heartbeat.complaint()
        return web.Response(text="ok\n") if complaint is None else web.Response(status=503, text=complaint + "\n")

    async def _get_readyz(self, request: web.Request) -> web.Response:
        state = self._status()["state"]
        ready = state in READY_STATES or self._downloads is not None
        return web.Response(status=200 if ready else 503, text=f"{state}\n")

    async def _get_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._exposition(), headers={"Content-Type": EXPOSITION_CONTENT_TYPE})

    async def _get_status(self, request: web.Request) -> web.Response:
        return web.json_response(to_json(self._status()), dumps=json.dumps)

    async def _get_files(self, request: web.Request) -> web.Response:
        return web.json_response(self._held().listing())

    async def _get_file(self, request: web.Request) -> web.FileResponse:
        path = self._held().path(request.match_info["path"])
        if path is None:
            raise web.HTTPNotFound(text="no such file is served\n")
        return web.FileResponse(path, chunk_size=FILE_CHUNK_BYTES)

    async def _post_release(self, request: web.Request) -> web.Response:
        self._held()
        assert self._release is not None
        self._release()
        return web.Response(status=204)

    def _held(self) -> Downloads:
        if self._downloads is None:
            raise web.HTTPConflict(text=f"not yet: this learner is {self._status()['state']}\n")
        return self._downloads
