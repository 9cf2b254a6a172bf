"""Scores of final models: per environment in raw returns, over the games with yardsticks human-normalised.

As Agarwal et al. 2021 (arXiv 2108.13264) ask for a handful of runs: interquartile means with stratified bootstrap
intervals, performance profiles and the probability of improvement, rather than the best seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gala.report import formats, normalised, statistics
from gala.report.canvas import MUTED, Canvas
from gala.report.experiment import Entry, Experiment
from gala.report.facts import final_evaluation
from gala.report.lines import left_out_note, legend, lines, seeds_note
from gala.report.plots import Plot
from gala.report.read import integer
from gala.report.scored import MODES, NO_SCORE, Scored, as_numbers, interval_rows, rows_height, scored_line
from gala.report.section import Section, Table, slug


def sections(experiment: Experiment, identity: str) -> Iterator[Section]:
    """One plot per environment; and over the games that have yardsticks, the aggregates, profiles and comparisons."""
    for i, environment in enumerate(experiment.environments):
        everything = lines(experiment, experiment.of(environment))
        scored = [one for line in everything if (one := scored_line(line)).of(environment).size]
        if scored:
            left_out = left_out_note(everything, [one.line for one in scored], NO_SCORE)
            yield _raw(experiment, environment, scored, left_out, f"{identity}-{i}")
    yield from normalised.sections(experiment, f"{identity}-normalised")


def _raw(experiment: Experiment, environment: str, scored: Sequence[Scored], left_out: str, identity: str) -> Section:
    figure = Canvas("mean raw return of the final model, greedy", panel_height=rows_height(len(scored)))
    estimates = [statistics.estimate(statistics.iqm, [one.of(environment)]) for one in scored]
    interval_rows(figure.panels[0], [one.line for one in scored], estimates, [one.of(environment) for one in scored])
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
    caption += f" {left_out}" if left_out else ""
    caption += f" Dotted: {formats.threshold(threshold.value)}, the convergence threshold." if threshold else ""
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
                            "iqm": as_numbers(statistics.estimate(statistics.iqm, [one.of(environment, mode)])),
                        }
                        for mode in MODES
                        if one.of(environment, mode).size
                    },
                }
                for one in scored
            ],
        },
        _raw_table(environment, scored, left_out),
    )


def _raw_table(environment: str, scored: Sequence[Scored], left_out: str) -> Table:
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
            row += [
                formats.score(iqm.value),
                formats.interval(iqm.low, iqm.high),
                formats.score(values.mean()),
                formats.score(values.max()),
            ]
        rows.append(tuple(row))
    note = f"Raw returns of the final models. IQM: interquartile mean over runs. {left_out}".strip()
    return Table(tuple(head), tuple(rows), note)


def _episodes(entries: Sequence[Entry]) -> str:
    counts = {
        count
        for entry in entries
        if entry.run is not None and (count := integer(final_evaluation(entry.run).get("greedy", {}), "episodes"))
    }
    return f" over {counts.pop()} episodes" if len(counts) == 1 else ""
