"""The timeline: when each learner ran and what happened to it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gala.report.canvas import BAD, GOOD, INK, MUTED, SERIES, Canvas, colour
from gala.report.plots import Plot
from gala.report.read import Record, Run, integer, number, text


def timeline(run: Run, identity: str) -> Plot | None:
    """When each learner ran, and what happened to it."""
    if not any(one.train or one.events for one in run.learners):
        return None
    rows = len(run.learners)
    row_height = max(3.0, min(30.0, 300 / rows))
    figure = Canvas("learner", panel_height=round(max(rows * row_height, 46)))
    axes = figure.panels[0]
    bars: list[tuple[float, float, int]] = []
    marks: dict[str, list[tuple[float, int]]] = {name: [] for name in EVENT_MARKS}
    for row, learner in enumerate(run.learners):
        bars += [(start, stop, row) for start, stop in running_intervals(learner.train)]
        for name, places in marks.items():
            at = [number(event, "wallSeconds") for event in learner.events if text(event, "event") == name]
            at = [moment for moment in at if not math.isnan(moment)]
            # Thousands of checkpoints or refusals on one row are a bar, whatever their number.
            places += [(moment, row) for moment in at[:: max(1, len(at) // 200)]]
    longest = max([1.0, *(stop for _, stop, _ in bars), *(moment for at in marks.values() for moment, _ in at)])
    axes.hlines(
        [row for _, _, row in bars], [start for start, _, _ in bars], [stop for _, stop, _ in bars],
        colors=[colour(row if rows <= len(SERIES) else 0) for _, _, row in bars],
        linewidth=min(7.0, row_height * 0.6), alpha=0.45,
    )  # fmt: skip
    size = max(2.5, min(6.5, row_height * 0.35))
    for name, places in marks.items():
        x, y = [moment for moment, _ in places], [row for _, row in places]
        look = EVENT_MARKS[name]
        axes.plot(x, y, marker=look.marker, color=look.paint, markersize=size, linestyle="none", zorder=3)
    step = max(1, math.ceil(rows / 16))
    axes.set_yticks(range(0, rows, step), [str(one.rank) for one in run.learners[::step]])
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlim(-0.02 * longest, 1.02 * longest)
    axes.grid(visible=False)
    figure.wall_clock_axis(longest)
    legend = tuple((f"mark-{name}", EVENT_MARKS[name].label) for name, places in marks.items() if places)
    caption = "A bar while a learner reports its training; marks where something happened to it."
    return Plot("Events", figure.svg("Events of every learner", identity), caption, legend)


class Mark(NamedTuple):
    """How an event is drawn. The CSS class of its swatch is `mark-<event>`."""

    marker: str
    paint: str
    label: str


EVENT_MARKS = {
    "checkpoint": Mark("|", MUTED, "checkpoint"),
    "seeded": Mark(">", INK, "started from the seed"),
    "resumed": Mark(">", GOOD, "resumed from a checkpoint"),
    "joined": Mark("D", GOOD, "joined from a neighbour"),
    "refused": Mark("x", BAD, "refused"),
    "peer-gone": Mark("v", BAD, "a peer gone"),
    "peer-back": Mark("^", GOOD, "a peer back"),
    "stopped": Mark("s", MUTED, "stopped"),
    "finished": Mark("o", GOOD, "finished"),
}
"""Later ones are drawn over earlier ones. "started" always comes with one of seeded, resumed and joined."""


def running_intervals(train: Sequence[Record]) -> list[tuple[float, float]]:
    """When a learner was reporting, in wall-clock seconds: broken where it was silent or came back as a new process."""
    result: list[tuple[float, float]] = []
    moments = [(number(record, "wallSeconds"), integer(record, "incarnation")) for record in train]
    moments = [(wall, incarnation) for wall, incarnation in moments if not math.isnan(wall)]
    steps = [b[0] - a[0] for a, b in itertools.pairwise(moments)]
    usual = float(np.median(steps)) if steps else 5.0
    previous: tuple[float, int | None] | None = None
    for wall, incarnation in moments:
        same = previous is not None and incarnation == previous[1] and 0 <= wall - previous[0] <= max(4 * usual, 15.0)
        if same:
            result[-1] = (result[-1][0], wall)
        else:
            result.append((max(wall - usual, 0.0), wall))
        previous = (wall, incarnation)
    return result
