"""Plots that lay several runs over each other: a colour for each run, its learners summed up."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gala.report.canvas import Canvas, colour, dash, swatch_class
from gala.report.facts import evaluation_records
from gala.report.plots import THROUGHPUT, Plot, Quantity, band, evaluation_curve, log_axis, mean_line, x_axis
from gala.report.read import Run, number
from gala.report.series import Curve, averaged, curve, spread


def quantity(
    runs: Sequence[Run], labels: Sequence[str], title: str, what: Quantity, x: str, caption: str, identity: str
) -> Plot | None:
    """Something that learners measure: each run's mean over its learners, and their band if it can be seen."""
    spreads = [spread([curve(learner, x, *what.path) for learner in run.learners]) for run in runs]
    if not any(spreads):
        return None
    figure = Canvas(what.axis)
    axes = figure.panels[0]
    for i, together in enumerate(spreads):
        if together:
            # The extremes of what is noisy would cover the other runs.
            if not what.noisy:
                band(axes, together, colour(i))
            mean_line(axes, together, what, colour(i), dash(i))
    means = [together.curve for together in spreads if together]
    if what.log:
        log_axis(axes, means)
    x_axis(figure, x, means)
    return Plot(title, figure.svg(title, identity), caption, _legend(labels))


def throughput(runs: Sequence[Run], labels: Sequence[str], identity: str) -> Plot | None:
    """The summed decisions per second over wall-clock."""
    spreads = [spread([curve(one, "wallSeconds", *THROUGHPUT.path) for one in run.learners]) for run in runs]
    totals = [Curve(together.x, together.total) if together else None for together in spreads]
    if not any(totals):
        return None
    figure = Canvas("agent decisions per second, all learners")
    for i, total in enumerate(totals):
        if total:
            drawn = averaged(total)
            figure.panels[0].plot(drawn.x, drawn.y, color=colour(i), linewidth=1.8, linestyle=dash(i))
    figure.panels[0].set_ylim(bottom=0)
    x_axis(figure, "wallSeconds", [total for total in totals if total])
    caption = "Agent decisions per second, summed over the learners of a run that were running."
    return Plot("Throughput", figure.svg("Throughput", identity), caption, _legend(labels))


def evaluations(runs: Sequence[Run], labels: Sequence[str], mode: str, identity: str) -> Plot | None:
    """The mean evaluation score over decisions, with one standard deviation over the episodes."""
    found = [evaluation_records(run)[mode] for run in runs]
    if not any(found):
        return None
    figure = Canvas("mean raw return of an evaluation")
    for i, records in enumerate(found):
        if records:
            means = evaluation_curve(records)
            deviations = [number(record, "stdReturn") for record in records]
            figure.panels[0].errorbar(
                means.x, means.y, yerr=[0.0 if math.isnan(d) else abs(d) for d in deviations], color=colour(i),
                linewidth=1.8, linestyle=dash(i), marker="o", markersize=4, elinewidth=0.8,
            )  # fmt: skip
    furthest = max(float(evaluation_curve(records).x.max()) for records in found if records) or 1.0
    figure.panels[0].set_xlim(-0.01 * furthest, 1.03 * furthest)
    figure.decisions_axis()
    action = "most likely action" if mode == "greedy" else "action drawn from the policy"
    caption = (
        f"Evaluations with the {action}, raw scores; bars: one standard deviation over an evaluation's episodes. "
        "One seed per run."
    )
    title = f"Evaluation, {mode}"
    return Plot(title, figure.svg(title, identity), caption, _legend(labels))


def _legend(labels: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((swatch_class(i), label) for i, label in enumerate(labels))
