"""The figure of the epsilon-ball: the measured radius over a run, below its bounds; a panel for each topology."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gala.report.canvas import BAD, INK, SERIES, Canvas, colour
from gala.report.experiment import Entry, Experiment
from gala.report.lines import Line, lines
from gala.report.plots import Plot, log_axis
from gala.report.radius import EpsilonBall, epsilon_ball
from gala.report.section import Section, Table, slug
from gala.report.series import Array, Curve
from gala.report.traces import TraceError

TITLE = "‖X − x̄‖, logarithmic: {}"


@dataclass(frozen=True, slots=True)
class _Measured:
    """One line of the experiment: the balls of its seeds."""

    line: Line
    balls: tuple[tuple[int, EpsilonBall], ...]
    """(seed, ball)"""
    problems: tuple[str, ...]


def sections(experiment: Experiment, identity: str) -> Iterator[Section]:
    """One plot per environment and group of lines that differ in the topology alone."""
    for i, environment in enumerate(experiment.environments):
        groups: dict[tuple[str, ...], list[_Measured]] = {}
        for line in lines(experiment, experiment.of(environment)):
            measured = _measure(line)
            if measured.balls or measured.problems:
                groups.setdefault(_apart_from_topology(experiment, line.entries[0]), []).append(measured)
        for j, (levels, group) in enumerate(groups.items()):
            yield _section(environment, levels if len(groups) > 1 else (), group, f"{identity}-{i}-{j}")


def _measure(line: Line) -> _Measured:
    balls, problems = [], []
    for entry in line.entries:
        if entry.run is None:
            continue
        try:
            ball = epsilon_ball(entry.run)
        except TraceError as error:
            problems.append(f"{entry.name}: {error}")
            continue
        if ball is not None and len(ball.versions):
            balls.append((entry.seed, ball))
    return _Measured(line, tuple(balls), tuple(problems))


def _apart_from_topology(experiment: Experiment, entry: Entry) -> tuple[str, ...]:
    """The levels of an entry in all factors but the seed and those that only say which topology it has."""
    levels = []
    for factor, level in entry.factors.items():
        pairs = {(other.factors.get(factor), other.topology) for other in experiment.entries}
        seeds = {(other.factors.get(factor), other.seed) for other in experiment.entries}
        if len({level for level, _ in pairs}) == 1 or _is_one_to_one(pairs) or _is_one_to_one(seeds):
            continue
        levels.append(f"{level} {factor}" if level[:1].isdigit() else level)
    return tuple(levels)


def _is_one_to_one(pairs: set[tuple[str | None, Any]]) -> bool:
    return len(pairs) == len({first for first, _ in pairs}) == len({second for _, second in pairs})


def _section(environment: str, levels: Sequence[str], group: Sequence[_Measured], identity: str) -> Section:
    title = f"The ε-ball, {', '.join([environment, *levels])}"
    drawn = [measured for measured in group if measured.balls]
    names = _panel_names(drawn)
    figure = Canvas(*[TITLE.format(name) for name in names] or [TITLE.format("nothing")], panel_height=170)
    everything: list[Curve] = []
    for axes, measured in zip(figure.panels, drawn, strict=False):
        for _, ball in measured.balls:
            thin: dict[str, Any] = {"linewidth": 1.8} if len(measured.balls) == 1 else {"linewidth": 1.1, "alpha": 0.8}
            for values, paint, dash in (
                (ball.synchronous_bound, INK, (0, (1, 1.6))),
                (ball.bound, BAD, (0, (5, 3))),
                (ball.radius, colour(measured.line.index), "-"),
            ):
                shown = np.where(np.isnan(values), math.nan, np.maximum(values, ball.rounding))
                everything.append(Curve(ball.versions, shown))
                axes.plot(ball.versions, shown, color=paint, linestyle=dash, **thin)
    for axes in figure.panels[: len(drawn)]:
        log_axis(axes, everything)  # one scale for all panels: the topologies are to be compared
    if drawn:
        figure.numbers_axis("updates of each learner")
    else:
        figure.say("No bound can be computed.")
    plot = Plot(title, figure.svg(title, identity), _caption(group), _legend(drawn))
    name = f"epsilon-ball-{'-'.join(slug(part) for part in (environment, *levels))}"
    return Section(name, plot, _numbers(environment, group), _table(drawn))


def _panel_names(drawn: Sequence[_Measured]) -> list[str]:
    """The topologies; where two panels have the same, the lines' labels."""
    names = [measured.line.entries[0].topology or "Ring" for measured in drawn]
    return names if len(set(names)) == len(names) else [measured.line.label for measured in drawn]


def _legend(drawn: Sequence[_Measured]) -> tuple[tuple[str, str], ...]:
    names = zip(_panel_names(drawn), drawn, strict=True)
    # A panel has one line, which is solid.
    legend = [(f"series-{measured.line.index % len(SERIES)}", f"measured, {name}") for name, measured in names]
    if any(np.isfinite(ball.bound).any() for measured in drawn for _, ball in measured.balls):
        legend.append(("bound", "bound, measured delays"))
    if any(np.isfinite(ball.synchronous_bound).any() for measured in drawn for _, ball in measured.balls):
        legend.append(("dotted", "bound, synchronous"))
    return tuple(legend)


def _caption(group: Sequence[_Measured]) -> str:
    balls = [ball for measured in group for _, ball in measured.balls]
    counts = sorted({len(ball.ranks) for ball in balls})
    seeds = sorted({len(measured.balls) for measured in group if measured.balls})
    parts = [
        f"Solid: distance of {' or '.join(map(str, counts)) or 'no'} learners from their mean, the Frobenius norm of "
        "the stacked parameters, in the unit of a parameter; each learner at its own version, right after its mixing.",
        "Dashed: what it can be at most, from the measured length of every local update and what was mixed when.",
        "Dotted: the same from β, where gossip was synchronous."
        if any(np.isfinite(ball.synchronous_bound).any() for ball in balls)
        else "",
        ""
        if not seeds
        else "One seed per panel."
        if seeds == [1]
        else f"{' or '.join(map(str, seeds))} seeds per panel.",
        _verdict(balls),
    ]
    notes = dict.fromkeys(note for ball in balls for note in ball.notes)
    problems = dict.fromkeys(problem for measured in group for problem in measured.problems)
    parts += [f"{note[0].upper()}{note[1:]}." for note in notes]
    parts += [f"Left out: {problem}." for problem in problems]
    return " ".join(part for part in parts if part)


def _verdict(balls: Sequence[EpsilonBall]) -> str:
    points = sum(int(np.isfinite(ball.bound).sum()) for ball in balls)
    above = sum(int(ball.above.sum()) for ball in balls)
    if not points:
        return ""
    return (
        f"The measured radius is {'below' if not above else 'ABOVE'} the bound at {above or points} of {points} points."
    )


def _numbers(environment: str, group: Sequence[_Measured]) -> dict[str, Any]:
    return {
        "environment": environment,
        "lines": [
            {
                "label": measured.line.label,
                "topology": measured.line.entries[0].topology,
                "problems": list(measured.problems),
                "runs": [
                    {
                        "seed": seed,
                        "learners": len(ball.ranks),
                        "beta": ball.beta,
                        "updates": ball.versions.tolist(),
                        "radius": ball.radius.tolist(),
                        "bound": ball.bound.tolist(),
                        "synchronousBound": ball.synchronous_bound.tolist(),
                        "above": int(ball.above.sum()),
                        "notes": list(ball.notes),
                    }
                    for seed, ball in measured.balls
                ],
            }
            for measured in group
        ],
    }


def _table(drawn: Sequence[_Measured]) -> Table:
    rows = []
    for measured in drawn:
        balls = [ball for _, ball in measured.balls]
        radius = np.concatenate([ball.radius for ball in balls])
        bound = np.concatenate([ball.bound for ball in balls])
        synchronous = np.concatenate([ball.synchronous_bound for ball in balls])
        points = int(np.isfinite(bound).sum())
        rows.append(
            (
                measured.line.label,
                str(len(balls)),
                str(len(balls[0].ranks)),
                f"{balls[0].beta:.3f}",
                _significant(radius),
                _significant(bound),
                _significant(bound / np.where(radius > 0, radius, math.nan)),
                _significant(synchronous),
                f"{points - sum(int(ball.above.sum()) for ball in balls)} of {points}",
            )
        )
    head = (
        "ε-ball", "Seeds", "Learners", "β", "Radius", "Bound", "Bound / radius", "Synchronous bound", "Below the bound",
    )  # fmt: skip
    return Table(head, tuple(rows), "Medians over the points of all seeds; the last column counts points.")


def _significant(values: Array) -> str:
    known = values[np.isfinite(values)]
    return f"{float(np.median(known)):.3g}" if known.size else "–"
