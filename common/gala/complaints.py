"""Complaints about others, whose number is up to them: each is counted, few are logged. No I/O of its own."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import Final

LOG_AGAIN_SECONDS: Final = 60.0
"""A repeated complaint about the same peer is logged this often at most."""
_MAX_KINDS: Final = 1024


class Complaints:
    """Logs each kind of trouble with each peer once in a while, and counts all of it. Thread-safe."""

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
