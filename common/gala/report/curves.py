"""Return against decisions, wall-clock and energy over seeds, as in figures 1b to 1g of the GALA paper."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from gala.report import formats
from gala.report.canvas import Canvas, colour, dash
from gala.report.energy import KILOJOULES, sources, with_energy
from gala.report.experiment import Entry, Experiment, Threshold
from gala.report.facts import frames_per_decision
from gala.report.lines import Line, left_out_note, legend, lines, seeds_note, shared_machine_note, unfinished_note
from gala.report.plots import RETURN, Plot
from gala.report.read import Run, number
from gala.report.section import Section, Table, slug
from gala.report.series import EMPTY, Array, Curve, curve
from gala.report.statistics import band, estimate, iqm

GRID: Final = 120
"""Points of a line: more than can be told apart in a plot."""

FEW_SEEDS: Final = 3
"""Up to so many, every run is drawn as well: a band over them tells little."""


MAX_NAMED: Final = 5
"""Runs that a caption names."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What return is plotted against."""

    name: str
    key: str
    """Of the train records."""
    title: str
    unit: str
    lacking: str = "a return"
    """What a run without a curve is without."""


DECISIONS: Final = Axis("decisions", "globalSteps", "Return against decisions", "decisions")
WALL_CLOCK: Final = Axis("wall-clock", "wallSeconds", "Return against wall-clock", "seconds")
ENERGY: Final = Axis("energy", KILOJOULES, "Return against energy", "kJ", "a measurement of energy")

AXES: Final = (DECISIONS, WALL_CLOCK, ENERGY)


def sections(experiment: Experiment, identity: str) -> Iterator[Section]:
    """Per environment one plot for each of decisions, wall-clock and energy."""
    for i, environment in enumerate(experiment.environments):
        drawn = [_with_curves(line) for line in lines(experiment, experiment.of(environment))]
        for axis in AXES:
            section = _section(experiment, environment, axis, drawn, f"{identity}-{i}-{axis.name}")
            if section is not None:
                yield section


def run_curve(entry: Entry, x: str) -> Curve:
    """A run's return over `x`: at each moment the mean over its learners of what each has last reported.

    Learners without simulators report no returns and do not count.
    """
    if entry.run is None:
        return EMPTY
    each = [one for learner in entry.run.learners if (one := curve(learner, x, *RETURN.path))]
    if not each:
        return EMPTY
    moments = np.unique(np.concatenate([one.x[np.isfinite(one.y)] for one in each]))
    together = np.stack([held(one, moments) for one in each])
    known = np.isfinite(together)
    return Curve(moments, np.where(known, together, 0.0).sum(axis=0) / known.sum(axis=0))


def held(one: Curve, grid: Array, until: float = math.inf) -> Array:
    """The curve as a step function on a grid: each value holds until the next, the last one to `until`.

    NaN before the first value.
    """
    finite = np.isfinite(one.y)
    x, y = one.x[finite], one.y[finite]
    if not x.size:
        return np.full(grid.shape, math.nan)
    index = np.searchsorted(x, grid, side="right") - 1
    return np.where((index >= 0) & (grid <= max(until, x[-1])), y[np.maximum(index, 0)], math.nan)


def is_known_of(entry: Entry, x: str) -> bool:
    """Whether a run's `x` is known to its end, that is of each learner's last return: a counter may fail before."""
    learners = entry.run.learners if entry.run is not None else ()
    returns = ([record for record in one.train if not math.isnan(number(record, *RETURN.path))] for one in learners)
    return not any(math.isnan(number(record, x)) for each in returns for record in each[-1:])


def first_reached(one: Curve, threshold: float) -> float:
    """The x at which the curve is at `threshold` or above for the first time; NaN if it never is."""
    above = np.flatnonzero(np.nan_to_num(one.y, nan=-math.inf) >= threshold)
    return float(one.x[above[0]]) if above.size else math.nan


@dataclass(frozen=True, slots=True)
class _Drawn:
    line: Line
    runs: tuple[tuple[Entry, dict[str, Curve]], ...]

    def curves(self, axis: Axis) -> list[tuple[Entry, Curve]]:
        return [(entry, found[axis.name]) for entry, found in self.runs if found[axis.name]]

    def on(self, axis: Axis) -> Line:
        """The line of the runs that have a curve."""
        return self.line.only([entry for entry, _ in self.curves(axis)])


def _with_curves(line: Line) -> _Drawn:
    runs = []
    for entry in line.entries:
        measured = with_energy(entry)
        runs.append((measured, {axis.name: run_curve(measured, axis.key) for axis in AXES}))
    return _Drawn(line, tuple(runs))


def _section(
    experiment: Experiment, environment: str, axis: Axis, everything: Sequence[_Drawn], identity: str
) -> Section | None:
    drawn = [one for one in everything if one.curves(axis)]
    title = f"{axis.title}, {environment}"
    name = f"curves-{slug(environment)}-{axis.name}"
    if not drawn:
        if axis is not ENERGY or not any(one.curves(DECISIONS) for one in everything):
            return None
        figure = Canvas("return against energy", panel_height=90)
        figure.say("Energy was not readable where these runs ran.")
        caption = (
            "Return against the energy of processor and GPU in kJ would be here. It was not readable where these runs "
            f"ran, and it is not estimated from anything else. {sources(_runs(experiment.of(environment)))}"
        ).strip()
        return Section(name, Plot(title, figure.svg(title, identity), caption), {"measured": False})
    longest = max(float(one.x[-1]) for each in drawn for _, one in each.curves(axis)) or 1.0
    figure = Canvas(RETURN.axis, panel_height=230)
    axes = figure.panels[0]
    numbers = []
    for each in drawn:
        found = each.curves(axis)
        ends = max(float(one.x[-1]) for _, one in found)
        grid = np.linspace(0, ends, GRID)
        # A run that has ended keeps its return while others of its line still go on, if x is known of all of it.
        values = np.stack(
            [held(one, grid, ends if entry.has_ended and is_known_of(entry, axis.key) else 0.0) for entry, one in found]
        )
        value, low, high = band(values)
        enough = np.isfinite(values).sum(axis=0) * 2 >= len(found)
        value, low, high = (np.where(enough, part, math.nan) for part in (value, low, high))
        paint = colour(each.line.index)
        if 1 < len(found) <= FEW_SEEDS:
            for row in values:
                axes.plot(grid, row, color=paint, linewidth=0.8, alpha=0.45)
        axes.fill_between(grid, low, high, color=paint, alpha=0.16, linewidth=0)
        axes.plot(grid, value, color=paint, linestyle=dash(each.line.index), linewidth=2)
        numbers.append(
            {
                "label": each.line.label,
                "algorithm": each.line.algorithm,
                "seeds": each.on(axis).seeds,
                "runs": len(found),
                axis.unit: grid.tolist(),
                "iqm": value.tolist(),
                "low": low.tolist(),
                "high": high.tolist(),
            }
        )
    axes.set_xlim(-0.01 * longest, 1.01 * longest)
    if axis is WALL_CLOCK:
        figure.wall_clock_axis(longest)
    elif axis is DECISIONS:
        figure.decisions_axis()
    else:
        figure.numbers_axis("energy, kJ")
    threshold = experiment.thresholds.get(environment)
    shown = [one.on(axis) for one in drawn]
    left_out = left_out_note([one.line for one in everything], shown, f"without {axis.lacking}")
    runs = f"{left_out} {unfinished_note(shown)}".strip()
    caption = _caption(axis, experiment.of(environment), shown, runs)
    if threshold is not None:
        figure.mark_y(threshold.value)
        caption += f" Dotted: {formats.threshold(threshold.value)}, from which on a run counts as convergent."
    return Section(
        name,
        Plot(title, figure.svg(title, identity), caption, legend([one.line for one in drawn])),
        {"environment": environment, "measured": True, "x": axis.unit, "lines": numbers},
        _table(drawn, threshold, runs) if axis is DECISIONS else None,
    )


def _caption(axis: Axis, entries: Sequence[Entry], drawn: Sequence[Line], runs: str) -> str:
    frames = {skip for entry in entries if entry.run is not None and (skip := frames_per_decision(entry.run))}
    unit = {
        DECISIONS.name: "agent decisions, all learners together",
        WALL_CLOCK.name: "seconds since the first record, without stops of the whole run",
        ENERGY.name: "kJ that the machine's processor and GPU have used since the first record, the idle part included",
    }[axis.name]
    parts = [
        f"Raw return, mean of each learner's last 100 training episodes, against {unit}.",
        f"1 decision = {frames.pop()} frames." if len(frames) == 1 else "",
        "Line: interquartile mean over seeds (with fewer than four, the mean); band: its pointwise 95 % bootstrap "
        "interval.",
        seeds_note(drawn),
        runs,
        f"Thin: single runs, where there are at most {FEW_SEEDS}."
        if any(1 < line.seeds <= FEW_SEEDS for line in drawn)
        else "",
        sources(_runs(entries)) if axis is ENERGY else "",
        _cut_note([entry for line in drawn for entry in line.entries if not is_known_of(entry, axis.key)], axis),
        shared_machine_note(entries) if axis is not DECISIONS else "",
    ]
    return " ".join(part for part in parts if part)


def _cut_note(entries: Sequence[Entry], axis: Axis) -> str:
    """Which runs are drawn only so far as x is known of them."""
    if not entries:
        return ""
    named = ", ".join(entry.name for entry in entries[:MAX_NAMED])
    more = f" and {len(entries) - MAX_NAMED} more" if len(entries) > MAX_NAMED else ""
    return f"Not measured to the end, and not drawn beyond: {axis.name} of {named}{more}."


def _table(drawn: Sequence[_Drawn], threshold: Threshold | None, runs: str) -> Table:
    """Last returns, and what it took to get to the threshold.

    Args:
        runs: which of them have not finished.
    """
    head = ["Training return", "Seeds", "At the end: IQM", "95 % interval"]
    if threshold is not None:
        at = formats.threshold(threshold.value)
        head += [f"Reached {at}", "after decisions", "after seconds", "after kJ"]
    rows = []
    for each in drawn:
        last = np.array([one.last for _, one in each.curves(DECISIONS)])
        end = estimate(iqm, [last])
        row = [
            each.line.label,
            str(each.on(DECISIONS).seeds),
            formats.score(end.value),
            formats.interval(end.low, end.high),
        ]
        if threshold is not None:
            decisions, seconds, kilojoules = (
                [first_reached(one, threshold.value) for _, one in each.curves(axis)] for axis in AXES
            )
            reached = sum(not math.isnan(value) for value in decisions)
            row += [f"{reached} of {len(decisions)}", *map(_median, (decisions, seconds, kilojoules))]
        rows.append(tuple(row))
    note = "Raw returns, mean of the learners' last 100 training episodes."
    if threshold is not None:
        note += " What it took: the median of the runs that got there."
    return Table(tuple(head), tuple(rows), f"{note} {runs}".strip())


def _runs(entries: Sequence[Entry]) -> list[Run]:
    return [entry.run for entry in entries if entry.run is not None]


def _median(values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    return formats.compact(float(np.median(known))) if known else formats.DASH
