"""Times as Kubernetes writes them: UTC, whole seconds, `2026-11-22T18:02:00Z`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def write(time: datetime) -> str:
    """As text, without fractions of a second."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read(text: Any) -> datetime | None:
    """From text; None for what is no time."""
    if not isinstance(text, str):
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
