"""What a rank tells about its neighbours: events for its records, complaints for its log. No I/O of its own."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Final

from gala.complaints import Complaints

MAX_EVENTS: Final = 1000


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
