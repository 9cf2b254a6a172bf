"""The share of convergent runs against the number of simulators, as in figure 1a of the GALA paper."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import FixedLocator, NullLocator

from gala.report import formats
from gala.report.canvas import Canvas, colour, dash
from gala.report.experiment import Entry, Experiment, Threshold
from gala.report.lines import Line, legend, lines
from gala.report.plots import Plot, plural
from gala.report.read import number
from gala.report.scored import final_score
from gala.report.section import Section, Table, slug
from gala.report.statistics import Estimate, wilson


def sections(experiment: Experiment, identity: str) -> Iterator[Section]:
    """One plot per environment that has a threshold and a run that has ended."""
    for i, environment in enumerate(experiment.environments):
        threshold = experiment.thresholds.get(environment)
        if threshold is not None:
            yield from _section(experiment, environment, threshold, f"{identity}-{i}")


def has_converged(entry: Entry, threshold: Threshold) -> bool | None:
    """Whether a run has reached the threshold; None while that is open. A run that failed has not."""
    if not entry.has_ended:
        return None
    # What a run that failed had reached until then is not what it came to.
    return entry.state == "finished" and result(entry, threshold.measure) >= threshold.value


def result(entry: Entry, measure: str) -> float:
    """What a run came to: its final model's greedy, or its learners' last training return; NaN if neither is known."""
    if entry.run is None:
        return math.nan
    if measure == "greedy":
        return final_score(entry, "greedy")
    last = [
        next(
            (value for record in reversed(one.train) if not math.isnan(value := number(record, "meanReturn"))), math.nan
        )
        for one in entry.run.learners
    ]
    known = [value for value in last if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _section(experiment: Experiment, environment: str, threshold: Threshold, identity: str) -> Iterator[Section]:
    entries = experiment.of(environment)
    drawn: list[tuple[Line, list[_Point]]] = []
    for line in lines(experiment, entries, lambda entry: entry.total_simulators):
        points = _points(line, threshold)
        if points:
            drawn.append((line, points))
    if not drawn:
        return
    figure = Canvas("share of convergent runs, %")
    axes = figure.panels[0]
    places = sorted({point.simulators for _, points in drawn for point in points})
    for i, (line, points) in enumerate(drawn):
        # Side by side: intervals of equal shares would lie over each other. The axis is logarithmic.
        shift = 2 ** (0.07 * (i - (len(drawn) - 1) / 2))
        x = [point.simulators * shift for point in points]
        y = [100 * point.share.value for point in points]
        errors = (
            [100 * (point.share.value - point.share.low) for point in points],
            [100 * (point.share.high - point.share.value) for point in points],
        )
        axes.errorbar(
            x, y, yerr=errors, color=colour(line.index), linestyle=dash(line.index), linewidth=1.8, marker="o",
            markersize=4.5, elinewidth=1, capsize=2.5,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_ylim(-4, 104)
    axes.set_xlim(places[0] / 1.25, places[-1] * 1.25)
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(places, [str(place) for place in places])
    figure.label_x("simulators of all learners together")
    title = f"Convergent runs against simulators, {environment}"
    measured = (
        "the final model's greedy evaluation" if threshold.measure == "greedy" else "the last 100 training episodes"
    )
    caption = (
        f"Share of runs whose return in {measured} is at least {formats.threshold(threshold.value)}, of the runs that "
        f"have ended; {_seeds_per_point(drawn)} Bars: 95 % Wilson intervals of the share."
    )
    failed = sum(point.failed for _, points in drawn for point in points)
    if failed:
        caption += f" {plural(failed, 'run')} that failed {'counts' if failed == 1 else 'count'} as not convergent."
    waiting = sum(not entry.has_ended for entry in entries)
    if waiting:
        have, do = ("has", "does") if waiting == 1 else ("have", "do")
        caption += f" {waiting} of {plural(len(entries), 'run')} {have} not ended and {do} not count yet."
    yield Section(
        name=f"convergence-{slug(environment)}",
        plot=Plot(title, figure.svg(title, identity), caption, legend([line for line, _ in drawn])),
        numbers=_numbers(environment, threshold, drawn),
        table=_table(drawn, places),
    )


@dataclass(frozen=True, slots=True)
class _Point:
    simulators: int
    runs: int
    converged: int
    failed: int

    @property
    def share(self) -> Estimate:
        return wilson(self.converged, self.runs)


def _points(line: Line, threshold: Threshold) -> list[_Point]:
    """One for each number of simulators with a run that has ended."""
    outcomes: defaultdict[int, list[tuple[Entry, bool]]] = defaultdict(list)
    for entry in line.entries:
        reached = has_converged(entry, threshold)
        if reached is not None and entry.total_simulators > 0:
            outcomes[entry.total_simulators].append((entry, reached))
    return [
        _Point(
            simulators,
            runs=len(found),
            converged=sum(reached for _, reached in found),
            failed=sum(entry.state == "failed" for entry, _ in found),
        )
        for simulators, found in sorted(outcomes.items())
    ]


def _seeds_per_point(drawn: Sequence[tuple[Line, list[_Point]]]) -> str:
    counts = {point.runs for _, points in drawn for point in points}
    fewest, most = min(counts), max(counts)
    if most == 1:
        return "one seed per point."
    return f"{most} seeds per point." if fewest == most else f"{fewest} to {most} seeds per point, see the table."


def _numbers(environment: str, threshold: Threshold, drawn: Sequence[tuple[Line, list[_Point]]]) -> dict[str, Any]:
    return {
        "environment": environment,
        "threshold": {"return": threshold.value, "measure": threshold.measure},
        "lines": [
            {
                "label": line.label,
                "algorithm": line.algorithm,
                "points": [
                    {
                        "simulators": point.simulators,
                        "runs": point.runs,
                        "converged": point.converged,
                        "failed": point.failed,
                        "share": point.share.value,
                        "low": point.share.low,
                        "high": point.share.high,
                    }
                    for point in points
                ],
            }
            for line, points in drawn
        ],
    }


def _table(drawn: Sequence[tuple[Line, list[_Point]]], places: Sequence[int]) -> Table:
    rows = []
    for line, points in drawn:
        by_place = {point.simulators: point for point in points}
        rows.append((line.label, *(_cell(by_place.get(place)) for place in places)))
    head = ("Convergent runs", *(f"{place} simulators" for place in places))
    return Table(head, tuple(rows), "Convergent of ended runs, and the 95 % Wilson interval of their share.")


def _cell(point: _Point | None) -> str:
    if point is None:
        return formats.DASH
    share = point.share
    return f"{point.converged} of {point.runs} ({100 * share.low:.0f}–{100 * share.high:.0f}{formats.THIN}%)"
