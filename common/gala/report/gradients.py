"""The figure of gradient correlation: heat maps of the cosines between learners' gradients, one for each algorithm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from gala.report import formats, statistics
from gala.report.canvas import BAD, INK, MUTED, SERIES, Canvas
from gala.report.correlation import Correlation, correlation, together
from gala.report.experiment import Experiment
from gala.report.lines import Line, lines
from gala.report.plots import Plot, plural
from gala.report.section import Section, Table, slug
from gala.report.statistics import Estimate
from gala.report.traces import TraceError

TITLE = "Correlation of gradients, {}"
NAME = "gradient-correlation-{}"
"""Of a section's files."""

MAX_NUMBERED = 10
"""With more learners the cells are too small for a number."""


@dataclass(frozen=True, slots=True)
class _Measured:
    line: Line
    correlation: Correlation
    """Of all seeds together."""
    means: tuple[float, ...]
    """Over all pairs of learners, by seed."""

    @property
    def seeds(self) -> int:
        return len(self.means)

    def estimate(self) -> Estimate:
        """The mean over the seeds, each of which is the mean over its pairs."""
        return statistics.estimate(statistics.mean, [np.asarray(self.means)])


def sections(experiment: Experiment, identity: str) -> Iterator[Section]:
    """One plot per environment and number of learners, with a heat map for each line that recorded gradients.

    Where all that was recorded is damaged, it says so.
    """
    for i, environment in enumerate(experiment.environments):
        drawn: list[_Measured] = []
        problems: list[str] = []
        for line in lines(experiment, experiment.of(environment)):
            found: list[Correlation] = []
            for entry in line.entries:
                try:
                    one = correlation(entry.run) if entry.run is not None else None
                except TraceError as error:
                    problems.append(f"{entry.name}: {error}")
                    continue
                if one is not None and (not found or one.ranks == found[0].ranks):
                    found.append(one)
            if found:
                drawn.append(_Measured(line, together(found), tuple(one.mean() for one in found)))
        if problems and not drawn:
            yield _nothing(environment, problems, f"{identity}-{i}")
        sizes = dict.fromkeys(len(measured.correlation.ranks) for measured in drawn)
        for size in sizes:
            alike = [measured for measured in drawn if len(measured.correlation.ranks) == size]
            name = f"{environment}, {size} learners" if len(sizes) > 1 else environment
            yield _section(name, alike, problems, f"{identity}-{i}-{size}")


def _section(environment: str, drawn: Sequence[_Measured], problems: Sequence[str], identity: str) -> Section:
    title = TITLE.format(environment)
    names = [f"{one.line.label}, mean over {plural(one.correlation.snapshots, 'snapshot')}" for one in drawn]
    figure = Canvas(*names, panel_height=240)
    brightest = max(abs(value) for measured in drawn for _, _, value in _pairs(measured.correlation)) or 1.0
    for axes, measured in zip(figure.panels, drawn, strict=True):
        _heat_map(axes, measured.correlation, brightest)
    figure.label_x("rank")
    seeds = sorted({measured.seeds for measured in drawn})
    over = "One seed" if seeds == [1] else f"{' or '.join(map(str, seeds))} seeds"
    caption = (
        "Cosine of the angle between the gradients of two learners at the same number of updates, before clipping: the "
        "mean over the snapshots of the run, no unit. A2C's ranks have a gradient of their own shard each, before it "
        "is averaged. Framed: neighbours, of which one sends parameters to the other. One scale of shades, up to "
        f"{brightest:.2g}. {over} per map. {_left_out(problems)}"
    ).strip()
    rows = []
    for measured in drawn:
        one, all_pairs = measured.correlation, measured.estimate()
        means = (one.mean(neighbours=True), one.mean(neighbours=False))
        interval = formats.interval(all_pairs.low, all_pairs.high, 3)
        row = (measured.line.label, str(measured.seeds), str(one.snapshots), _cosine(all_pairs.value), interval)
        rows.append((*row, *map(_cosine, means)))
    head = ("Gradient cosine", "Seeds", "Snapshots", "All pairs", "95 % interval", "Neighbours", "Others")
    return Section(
        NAME.format(slug(environment)),
        Plot(title, figure.svg(title, identity), caption),
        _numbers(environment, drawn),
        Table(
            head,
            tuple(rows),
            "Means over pairs of learners, snapshots and seeds. The interval is a bootstrap over the seeds; with "
            "fewer than about ten it is too narrow.",
        ),
    )


def _nothing(environment: str, problems: Sequence[str], identity: str) -> Section:
    title = TITLE.format(environment)
    figure = Canvas("cosine of gradients", panel_height=90)
    figure.say("No cosine can be computed.")
    caption = f"Cosines between the learners' gradients would be here. {_left_out(problems)}"
    plot = Plot(title, figure.svg(title, identity), caption)
    return Section(NAME.format(slug(environment)), plot, _numbers(environment, ()))


def _left_out(problems: Sequence[str]) -> str:
    return " ".join(f"Left out: {problem}." for problem in problems)


def _pairs(one: Correlation) -> Iterator[tuple[int, int, float]]:
    count = len(one.ranks)
    return ((i, j, float(one.cosines[i, j])) for i in range(count) for j in range(count) if i != j)


def _heat_map(axes: Axes, one: Correlation, brightest: float) -> None:
    count = len(one.ranks)
    for i, j, value in _pairs(one):
        paint = SERIES[0] if value >= 0 else BAD
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor=paint, alpha=0.85 * abs(value) / brightest, linewidth=0))
        if count <= MAX_NUMBERED:
            size = 10.5 if count <= 5 else 8
            axes.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", color=INK, fontsize=size)
        pair = (min(one.ranks[i], one.ranks[j]), max(one.ranks[i], one.ranks[j]))
        if pair in one.neighbours:
            axes.add_patch(Rectangle((j + 0.04, i + 0.04), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=1.2))
    for i in range(count):
        axes.add_patch(Rectangle((i, i), 1, 1, facecolor=MUTED, alpha=0.18, linewidth=0))
    axes.set_xlim(0, count)
    axes.set_ylim(count, 0)
    axes.grid(visible=False)
    centres = [i + 0.5 for i in range(count)]
    axes.set_xticks(centres, [str(rank) for rank in one.ranks])
    axes.set_yticks(centres, [str(rank) for rank in one.ranks])


def _cosine(value: float) -> str:
    return formats.DASH if math.isnan(value) else f"{value:.3f}".replace("-", "−")


def _numbers(environment: str, drawn: Sequence[_Measured]) -> dict[str, Any]:
    return {
        "environment": environment,
        "lines": [
            {
                "label": measured.line.label,
                "algorithm": measured.line.algorithm,
                "seeds": measured.seeds,
                "snapshots": measured.correlation.snapshots,
                "updates": list(measured.correlation.versions),
                "cosines": measured.correlation.cosines.tolist(),
                "mean": measured.correlation.mean(),
                "meanBySeed": list(measured.means),
                "meanOfNeighbours": measured.correlation.mean(neighbours=True),
                "meanOfOthers": measured.correlation.mean(neighbours=False),
            }
            for measured in drawn
        ],
    }
