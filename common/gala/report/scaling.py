"""Throughput and hardware use against the learners on one machine: what more of them get out of the same hardware.

Only learners with simulators count: of A3C and IMPALA one rank more holds the parameters.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from gala.algorithms import ALGORITHMS
from gala.report import formats
from gala.report.canvas import MUTED, Canvas, colour, dash
from gala.report.experiment import Entry, Experiment
from gala.report.facts import frames_per_decision
from gala.report.hardware import USES, hardware_use
from gala.report.lines import Line, legend, lines, shared_machine_note
from gala.report.plots import Plot
from gala.report.read import Run, number
from gala.report.section import Section, Table, slug

WARM_UP: Final = 0.1
"""Share of a run's time that does not count: simulators and kernels are still starting."""


def sections(experiment: Experiment, identity: str) -> Iterator[Section]:
    """Per environment: decisions per second with their ratio to one learner's, and what the hardware did meanwhile."""
    for i, environment in enumerate(experiment.environments):
        drawn = [(line, _points(line)) for line in lines(experiment, experiment.of(environment), acting)]
        drawn = [(line, points) for line, points in drawn if points]
        if drawn:
            yield _throughput(experiment, environment, drawn, f"{identity}-{i}")
            yield from _hardware(experiment, environment, drawn, f"{identity}-{i}-hardware")


def decisions_per_second(run: Run) -> float:
    """Decisions of all learners together per second of wall-clock, after the warm-up; NaN if too little is recorded.

    From the run's count of decisions, not from the learners' own rates: those overlap with what a server counts.
    """
    pairs = (
        (number(record, "wallSeconds"), number(record, "globalSteps")) for one in run.learners for record in one.train
    )
    points = np.array(sorted(pair for pair in pairs if not math.isnan(sum(pair))), dtype=float)  # [K, 2]
    if len(points) < 3:
        return math.nan
    wall, steps = points[:, 0], np.maximum.accumulate(points[:, 1])
    start = int(np.searchsorted(wall, wall[0] + WARM_UP * (wall[-1] - wall[0])))
    # The run is over when it has made its last decision, even if a learner reports once more.
    stop = int(np.searchsorted(steps, steps[-1]))
    passed = wall[stop] - wall[start]
    return float((steps[stop] - steps[start]) / passed) if stop > start and passed > 0 else math.nan


@dataclass(frozen=True, slots=True)
class _Point:
    learners: int
    rates: tuple[float, ...]
    """Decisions per second of each run."""
    uses: Mapping[str, tuple[float, ...]]
    """By kind of hardware use, of each run that knows it."""

    @property
    def rate(self) -> float:
        return fmean(self.rates)


def acting(entry: Entry) -> int:
    """Ranks with simulators."""
    facts = ALGORITHMS.get(entry.algorithm)
    return entry.learners - (facts is not None and facts.centre is not None)


def _points(line: Line) -> list[_Point]:
    runs: defaultdict[int, list[tuple[float, Mapping[str, float]]]] = defaultdict(list)
    for entry in line.entries:
        rate = decisions_per_second(entry.run) if entry.run is not None else math.nan
        if entry.run is not None and not math.isnan(rate):
            runs[acting(entry)].append((rate, hardware_use(entry.run)))
    return [
        _Point(
            learners,
            tuple(rate for rate, _ in found),
            {use.key: known for use in USES if (known := tuple(uses[use.key] for _, uses in found if use.key in uses))},
        )
        for learners, found in sorted(runs.items())
    ]


def _throughput(
    experiment: Experiment, environment: str, drawn: Sequence[tuple[Line, list[_Point]]], identity: str
) -> Section:
    figure = Canvas("agent decisions per second, all learners", "ratio to the fewest learners", panel_height=150)
    rates, ratios = figure.panels
    ratios.axhline(1.0, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
    for line, points in drawn:
        look: dict[str, Any] = {"color": colour(line.index), "linestyle": dash(line.index), "linewidth": 2}
        x = [point.learners for point in points]
        _dots(rates, x, [point.rates for point in points], colour(line.index))
        rates.plot(x, [point.rate for point in points], **look)
        ratios.plot(x, [point.rate / points[0].rate for point in points], **look, marker="o", ms=4)
    for axes in figure.panels:
        axes.set_ylim(bottom=0)
    _places(figure, drawn)
    title = f"Throughput against learners, {environment}"
    entries = experiment.of(environment)
    caption = (
        "Agent decisions per second of a whole run on one machine, without the first tenth of its time; dots: single "
        "runs, line: their mean. Below: the same over what the line has with the fewest learners, its leftmost point. "
        "A rank without simulators, as A3C and IMPALA have one, is not counted as a learner. "
        f"{_runs_per_point(drawn)} {_frames(entries)} {shared_machine_note(entries)}"
    ).strip()
    return Section(
        f"throughput-{slug(environment)}",
        Plot(title, figure.svg(title, identity), caption, legend([line for line, _ in drawn])),
        {
            "environment": environment,
            "lines": [
                {"label": line.label, "algorithm": line.algorithm, "points": [_numbers(point) for point in points]}
                for line, points in drawn
            ],
        },
        _table(drawn),
    )


def _hardware(
    experiment: Experiment, environment: str, drawn: Sequence[tuple[Line, list[_Point]]], identity: str
) -> Iterator[Section]:
    known = [use for use in USES if any(use.key in point.uses for _, points in drawn for point in points)]
    if not known:
        return
    figure = Canvas(*(use.axis for use in known), panel_height=130)
    for axes, use in zip(figure.panels, known, strict=True):
        for line, points in drawn:
            measured = [point for point in points if use.key in point.uses]
            x, values = [point.learners for point in measured], [point.uses[use.key] for point in measured]
            _dots(axes, x, values, colour(line.index))
            axes.plot(
                x, [fmean(each) for each in values], color=colour(line.index), linestyle=dash(line.index), linewidth=2
            )
        axes.set_ylim(bottom=0)
    _places(figure, drawn)
    title = f"Hardware use against learners, {environment}"
    missing = [use.name for use in USES if use not in known]
    caption = (
        "Processor time that the learners counted, over their running time, and the machine's power, idle part "
        f"included; means over a run; dots: single runs, line: their mean. {_runs_per_point(drawn)} "
        f"{shared_machine_note(experiment.of(environment))}"
    ).strip()
    caption += f" Not readable here: {', '.join(missing)}." if missing else ""
    yield Section(
        f"hardware-{slug(environment)}",
        Plot(title, figure.svg(title, identity), caption, legend([line for line, _ in drawn])),
        {
            "environment": environment,
            "lines": [
                {
                    "label": line.label,
                    "points": [
                        {"learners": point.learners, **{key: list(values) for key, values in point.uses.items()}}
                        for point in points
                    ],
                }
                for line, points in drawn
            ],
        },
    )


def _dots(axes: Axes, x: Sequence[int], values: Sequence[Sequence[float]], paint: str) -> None:
    axes.plot(
        [place for place, each in zip(x, values, strict=True) for _ in each],
        [value for each in values for value in each],
        color=paint, linestyle="none", marker="o", markersize=4, markeredgewidth=0, alpha=0.45,
    )  # fmt: skip


def _places(figure: Canvas, drawn: Sequence[tuple[Line, list[_Point]]]) -> None:
    places = sorted({point.learners for _, points in drawn for point in points})
    axes = figure.panels[-1]
    axes.set_xscale("log", base=2)
    axes.set_xlim(places[0] / 1.25, places[-1] * 1.25)
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(places, [str(place) for place in places])
    figure.label_x("acting learners on the machine")


def _runs_per_point(drawn: Sequence[tuple[Line, list[_Point]]]) -> str:
    counts = {len(point.rates) for _, points in drawn for point in points}
    if counts == {1}:
        return "One seed per point."
    return f"{min(counts)} to {max(counts)} seeds per point." if len(counts) > 1 else f"{counts.pop()} seeds per point."


def _frames(entries: Sequence[Entry]) -> str:
    skips = {skip for entry in entries if entry.run is not None and (skip := frames_per_decision(entry.run))}
    return f"1 decision = {skips.pop()} frames." if len(skips) == 1 else ""


def _numbers(point: _Point) -> dict[str, Any]:
    return {"learners": point.learners, "decisionsPerSecond": list(point.rates)}


def _table(drawn: Sequence[tuple[Line, list[_Point]]]) -> Table:
    known = [use for use in USES if any(use.key in point.uses for _, points in drawn for point in points)]
    rows = tuple(
        (
            line.label,
            str(point.learners),
            str(len(point.rates)),
            formats.count(point.rate),
            f"{point.rate / points[0].rate:.2f}",
            *(use.shown(fmean(point.uses[use.key])) if use.key in point.uses else formats.DASH for use in known),
        )
        for line, points in drawn
        for point in points
    )
    head = ("Throughput", "Learners", "Runs", "Decisions/s", "Ratio", *(use.name for use in known))
    return Table(head, rows, "Means over runs. Ratio: to the same line's fewest learners.")
