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

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from aiohttp import web

from gala_worker.downloads import Downloads, pieces
from gala_worker.health import Heartbeat
from gala_worker.http_server import WorkerServer
from gala_worker.metrics import to_json

READY_STATES: Final = frozenset({"training", "waiting"})
LONGEST_HOLD: Final = 30
"""Times what it holds unasked. Anybody may ask: a dashboard that is left open does not keep a GPU for ever."""
EXPOSITION_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class StatusServer(WorkerServer):
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
        super().__init__(address)
        self._status = status
        self._exposition = exposition
        self._heartbeat = heartbeat
        self._downloads: Downloads | None = None
        self._release: Callable[[], None] | None = None
        self._holds_since = self._asked = time.monotonic()

    def hold(self, downloads: Downloads, release: Callable[[], None]) -> None:
        """From now on the worker's files are served, it counts as ready, and who asks may have it `release`d.

        Thread-safe; `release` is called on the asyncio thread.
        """
        self._holds_since = self._asked = time.monotonic()
        self._release = release
        self._downloads = downloads

    def is_forgotten(self, seconds: float) -> bool:
        """Whether nobody has asked for /status for so long, or `hold` is 30 times as long ago. Thread-safe."""
        now = time.monotonic()
        return now - self._asked >= seconds or now - self._holds_since >= LONGEST_HOLD * seconds

    def routes(self) -> Iterable[web.RouteDef]:
        """The routes listed at the top of this module."""
        return (
            web.get("/healthz", self._get_healthz),
            web.get("/readyz", self._get_readyz),
            web.get("/metrics", self._get_metrics),
            web.get("/status", self._get_status),
            web.get("/files", self._get_files),
            web.get("/files/{path:.+}", self._get_file, allow_head=False),
            web.post("/release", self._post_release),
        )

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
        self._asked = time.monotonic()
        return web.json_response(to_json(self._status()), dumps=json.dumps)

    async def _get_files(self, request: web.Request) -> web.Response:
        return web.json_response(self._held().listing())

    async def _get_file(self, request: web.Request) -> web.StreamResponse:
        path = self._held().path(request.match_info["path"])
        if path is None:
            raise web.HTTPNotFound(text="no such file is served\n")
        size = path.stat().st_size
        return await self.stream(request, pieces(path), num_bytes=size, content_type="application/octet-stream")

    async def _post_release(self, request: web.Request) -> web.Response:
        self._held()
        assert self._release is not None
        self._release()
        return web.Response(status=204)

    def _held(self) -> Downloads:
        if self._downloads is None:
            raise web.HTTPConflict(text=f"not yet: this learner is {self._status()['state']}\n")
        return self._downloads
