"""What another program says, taken as plain values: nothing foreign is trusted to be of the type that it should be.

Workers answer the launcher and the operator, an API server delivers objects, a cluster's status is read from far away,
a run's files may be damaged: all of them are read with these. What is missing or foreign is empty or None, and nothing
raises.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

MAX_COUNT: Final = 2**53
"""Beyond any run's steps, and within what every reader of JSON holds exactly."""


def json_object(content: bytes | str) -> dict[str, Any] | None:
    """The object that a JSON text is; None where it is none, damaged, or nested too deeply to be read."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def json_file(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    return json_object(content) or {}


def text(value: Any, default: str = "") -> str:
    """`value` if it is a text."""
    return value if isinstance(value, str) else default


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Mapping[str, Any]]:
    """The mappings of a list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        as_float = float(value)
    except OverflowError:  # JSON's integers have no bound
        return None
    return as_float if math.isfinite(as_float) else None


def count(value: Any) -> int | None:
    """Likewise a whole number of 0 to MAX_COUNT: a larger one an API server would refuse, and a status with it."""
    found = number(value)
    return int(found) if found is not None and 0 <= found <= MAX_COUNT else None
