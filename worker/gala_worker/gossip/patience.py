"""How long a stream may be silent, whatever is said on it: the same in a ring and around a hub. Pure."""

from __future__ import annotations

from typing import Final

HELLO_SECONDS: Final = 5.0
"""How long a conversation may take to begin, and to end."""
MAX_STRANGERS: Final = 64
"""Streams without a proper hello at the same time; more are closed at once."""


class Attention:
    """Tells the silence of others from a process that did not listen itself: frozen, or without a processor."""

    def __init__(self) -> None:
        self._ticked_at: float | None = None

    def was_away(self, now: float, timeout: float) -> bool:
        """To be asked at every tick. If so, what was said meanwhile is still to be read: nobody has been silent."""
        away = self._ticked_at is not None and now - self._ticked_at > timeout / 2
        self._ticked_at = now
        return away
