"""Scores over the games that have yardsticks, human-normalised so that games can be averaged.

As Agarwal et al. 2021 (arXiv 2108.13264) ask for a handful of runs: interquartile means with stratified bootstrap
intervals, performance profiles and the probability of improvement, rather than the best seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from gala import scores
from gala.report import formats, statistics
from gala.report.canvas import MUTED, Canvas, colour, dash
from gala.report.experiment import Experiment
from gala.report.lines import left_out_note, legend, lines
from gala.report.plots import Plot, plural
from gala.report.scored import NO_SCORE, Scored, as_numbers, final_score, interval_rows, rows_height, scored_line
from gala.report.section import Section, Table
from gala.report.statistics import Estimate

AGGREGATES: Final[Mapping[str, statistics.Statistic]] = {
    "IQM": statistics.iqm,
    "median": statistics.median,
    "mean": statistics.mean,
    "optimality gap": statistics.optimality_gap,
}


def sections(experiment: Experiment, identity: str) -> Iterator[Section]:
    """Aggregates, profiles and comparisons of the lines that have a score in every game; none without such games."""
    games = [
        environment
        for environment in experiment.environments
        if scores.game(environment) is not None
        and any(not math.isnan(final_score(entry, "greedy")) for entry in experiment.of(environment))
    ]
    everything = [
        line.only([entry for entry in line.entries if entry.environment in games])
        for line in lines(experiment, experiment.entries)
    ]
    scored = [scored_line(line) for line in everything]
    complete = {one.line.label: one for one in scored if games and all(one.of(game).size for game in games)}
    if not complete:
        return
    shown = list(complete.values())
    left_out = left_out_note(
        [line for line in everything if line.label in complete], [one.line for one in shown], NO_SCORE
    )
    incomplete = [line.label for line in everything if line.label not in complete]
    runs = f"{_seeds_note(shown, games)} {left_out}".strip()
    yield _aggregates(shown, games, incomplete, runs, f"{identity}-aggregates")
    yield _profiles(shown, games, runs, f"{identity}-profiles")
    if len(shown) > 1:
        yield _improvement(shown, games, runs, f"{identity}-improvement")


def _seeds_note(scored: Sequence[Scored], games: Sequence[str]) -> str:
    """How many runs a line has in a game, and in which games it may be a single one, which no interval can vary."""
    counts = {game: [one.of(game).size for one in scored] for game in games}
    fewest, most = (of(size for sizes in counts.values() for size in sizes) for of in (min, max))
    if most == 1:
        return "One seed per line and game."
    note = f"{most if fewest == most else f'{fewest} to {most}'} seeds per line and game."
    if fewest == 1:
        single = [scores.game(game) or game for game, sizes in counts.items() if 1 in sizes]
        note += f" Some lines have a single run in {', '.join(single)}: their intervals take its score as certain."
    return note


def _aggregates(
    scored: Sequence[Scored], games: Sequence[str], incomplete: Sequence[str], runs: str, identity: str
) -> Section:
    figure = Canvas(
        *(f"{name}{_HINTS.get(name, '')}" for name in AGGREGATES), panel_height=rows_height(len(scored), 14)
    )
    table: dict[str, list[Estimate]] = {}
    for axes, (name, statistic) in zip(figure.panels, AGGREGATES.items(), strict=True):
        table[name] = [statistics.estimate(statistic, one.normalised(games)) for one in scored]
        interval_rows(axes, [one.line for one in scored], table[name])
    figure.numbers_axis("human-normalised score")
    title = "Human-normalised scores"
    drawn = [one.line for one in scored]
    caption = (
        "(score − random) / (human − random) of the final models' greedy raw returns, over "
        f"{plural(len(games), 'game')} ({', '.join(scores.game(game) or game for game in games)}). Bars: 95 % "
        "stratified bootstrap intervals, runs drawn again within each game. The optimality gap is what the scores miss "
        f"of 1 on average, scores above 1 counting as 1. {runs}"
    )
    caption += f" Without {', '.join(incomplete)}: no score in some of these games." if incomplete else ""
    note = f"With 95 % stratified bootstrap intervals. Lower is better in the optimality gap alone. {runs}"
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
                    **{name: as_numbers(table[name][i]) for name in AGGREGATES},
                }
                for i, one in enumerate(scored)
            ],
        },
        Table(head, rows, note),
    )


_HINTS: Final = {
    "IQM": ", the interquartile mean",
    "median": " of the games' means",
    "optimality gap": ", less is better",
}


def _profiles(scored: Sequence[Scored], games: Sequence[str], runs: str, identity: str) -> Section:
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
        figure.panels[0].plot(
            thresholds, 100 * value, color=paint, linestyle=dash(one.line.index), linewidth=2, drawstyle="steps-mid"
        )
        numbers.append(
            {"label": one.line.label, "share": value.tolist(), "low": low.tolist(), "high": high.tolist()}
        )  # fmt: skip
    figure.panels[0].set_ylim(-4, 104)
    figure.numbers_axis("human-normalised score")
    title = "Performance profiles"
    drawn = [one.line for one in scored]
    caption = (
        f"Share of runs whose final model's greedy human-normalised score is above x, mean over "
        f"{plural(len(games), 'game')}; band: pointwise 95 % stratified bootstrap interval. {runs}"
    )
    return Section(
        "scores-profiles",
        Plot(title, figure.svg(title, identity), caption, legend(drawn)),
        {"games": list(games), "thresholds": thresholds.tolist(), "lines": numbers},
    )


def _improvement(scored: Sequence[Scored], games: Sequence[str], runs: str, identity: str) -> Section:
    first, others = scored[0], scored[1:]
    ours = first.normalised(games)
    estimates = [statistics.improvement(ours, other.normalised(games)) for other in others]
    figure = Canvas(
        "probability that a run of the first scores higher than one of the other", panel_height=rows_height(len(others))
    )
    interval_rows(figure.panels[0], [one.line for one in others], estimates)
    figure.panels[0].axvline(0.5, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
    figure.panels[0].set_xlim(-0.02, 1.02)
    figure.numbers_axis("probability of improvement")
    title = f"Does {first.line.label} score higher?"
    drawn = [one.line for one in others]
    caption = (
        f"Probability that a run of {first.line.label} has a higher final greedy score than a run of the other on the "
        f"same game, a tie counting half; mean over {plural(len(games), 'game')}. Bars: 95 % stratified bootstrap "
        f"intervals. Dotted: no difference. {runs}"
    )
    rows = tuple(
        (f"{first.line.label} over {one.line.label}", f"{value.value:.2f}", formats.interval(value.low, value.high, 2))
        for one, value in zip(others, estimates, strict=True)
    )
    return Section(
        "scores-improvement",
        Plot(title, figure.svg(title, identity), caption, legend(drawn)),
        {
            "games": list(games),
            "first": first.line.label,
            "over": {one.line.label: as_numbers(value) for one, value in zip(others, estimates, strict=True)},
        },
        Table(("Probability of improvement", "P", "95 % interval"), rows, runs),
    )


def _brackets(estimate: Estimate) -> str:
    return "" if math.isnan(estimate.low) else f" ({formats.interval(estimate.low, estimate.high, 2)})"
