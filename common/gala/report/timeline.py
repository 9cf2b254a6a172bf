"""The timeline: when each learner ran and what happened to it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from gala.report.canvas import BAD, GOOD, INK, MUTED, SERIES, Canvas
from gala.report.plots import Plot, colour
from gala.report.read import Record, Run, integer, number, text


def timeline(run: Run, identity: str) -> Plot | None:
    """When each learner ran, and what happened to it."""
    if not any(one.train or one.events for one in run.learners):
        return None
    rows = len(run.learners)
    row_height = max(3.0, min(30.0, 420 / rows))
    figure = Canvas("learner", panel_height=round(max(rows * row_height, 46)))
    axes = figure.panels[0]
    longest = 1.0
    for row, learner in enumerate(run.learners):
        for start, stop in running_intervals(learner.train):
            longest = max(longest, stop)
            axes.plot(
                [start, stop], [row, row], color=colour(row if rows <= len(SERIES) else 0),
                linewidth=min(7.0, row_height * 0.6), solid_capstyle="butt", alpha=0.45,
            )  # fmt: skip
        size = max(2.5, min(6.5, row_height * 0.35))
        for name, (marker, paint, _) in EVENT_MARKS.items():
            at = [number(event, "wallSeconds") for event in learner.events if text(event, "event") == name]
            at = [moment for moment in at if not math.isnan(moment)]
            longest = max([longest, *at])
            # Thousands of checkpoints or refusals on one row are a bar, whatever their number.
            at = at[:: max(1, len(at) // 200)]
            axes.plot(at, [row] * len(at), marker=marker, color=paint, markersize=size, linestyle="none", zorder=3)
    step = max(1, math.ceil(rows / 16))
    axes.set_yticks(range(0, rows, step), [str(one.rank) for one in run.learners[::step]])
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlim(-0.02 * longest, 1.02 * longest)
    axes.grid(visible=False)
    figure.wall_clock_axis(longest)
    seen = {text(event, "event") for one in run.learners for event in one.events}
    legend = tuple((swatch, name.replace("-", " ")) for name, (_, _, swatch) in EVENT_MARKS.items() if name in seen)
    caption = "A bar while a learner reports its training; marks where something happened to it."
    return Plot("Events", figure.svg("Events of every learner", identity), caption, legend)


EVENT_MARKS: dict[str, tuple[str, str, str]] = {
    "checkpoint": ("|", MUTED, "mark-checkpoint"),
    "started": (">", INK, "mark-started"),
    "seeded": (">", INK, "mark-seeded"),
    "resumed": (">", GOOD, "mark-resumed"),
    "joined": (">", GOOD, "mark-joined"),
    "ring": ("d", MUTED, "mark-ring"),
    "refused": ("x", BAD, "mark-refused"),
    "peer-gone": ("v", BAD, "mark-peer-gone"),
    "peer-back": ("^", GOOD, "mark-peer-back"),
    "stopped": ("s", MUTED, "mark-stopped"),
    "finished": ("o", GOOD, "mark-finished"),
}
"""Event -> marker, colour, CSS class of its swatch; later ones are drawn over earlier ones."""


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
