"""Scores of final models: per environment in raw returns, over the games with yardsticks human-normalised.

As Agarwal et al. 2021 (arXiv 2108.13264) ask for a handful of runs: interquartile means with stratified bootstrap
intervals, performance profiles and the probability of improvement, rather than the best seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.axes import Axes

from gala import scores
from gala.report import formats, statistics
from gala.report.canvas import GRID, MUTED, Canvas
from gala.report.experiment import Entry, Experiment
from gala.report.facts import final_evaluation
from gala.report.lines import Line, legend, lines, seeds_note
from gala.report.plots import Plot, colour, plural
from gala.report.read import integer, number
from gala.report.section import Section, Table, slug
from gala.report.series import Array
from gala.report.statistics import Estimate

MODES: Final = ("greedy", "sampled")

ROW: Final = 20
"""Height of a line's row."""

AGGREGATES: Final[Mapping[str, statistics.Statistic]] = {
    "IQM": statistics.iqm,
    "median": statistics.median,
    "mean": statistics.mean,
    "optimality gap": statistics.optimality_gap,
}


def sections(experiment: Experiment, identity: str) -> Iterator[Section]:
    """One plot per environment; and over the games that have yardsticks, the aggregates, profiles and comparisons."""
    for i, environment in enumerate(experiment.environments):
        scored = [_scored(line) for line in lines(experiment, experiment.of(environment))]
        scored = [one for one in scored if one.of(environment).size]
        if scored:
            yield _raw(experiment, environment, scored, f"{identity}-{i}")
    everything = [_scored(line) for line in lines(experiment, experiment.entries)]
    games = [
        environment
        for environment in experiment.environments
        if scores.game(environment) is not None and any(one.of(environment).size for one in everything)
    ]
    complete = [one for one in everything if games and all(one.of(game).size for game in games)]
    left_out = [one.line.label for one in everything if not all(one.of(game).size for game in games)]
    if complete:
        yield _aggregates(complete, games, left_out, f"{identity}-aggregates")
        yield _profiles(complete, games, f"{identity}-profiles")
    if len(complete) > 1:
        yield _improvement(complete, games, f"{identity}-improvement")


@dataclass(frozen=True, slots=True)
class _Scored:
    """A line's final scores."""

    line: Line
    values: Mapping[tuple[str, str], Array]
    """(environment, mode) -> raw scores of its runs, [n]."""

    def of(self, environment: str, mode: str = "greedy") -> Array:
        return self.values.get((environment, mode), np.empty(0))

    def normalised(self, games: Sequence[str]) -> list[Array]:
        """Human-normalised, a task per game."""
        return [
            np.array([scores.human_normalised(game, score) for score in self.of(game)], dtype=float) for game in games
        ]


def _scored(line: Line) -> _Scored:
    found: dict[tuple[str, str], list[float]] = {}
    for entry in line.entries:
        for mode in MODES:
            score = final_score(entry, mode)
            if not math.isnan(score):
                found.setdefault((entry.environment, mode), []).append(score)
    return _Scored(line, {key: np.array(values) for key, values in found.items()})


def final_score(entry: Entry, mode: str) -> float:
    """The final model's mean raw return; NaN before there is one."""
    if entry.run is None:
        return math.nan
    return number(final_evaluation(entry.run).get(mode, {}), "meanReturn")


def _raw(experiment: Experiment, environment: str, scored: Sequence[_Scored], identity: str) -> Section:
    figure = Canvas("mean raw return of the final model, greedy", panel_height=_height(len(scored)))
    estimates = [statistics.estimate(statistics.iqm, [one.of(environment)]) for one in scored]
    _rows(figure.panels[0], [one.line for one in scored], estimates, [one.of(environment) for one in scored])
    threshold = experiment.thresholds.get(environment)
    if threshold is not None:
        figure.panels[0].axvline(threshold.value, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
    figure.numbers_axis("raw return")
    title = f"Final scores, {environment}"
    drawn = [one.line for one in scored]
    caption = (
        f"Greedy evaluation of each run's final model{_episodes(experiment.of(environment))}, in raw return. Faint: "
        "single runs. Marked: interquartile mean over seeds (with fewer than four, the mean) and its 95 % bootstrap "
        f"interval. Rows as in the legend. {seeds_note(drawn)}"
    )
    caption += f" Dotted: {formats.score(threshold.value)}, the convergence threshold." if threshold else ""
    return Section(
        f"scores-{slug(environment)}",
        Plot(title, figure.svg(title, identity), caption, legend(drawn)),
        {
            "environment": environment,
            "lines": [
                {
                    "label": one.line.label,
                    "algorithm": one.line.algorithm,
                    **{
                        mode: {
                            "runs": one.of(environment, mode).tolist(),
                            "iqm": estimate_numbers(statistics.estimate(statistics.iqm, [one.of(environment, mode)])),
                        }
                        for mode in MODES
                        if one.of(environment, mode).size
                    },
                }
                for one in scored
            ],
        },
        _raw_table(environment, scored),
    )


def _raw_table(environment: str, scored: Sequence[_Scored]) -> Table:
    head = ["Final score", "Runs"]
    for mode in MODES:
        head += [f"{mode.capitalize()}: IQM", "95 % interval", "mean", "best run"]
    rows = []
    for one in scored:
        row = [one.line.label, str(one.of(environment).size)]
        for mode in MODES:
            values = one.of(environment, mode)
            if not values.size:
                row += [formats.DASH] * 4
                continue
            iqm = statistics.estimate(statistics.iqm, [values])
            row += [formats.score(iqm.value), interval(iqm), formats.score(values.mean()), formats.score(values.max())]
        rows.append(tuple(row))
    return Table(tuple(head), tuple(rows), "Raw returns of the final models. IQM: interquartile mean over runs.")


def _aggregates(scored: Sequence[_Scored], games: Sequence[str], left_out: Sequence[str], identity: str) -> Section:
    figure = Canvas(*(f"{name}{_HINTS.get(name, '')}" for name in AGGREGATES), panel_height=_height(len(scored), 14))
    table: dict[str, list[Estimate]] = {}
    for axes, (name, statistic) in zip(figure.panels, AGGREGATES.items(), strict=True):
        table[name] = [statistics.estimate(statistic, one.normalised(games)) for one in scored]
        _rows(axes, [one.line for one in scored], table[name])
    figure.numbers_axis("human-normalised score")
    title = "Human-normalised scores"
    drawn = [one.line for one in scored]
    caption = (
        "(score − random) / (human − random) of the final models' greedy raw returns, over "
        f"{plural(len(games), 'game')} ({', '.join(scores.game(game) or game for game in games)}). Bars: 95 % "
        "stratified bootstrap intervals, runs drawn again within each game. The optimality gap is what the scores miss of 1 on "
        f"average, scores above 1 counting as 1. {seeds_note(drawn)}"
    )
    caption += f" Without {', '.join(left_out)}: no score in some of these games." if left_out else ""
    head = ("Human-normalised", "Runs", *AGGREGATES)
    rows = tuple(
        (
            one.line.label,
            str(sum(task.size for task in one.normalised(games))),
            *(f"{table[name][i].value:.2f}{_brackets(table[name][i])}" for name in AGGREGATES),
        )
        for i, one in enumerate(scored)
    )
    return Section(
        "scores-human-normalised",
        Plot(title, figure.svg(title, identity), caption, legend(drawn)),
        {
            "games": list(games),
            "lines": [
                {
                    "label": one.line.label,
                    "algorithm": one.line.algorithm,
                    "runsPerGame": [task.size for task in one.normalised(games)],
                    **{name: estimate_numbers(table[name][i]) for name in AGGREGATES},
                }
                for i, one in enumerate(scored)
            ],
        },
        Table(head, rows, "With 95 % stratified bootstrap intervals. Lower is better in the optimality gap alone."),
    )


_HINTS: Final = {
    "IQM": ", the interquartile mean",
    "median": " of the games' means",
    "optimality gap": ", less is better",
}


def _profiles(scored: Sequence[_Scored], games: Sequence[str], identity: str) -> Section:
    tasks = [one.normalised(games) for one in scored]
    highest = max(float(task.max()) for each in tasks for task in each)
    thresholds = np.linspace(0.0, max(highest, 0.1) * 1.02, 120)
    figure = Canvas("share of runs above the score, %")
    numbers = []
    for one, each in zip(scored, tasks, strict=True):
        value, low, high = statistics.profile_band(each, thresholds)
        paint = colour(one.line.index)
        figure.panels[0].fill_between(
            thresholds, 100 * low, 100 * high, color=paint, alpha=0.16, linewidth=0, step="mid"
        )
        figure.panels[0].plot(thresholds, 100 * value, color=paint, linewidth=2, drawstyle="steps-mid")
        numbers.append(
            {"label": one.line.label, "share": value.tolist(), "low": low.tolist(), "high": high.tolist()}
        )  # fmt: skip
    figure.panels[0].set_ylim(-4, 104)
    figure.numbers_axis("human-normalised score")
    title = "Performance profiles"
    drawn = [one.line for one in scored]
    caption = (
        f"Share of runs whose final model's greedy human-normalised score is above x, mean over "
        f"{plural(len(games), 'game')}; band: pointwise 95 % stratified bootstrap interval. {seeds_note(drawn)}"
    )
    return Section(
        "scores-profiles",
        Plot(title, figure.svg(title, identity), caption, legend(drawn)),
        {"games": list(games), "thresholds": thresholds.tolist(), "lines": numbers},
    )


def _improvement(scored: Sequence[_Scored], games: Sequence[str], identity: str) -> Section:
    first, others = scored[0], scored[1:]
    ours = first.normalised(games)
    estimates = [statistics.improvement(ours, other.normalised(games)) for other in others]
    figure = Canvas(
        "probability that a run of the first scores higher than one of the other", panel_height=_height(len(others))
    )
    _rows(figure.panels[0], [one.line for one in others], estimates)
    figure.panels[0].axvline(0.5, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
    figure.panels[0].set_xlim(-0.02, 1.02)
    figure.numbers_axis("probability of improvement")
    title = f"Does {first.line.label} score higher?"
    drawn = [one.line for one in others]
    caption = (
        f"Probability that a run of {first.line.label} has a higher final greedy score than a run of the other on the "
        f"same game, a tie counting half; mean over {plural(len(games), 'game')}. Bars: 95 % stratified bootstrap "
        f"intervals. Dotted: no difference. {seeds_note([first.line, *drawn])}"
    )
    rows = tuple(
        (f"{first.line.label} over {one.line.label}", f"{value.value:.2f}", interval(value, 2))
        for one, value in zip(others, estimates, strict=True)
    )
    return Section(
        "scores-improvement",
        Plot(title, figure.svg(title, identity), caption, legend(drawn)),
        {
            "games": list(games),
            "first": first.line.label,
            "over": {one.line.label: estimate_numbers(value) for one, value in zip(others, estimates, strict=True)},
        },
        Table(("Probability of improvement", "P", "95 % interval"), rows),
    )


def estimate_numbers(estimate: Estimate) -> dict[str, float]:
    """For summary.json."""
    return estimate._asdict()


def interval(estimate: Estimate, decimals: int = 1) -> str:
    """Both ends, or a dash where there is no interval."""
    if math.isnan(estimate.low):
        return formats.DASH
    return f"{_fixed(estimate.low, decimals)} to {_fixed(estimate.high, decimals)}"


def _brackets(estimate: Estimate) -> str:
    return "" if math.isnan(estimate.low) else f" ({_fixed(estimate.low, 2)} to {_fixed(estimate.high, 2)})"


def _fixed(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}".replace("-", "−").replace(",", formats.THIN)


def _height(rows: int, row: int = ROW) -> int:
    return max(row * rows + 10, 40)


def _rows(axes: Axes, drawn: Sequence[Line], estimates: Sequence[Estimate], runs: Sequence[Array] = ()) -> None:
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


def _episodes(entries: Sequence[Entry]) -> str:
    counts = {
        count
        for entry in entries
        if entry.run is not None and (count := integer(final_evaluation(entry.run).get("greedy", {}), "episodes"))
    }
    return f" over {counts.pop()} episodes" if len(counts) == 1 else ""
