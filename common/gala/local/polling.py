"""Asks the workers' /status in the background, so that a hanging worker never delays the launcher."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from gala.answers import json_object
from gala.plan import LearnerPlan

TIMEOUT_SECONDS: Final = 2.0
MAX_STATUS_BYTES: Final = 1_000_000
"""More than any status of a ring of 1024; a worker that sends more is not one of ours."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The last status of a learner and when it came."""

    status: dict[str, Any]
    time: float
    """time.monotonic() of the answer."""


class StatusPoller:
    """Keeps the last answer of every learner. Used from one thread; requests run on a few threads of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="status")
        self._pending: dict[int, Future[dict[str, Any] | None]] = {}
        self.answers: dict[int, Answer] = {}

    def poll(self, learners: Iterable[LearnerPlan]) -> None:
        """Take in the answers that have come and ask everyone who has no question open."""
        for rank, pending in list(self._pending.items()):
            if pending.done():
                del self._pending[rank]
                status = pending.result()
                if status is not None:
                    self.answers[rank] = Answer(status, time.monotonic())
        for learner in learners:
            if learner.rank not in self._pending:
                self._pending[learner.rank] = self._pool.submit(fetch_status, learner.address.http)

    def close(self) -> None:
        """Stop asking; questions under way end by their timeout."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def fetch_status(address: str, timeout_seconds: float = TIMEOUT_SECONDS) -> dict[str, Any] | None:
    """GET /status of a worker; None when it does not answer with a JSON object in time."""
    # http.client and not urllib: a proxy from the environment has no business between us and the loopback interface.
    connection = http.client.HTTPConnection(address, timeout=timeout_seconds)
    try:
        connection.request("GET", "/status")
        response = connection.getresponse()
        body = response.read(MAX_STATUS_BYTES)
        return json_object(body) if response.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
