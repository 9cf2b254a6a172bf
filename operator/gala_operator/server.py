"""/healthz, /readyz and /metrics of the operator."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Final

from aiohttp import web

from gala.http_server import HttpServer
from gala_operator.metrics import Metrics
from gala_operator.resync import Health

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class HealthServer(HttpServer):
    """Listens while entered.

    /healthz   200, or 503 when the resync loop has stalled: kubelet restarts the container
    /readyz    200 while this replica leads with everything in view, or stands by for its turn; else 503
    /metrics   Prometheus text
    """

    def __init__(self, port: int, *, health: Health, metrics: Metrics, host: str | None = None) -> None:
        """`host` None is every address of the pod, IPv4 and IPv6; port 0 finds a free one."""
        super().__init__((host,), port)
        self._health = health
        self._metrics = metrics

    async def __aenter__(self) -> HealthServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def routes(self) -> Iterable[web.RouteDef]:
        """All of them."""
        return (
            web.get("/healthz", self._get_healthz),
            web.get("/readyz", self._get_readyz),
            web.get("/metrics", self._get_metrics),
        )

    async def _get_healthz(self, request: web.Request) -> web.Response:
        complaint = self._health.complaint()
        return web.Response(text="ok\n") if complaint is None else web.Response(status=503, text=complaint + "\n")

    async def _get_readyz(self, request: web.Request) -> web.Response:
        ready = self._health.is_ready
        return web.Response(status=200 if ready else 503, text="ok\n" if ready else "starting\n")

    async def _get_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})
