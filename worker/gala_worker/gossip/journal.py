"""What a rank tells about its neighbours: events for its records, complaints for its log. No I/O of its own."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from typing import Any, Final

LOG_AGAIN_SECONDS: Final = 60.0
"""A repeated complaint about the same neighbour is logged this often at most."""
_MAX_KINDS: Final = 1024
MAX_EVENTS: Final = 1000


class Complaints:
    """Logs each kind of trouble with each neighbour once in a while, and counts all of it. Thread-safe."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._said: dict[tuple[str, int | None], float] = {}
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """By kind, all of them; a copy."""
        with self._lock:
            return dict(self._counts)

    def add(self, kind: str, peer: int | None, text: str, now: float) -> bool:
        """Counts it; True if it was also worth a line in the log."""
        with self._lock:
            self._counts[kind] += 1
            last = self._said.get((kind, peer))
            if last is not None and now - last < LOG_AGAIN_SECONDS:
                return False
            if len(self._said) >= _MAX_KINDS:
                self._said.clear()
            self._said[kind, peer] = now
        self._log.warning("%s", text)
        return True


class Journal:
    """Events since they were last collected, at most `MAX_EVENTS`; a complaint that is worth a line is one of them."""

    def __init__(self, log: logging.Logger) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self._complaints = Complaints(log)

    def note(self, event: str, **details: Any) -> None:
        """Something has happened."""
        self._events.append({"event": event, **details})

    def refusal(self, kind: str, peer: int | None, text: str, now: float, **details: Any) -> None:
        """Something was refused: to us, or by us."""
        if self._complaints.add(kind, peer, text, now):
            self.note("refused", peer=peer, reason=kind, **details)

    @property
    def counts(self) -> dict[str, int]:
        """Refusals by kind, all of them; a copy."""
        return self._complaints.counts

    def collect(self) -> list[dict[str, Any]]:
        """What has happened since the last call, oldest first. From any thread."""
        return [self._events.popleft() for _ in range(len(self._events))]
