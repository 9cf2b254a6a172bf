"""When a crashed worker may start again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class Backoff:
    """The restarts of one learner: exponential delays, a limit, and forgiveness after a healthy while."""

    limit: int
    """Restarts in a row before the learner is given up: `runPolicy.backoffLimit`."""
    base_seconds: float
    """The first delay; each further one is twice as long."""
    max_seconds: float
    healthy_seconds: float
    """A worker that has run for this long starts with a clean record when it crashes."""
    restarts: int = 0
    """Restarts since the last healthy while."""
    total_restarts: int = 0
    """Restarts in all, for display."""

    def crashed(self, ran_seconds: float) -> float | None:
        """Count a crash. Returns the seconds to wait before the next start, or None when the limit is used up."""
        if ran_seconds >= self.healthy_seconds:
            self.restarts = 0
        if self.restarts >= self.limit:
            return None
        delay = min(self.max_seconds, self.base_seconds * 2.0**self.restarts)
        self.restarts += 1
        self.total_restarts += 1
        return delay
