"""The HTTP face of the results pod: the operator asks for the status, `gala fetch` for the archive.

/healthz   200
/readyz    200 once the result is there, else 503
/status    JSON: role, run, uid, state (collecting, evaluating, ready or failed), message, card, sha256
/archive   the run's folder as a tar, once the result is there; else 409
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Literal

from aiohttp import web

from gala import names
from gala.plan import RunPlan
from gala_worker.http_server import WorkerServer
from gala_worker.metrics import to_json
from gala_worker.results.archive import Archive

log = logging.getLogger(__name__)


class Board:
    """What is known so far. Written by the main thread and by the collector, read by the server."""

    def __init__(self, plan: RunPlan) -> None:
        self._identity = {"role": names.ROLE_RESULTS, "run": plan.run_name, names.STATUS_UID: plan.run_uid}
        self._state: Literal["collecting", "evaluating", "ready", "failed"] = "collecting"
        self._message = f"fetching the final models of {len(plan.learners)} learners"
        self._card: dict[str, Any] | None = None
        self._sha256: str | None = None
        self.archive: Archive | None = None
        """Once the result is there."""

    def say(self, message: str) -> None:
        """How far the collecting is."""
        self._message = message
        log.info("%s", message)

    def evaluating(self, remark: str) -> None:
        """All files are here, but for what the remark says."""
        self._message = f"averaging and evaluating{remark}"
        self._state = "evaluating"
        log.info("%s", self._message)

    def ready(self, card: dict[str, Any], sha256: str, archive: Archive) -> None:
        """The result is there, and will not change."""
        self._card, self._sha256, self.archive = card, sha256, archive
        self._message = f"the average of {len(card['averaged'])} of {card['learners']} learners"
        self._state = "ready"

    def failed(self, message: str) -> None:
        """There is no result, and another attempt would not have one either."""
        self._message = message
        self._state = "failed"

    def status(self) -> dict[str, Any]:
        """The answer to /status."""
        progress = {"state": self._state, "message": self._message, "card": self._card, "sha256": self._sha256}
        return {**self._identity, **progress}


class ResultsServer(WorkerServer):
    """Serves one board."""

    def __init__(self, address: str, board: Board) -> None:
        super().__init__(address)
        self._board = board

    def routes(self) -> Iterable[web.RouteDef]:
        """All of them."""
        return (
            web.get("/healthz", self._get_healthz),
            web.get("/readyz", self._get_readyz),
            web.get("/status", self._get_status),
            web.get("/archive", self._get_archive, allow_head=False),
        )

    async def _get_healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _get_readyz(self, request: web.Request) -> web.Response:
        status = 200 if self._board.archive is not None else 503
        return web.Response(status=status, text=f"{self._board.status()['state']}\n")

    async def _get_status(self, request: web.Request) -> web.Response:
        return web.json_response(to_json(self._board.status()))

    async def _get_archive(self, request: web.Request) -> web.StreamResponse:
        archive = self._board.archive
        if archive is None:
            raise web.HTTPConflict(text=f"not yet: {self._board.status()['message']}\n")
        return await self.stream(
            request, archive.chunks(), num_bytes=archive.num_bytes, content_type="application/x-tar"
        )
