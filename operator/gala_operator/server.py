"""/healthz, /readyz and /metrics of the operator."""

from __future__ import annotations

from types import TracebackType
from typing import Final

from aiohttp import web

from gala_operator.metrics import Metrics
from gala_operator.resync import Health

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MAX_BODY_BYTES: Final = 1024


class HealthServer:
    """Listens while entered.

    /healthz   200, or 503 when the resync loop has stalled: kubelet restarts the container
    /readyz    200 while this replica leads with everything in view, or stands by for its turn; else 503
    /metrics   Prometheus text
    """

    def __init__(self, port: int, *, health: Health, metrics: Metrics, host: str | None = None) -> None:
        """`host` None is every address of the pod, IPv4 and IPv6; port 0 finds a free one."""
        self._host = host
        self._port = port
        self._health = health
        self._metrics = metrics
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._runner is None or not self._runner.addresses:
            return self._port
        return int(self._runner.addresses[0][1])

    async def __aenter__(self) -> HealthServer:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/healthz", self._get_healthz),
                web.get("/readyz", self._get_readyz),
                web.get("/metrics", self._get_metrics),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _get_healthz(self, request: web.Request) -> web.Response:
        complaint = self._health.complaint()
        return web.Response(text="ok\n") if complaint is None else web.Response(status=503, text=complaint + "\n")

    async def _get_readyz(self, request: web.Request) -> web.Response:
        ready = self._health.is_ready
        return web.Response(status=200 if ready else 503, text="ok\n" if ready else "starting\n")

    async def _get_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})
