"""Whether the learner thread is alive, as seen from another thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Heartbeat:
    """The learner thread beats at every update; whoever probes asks for the `complaint`.

    A learner that has stopped for a good reason says so with `paused`, for a bounded time: an excuse without an end
    would hide a hang.
    """

    def __init__(self, limit_seconds: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit_seconds`: the longest time without a beat or an excuse that counts as healthy."""
        self._limit_seconds = limit_seconds
        self._clock = clock
        self._deadline = clock() + limit_seconds
        self._doing = "starting"

    def beat(self) -> None:
        """An update was made."""
        self._doing = "training"
        self._deadline = self._clock() + self._limit_seconds

    @contextlib.contextmanager
    def paused(self, doing: str, seconds: float) -> Iterator[None]:
        """For a wait, an evaluation or a large save that may take up to `seconds` without an update."""
        before = self._doing
        self._doing = doing
        self._deadline = self._clock() + seconds + self._limit_seconds
        try:
            yield
        finally:
            self._doing = before
            self._deadline = self._clock() + self._limit_seconds

    def complaint(self) -> str | None:
        """Why the learner counts as hung; None while it is healthy."""
        late = self._clock() - self._deadline
        return None if late <= 0 else f"no update for {late + self._limit_seconds:.0f} s while {self._doing}"
