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
    """A return to three digits, and at least one decimal: 18.4, 0.951, 475.0; thousands are separated."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:z,.{_score_decimals(value)}f}".replace("-", "−").replace(",", THIN)


def interval(low: float, high: float, decimals: int | None = None) -> str:
    """Both ends of an interval: 11.2 to 13.4; of returns unless `decimals` says how exact they are."""
    if not math.isfinite(low + high):
        return DASH
    if decimals is None:
        decimals = _score_decimals(max(abs(low), abs(high)))
    shown = f"{low:z,.{decimals}f} to {high:z,.{decimals}f}"
    return shown.replace("-", "−").replace(",", THIN)


def _score_decimals(value: float) -> int:
    return 2 - math.floor(math.log10(abs(value))) if 1e-6 <= abs(value) < 10 else 1


def threshold(value: float) -> str:
    """A return that somebody has asked for, with all its digits and no other: 475, 0.9525."""
    return f"{value:,}".removesuffix(".0").replace("-", "−").replace(",", THIN)


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
