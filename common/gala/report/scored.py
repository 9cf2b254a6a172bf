"""Final scores of an experiment's lines, and the look of numbers with intervals: a row per line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.axes import Axes

from gala import scores
from gala.report.canvas import GRID, colour
from gala.report.experiment import Entry
from gala.report.facts import final_evaluation
from gala.report.lines import Line
from gala.report.read import number
from gala.report.series import Array
from gala.report.statistics import Estimate

MODES: Final = ("greedy", "sampled")

NO_SCORE: Final = "without a final score"
"""What is said of finished runs that a figure of scores leaves out."""

ROW: Final = 20
"""Height of a line's row."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A line's final scores."""

    line: Line
    values: Mapping[tuple[str, str], Array]
    """(environment, mode) -> raw scores of its runs, [n]."""

    def of(self, environment: str, mode: str = "greedy") -> Array:
        """Raw scores in one environment; empty if there are none."""
        return self.values.get((environment, mode), np.empty(0))

    def normalised(self, games: Sequence[str]) -> list[Array]:
        """Human-normalised, a task per game."""
        return [
            np.array([scores.human_normalised(game, score) for score in self.of(game)], dtype=float) for game in games
        ]


def scored_line(line: Line) -> Scored:
    """The final scores of a line's runs, and the line of those that have some: a run without a final model has none."""
    found: dict[tuple[str, str], list[float]] = {}
    kept: dict[str, Entry] = {}
    for entry in line.entries:
        for mode in MODES:
            score = final_score(entry, mode)
            if not math.isnan(score):
                found.setdefault((entry.environment, mode), []).append(score)
                kept[entry.name] = entry
    return Scored(line.only(list(kept.values())), {key: np.array(values) for key, values in found.items()})


def final_score(entry: Entry, mode: str) -> float:
    """The final model's mean raw return; NaN before there is one."""
    if entry.run is None:
        return math.nan
    return number(final_evaluation(entry.run).get(mode, {}), "meanReturn")


def as_numbers(estimate: Estimate) -> dict[str, float]:
    """For summary.json."""
    return estimate._asdict()


def rows_height(rows: int, row: int = ROW) -> int:
    """Of a panel with so many rows."""
    return max(row * rows + 10, 40)


def interval_rows(axes: Axes, drawn: Sequence[Line], estimates: Sequence[Estimate], runs: Sequence[Array] = ()) -> None:
    """A row per line: its estimate, its interval, and behind them its runs."""
    for row, (line, value) in enumerate(zip(drawn, estimates, strict=True)):
        paint = colour(line.index)
        if runs:
            axes.plot(
                runs[row], [row] * runs[row].size, color=paint, linestyle="none", marker="o", markersize=5,
                markeredgewidth=0, alpha=0.3,
            )  # fmt: skip
        if math.isfinite(value.low):
            axes.hlines(row, value.low, value.high, color=paint, linewidth=5, alpha=0.4)
        axes.plot([value.value] * 2, [row - 0.28, row + 0.28], color=paint, linewidth=2.4, solid_capstyle="butt")
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.margins(x=0.06)
