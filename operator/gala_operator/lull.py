"""Whether pods are being lost just now: until it is calm, the work queue keeps everything else waiting.

Pods that go together (a node drained, a cluster short of room) do not go at the same instant. What is done between two
of them, on an API server with its hands full, is what the second one's successor waits for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

LULL_SECONDS: Final = 0.25
"""So long after the last disturbance it is calm."""
MAX_UNREST_SECONDS: Final = 2.0
"""What is kept waiting waits no longer than this, however many disturbances follow one another."""


class Lull:
    """Belongs to one event loop; `came` is called when it has become calm."""

    def __init__(self, came: Callable[[], None]) -> None:
        self._came = came
        self._began = self._last = -math.inf
        self._timer: asyncio.TimerHandle | None = None

    def disturb(self) -> None:
        """Something urgent is begun now."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - self._last >= LULL_SECONDS:
            self._began = now
        self._last = now
        if self._timer is None and not self.is_now:
            self._timer = loop.call_at(self._calm_at, self._look)

    @property
    def is_now(self) -> bool:
        """Whether it is calm, or has not been for so long that nobody may be kept waiting for it any longer."""
        return asyncio.get_running_loop().time() >= self._calm_at

    @property
    def _calm_at(self) -> float:
        return min(self._last + LULL_SECONDS, self._began + MAX_UNREST_SECONDS)

    def _look(self) -> None:
        self._timer = None
        if self.is_now:
            self._came()
        else:
            self._timer = asyncio.get_running_loop().call_at(self._calm_at, self._look)
