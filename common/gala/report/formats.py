"""How the report writes numbers, durations and moments. NaN and None become a dash everywhere."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from gala import durations

DASH = "–"
THIN = "\u202f"
"""A narrow no-break space between a number and its unit."""


def compact(value: float | None) -> str:
    """About three significant digits with k, M, G: 12345678 -> 12.3 M."""
    if value is None or not math.isfinite(value):
        return DASH
    magnitude = abs(value)
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999,960 would round to "1000 k".
        if magnitude >= size * 0.9995:
            return f"{_significant(value / size)}{THIN}{unit}"
    if magnitude != 0 and magnitude < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
    return _significant(value)


def _significant(value: float) -> str:
    whole = len(str(int(abs(value))))
    if 0 < abs(value) < 1:
        whole = math.floor(math.log10(abs(value))) + 1
    decimals = max(3 - whole, 0)
    shown = f"{value:.{decimals}f}"
    if "." in shown:
        shown = shown.rstrip("0").rstrip(".")
    return shown.replace("-", "−") if shown != "-0" else "0"


def score(value: float | None) -> str:
    """A return with one decimal: 18.4; thousands are separated."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:,.1f}".replace("-", "−").replace(",", THIN)


def interval(low: float, high: float, decimals: int = 1) -> str:
    """Both ends of an interval: 1.2 to 3.4."""
    if not math.isfinite(low + high):
        return DASH
    shown = f"{low:,.{decimals}f} to {high:,.{decimals}f}"
    return shown.replace("-", "−").replace(",", THIN)


def count(value: float | None) -> str:
    """A whole number with separated thousands."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:,.0f}".replace(",", THIN).replace("-", "−")


def size(value: float | None) -> str:
    """Bytes: 3.5 GB."""
    shown = compact(value)
    if shown == DASH:
        return DASH
    return f"{shown}B" if THIN in shown else f"{shown}{THIN}B"


def percent(value: float | None, decimals: int = 0) -> str:
    """0.05 -> 5 %."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{100 * value:,.{decimals}f}{THIN}%".replace("-", "−").replace(",", THIN)


def duration(seconds: float | None) -> str:
    """7505 -> 2 h 5 min; 7200 -> 2 h."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return DASH
    parts = durations.parts(seconds)
    return " ".join(f"{number}{THIN}{unit}" for number, unit in parts if number or len(parts) == 1)


def moment(unix_seconds: float | None) -> str:
    """Unix seconds as a moment in UTC, to the minute."""
    if unix_seconds is None or not math.isfinite(unix_seconds):
        return DASH
    try:
        return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return DASH
