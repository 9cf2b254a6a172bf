"""What a figure of an experiment consists of, before anything knows about pages or files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gala.report.plots import Plot


@dataclass(frozen=True, slots=True)
class Table:
    """A table in plain text: HTML in the page, Markdown in the files. The first cell of each row names it."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """How to read it."""


@dataclass(frozen=True, slots=True)
class Section:
    """One plot of a figure with the numbers behind it."""

    name: str
    """Of its files: lower-case letters, digits and dashes, unique in the experiment."""
    plot: Plot
    """Its caption says what is shown, in which unit, over how many seeds."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON for summary.json; NaN becomes null."""
    table: Table | None = None


def slug(name: str) -> str:
    """An environment's id, say, as part of a file's name: ALE/Pong-v5 -> ale-pong-v5."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"
