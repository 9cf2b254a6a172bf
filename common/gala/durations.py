"""A duration in the two units that say enough, the same on a terminal and in a report."""

from __future__ import annotations


def parts(seconds: float) -> list[tuple[int, str]]:
    """45 s, 12 min, 3 h 5 min or 2 d 4 h, the larger unit first."""
    whole, minutes = round(seconds), round(seconds / 60)
    if whole < 120:
        return [(whole, "s")]
    if minutes < 120:
        return [(minutes, "min")]
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return [(hours, "h"), (minutes, "min")]
    days, hours = divmod(hours, 24)
    return [(days, "d"), (hours, "h")]
