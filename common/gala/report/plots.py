"""The plots of one run: each is a `Plot`, or None if there is nothing to draw yet. `compare` has those of several.

Only static text and numbers are drawn; names, which users choose, stay in the HTML where they are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from gala.algorithms import A3C, IMPALA
from gala.report import formats, ring
from gala.report.ball import Ball
from gala.report.canvas import BAD, INK, MUTED, SERIES, Canvas, colour
from gala.report.facts import evaluation_records, frames_per_decision
from gala.report.read import Record, Run, integer, number, numbers, text
from gala.report.series import EMPTY, Array, Curve, Spread, averaged, curve, downsample, spread

MAX_THIN_LINES = 32
"""With more learners, every k-th one is drawn thin; mean and band are always over all of them."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawn figure and the words around it. `svg` is markup, the rest is plain text."""

    title: str
    svg: str
    caption: str
    legend: tuple[tuple[str, str], ...] = ()
    """(CSS class of the swatch, label)."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something that learners measure in their train records."""

    path: tuple[str, ...]
    axis: str
    """What y is and in which unit."""
    log: bool = False
    noisy: bool = True
    """One update's value, not a mean over many: its lines are averaged to be seen, its band keeps the extremes."""


RETURN = Quantity(("meanReturn",), "return, mean of the last 100 training episodes", noisy=False)
THROUGHPUT = Quantity(("stepsPerSecond",), "agent decisions per second")
DISAGREEMENT = Quantity(("gossip", "disagreement"), "‖x − m‖, logarithmic", log=True)
RELATIVE_DISAGREEMENT = Quantity(("gossip", "relativeDisagreement"), "‖x − m‖ / ‖x‖, logarithmic", log=True)
STALENESS_UPDATES = Quantity(("gossip", "stalenessUpdates"), "staleness, updates")
STALENESS_MAX = Quantity(("gossip", "stalenessMaxUpdates"), "largest, updates")
STALENESS_SECONDS = Quantity(("gossip", "stalenessSeconds"), "staleness, seconds")
POLICY_LOSS = Quantity(("policyLoss",), "policy loss")
VALUE_LOSS = Quantity(("valueLoss",), "value loss")
ENTROPY = Quantity(("entropy",), "policy entropy, nats")
GRADIENT_NORM = Quantity(("gradientNorm",), "gradient norm")


def learners(run: Run, title: str, quantities: Sequence[Quantity], x: str, caption: str, identity: str) -> Plot | None:
    """Each learner thin, their mean thick, the band from the lowest to the highest; a panel per quantity."""
    drawn = [[curve(learner, x, *quantity.path) for learner in run.learners] for quantity in quantities]
    if not any(one for curves in drawn for one in curves):
        return None
    figure = Canvas(*(quantity.axis for quantity in quantities), panel_height=190 if len(quantities) == 1 else 105)
    for axes, quantity, curves in zip(figure.panels, quantities, drawn, strict=True):
        thin_lines(axes, quantity, curves)
        _mean_of_learners(axes, quantity, curves)
        if quantity.log:
            log_axis(axes, curves)
    x_axis(figure, x, [one for curves in drawn for one in curves])
    reporting = {i for curves in drawn for i, one in enumerate(curves) if one}
    return Plot(title, figure.svg(title, identity), caption, learners_legend(run, reporting=reporting))


def throughput(run: Run, identity: str) -> Plot | None:
    """Decisions per second of each learner and of all together over wall-clock."""
    curves = [
        EMPTY if run.centre is not None and learner.rank == 0 else curve(learner, "wallSeconds", *THROUGHPUT.path)
        for learner in run.learners
    ]
    together = spread(curves)
    if together is None:
        return None
    reporting = {i for i, one in enumerate(curves) if one}
    figure = Canvas(THROUGHPUT.axis)
    thin_lines(figure.panels[0], THROUGHPUT, curves)
    if len(reporting) > 1:
        figure.panels[0].plot(together.x, together.total, color=INK, linewidth=2)
    figure.panels[0].set_ylim(bottom=0)
    x_axis(figure, "wallSeconds", curves)
    caption = f"Agent decisions per second of one learner. {frames_note(run)}"
    if len(reporting) > 1:
        caption = (
            f"Agent decisions per second: thin, each of {len(reporting)} learners, averaged over eightieths of the "
            f"axis; thick, the sum over those that were running. {frames_note(run)}"
        )
    return Plot(
        "Throughput", figure.svg("Throughput", identity), caption, learners_legend(run, "all together", reporting)
    )


def disagreement(run: Run, bound: Ball | None, identity: str) -> Plot | None:
    """Each learner's distance from what its neighbours sent, against the epsilon-ball bound."""
    curves = [_positive(curve(learner, "wallSeconds", *DISAGREEMENT.path)) for learner in run.learners]
    if not any(curves):
        return None
    figure = Canvas(DISAGREEMENT.axis)
    axes = figure.panels[0]
    thin_lines(axes, DISAGREEMENT, curves)
    _mean_of_learners(axes, DISAGREEMENT, curves)
    legend = learners_legend(run)
    caption = (
        "Euclidean distance between a learner's parameters x and the mean m of its neighbours' messages, at the "
        f"moment of mixing. {lines_note(run)}"
    )
    limit = _positive(bound.bound) if bound else None
    if bound and limit:
        drawn = downsample(limit)
        axes.plot(drawn.x, drawn.y, color=BAD, linewidth=1.6, linestyle=(0, (5, 3)))
        legend = (*legend, ("bound", "ε-ball bound"))
        caption += f" {_bound_note(bound)}"
    log_axis(axes, [*curves, limit] if limit else curves)
    x_axis(figure, "wallSeconds", curves)
    return Plot("Disagreement and the ε-ball", figure.svg("Disagreement", identity), caption, legend)


def _bound_note(bound: Ball) -> str:
    rounds = "" if bound.period == 1 else f" a round, over the topology's period of {bound.period} rounds"
    factor = "1/(1 − β)" if bound.period == 1 else f"{bound.period}/(1 − β^{bound.period})"
    every = "" if bound.every_updates == 1 else f" times the {bound.every_updates} updates between mixings"
    return (
        f"Dashed: the bound √(2n)·u·{factor} with n = {bound.num_learners}, β = {bound.beta:.3f}{rounds}, and u the "
        f"largest norm of a local update that any learner logged in the last two minutes{every}. It assumes "
        "synchronous mixing over the whole, doubly stochastic topology, and that no update between two log lines was "
        "larger. Asynchrony, skipped mixings and lost neighbours are outside this assumption and may exceed the bound."
    )


def staleness(run: Run, identity: str) -> Plot | None:
    """How old what came from others was when it was used; None where that is always the present."""
    title, what = _STALENESS.get(
        run.algorithm,
        (
            "Staleness",
            "How old the neighbours' parameters were when they were mixed in: the learner's own updates since they "
            "arrived; below, seconds since they were sent off.",
        ),
    )
    quantities = [STALENESS_UPDATES, STALENESS_SECONDS]
    curves = [curve(learner, "wallSeconds", *STALENESS_UPDATES.path) for learner in run.learners]
    if not run.gossips and not any((one.y[np.isfinite(one.y)] > 0).any() for one in curves):
        return None
    if run.algorithm == IMPALA:
        quantities.insert(1, STALENESS_MAX)
    caption = f"{what} {lines_note(run, STALENESS_UPDATES.path)}"
    return learners(run, title, quantities, "wallSeconds", caption, identity)


_STALENESS = {
    A3C: (
        "Staleness of gradients",
        "Updates that the server had made between handing out the parameters that a gradient was made with and "
        "applying it, mean over the gradients since the last record; below, seconds that they waited at the server.",
    ),
    IMPALA: (
        "Policy lag",
        "Updates that the learner had made between the parameters that a rollout was acted with and learning from it, "
        "mean and largest over its last contributions; below, the seconds that they waited at the learner.",
    ),
}


def evaluations(run: Run, identity: str) -> Plot | None:
    """Evaluation scores over decisions: every episode a dot, their mean a line; greedy and sampled."""
    records = evaluation_records(run)
    if not any(records.values()):
        return None
    figure = Canvas("raw return of an evaluation episode")
    axes = figure.panels[0]
    legend: list[tuple[str, str]] = []
    for mode, series, marker in (("greedy", 0, "o"), ("sampled", 1, "s")):
        found = records[mode]
        if not found:
            continue
        legend.append((f"series-{series}", f"{mode}, mean"))
        for record in found:
            _episode_dots(axes, record, colour(series))
        means = evaluation_curve(found)
        axes.plot(means.x, means.y, color=colour(series), linewidth=2, marker=marker, markersize=4.5)
    # Not from the first evaluation on, and not a sliver around a single one.
    furthest = max(float(evaluation_curve(found).x.max()) for found in records.values() if found)
    furthest = max(float(run.global_steps), furthest, 1.0)
    axes.set_xlim(-0.01 * furthest, 1.03 * furthest)
    figure.decisions_axis()
    counts = {count for found in records.values() for record in found if (count := integer(record, "episodes"))}
    episodes = " to ".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else "some"
    caption = (
        f"Whole games in simulators of their own, scores without reward clipping, {episodes} episodes each; faint: "
        "single episodes. Greedy takes the most likely action, sampled draws it from the policy. An evaluation plays "
        "one learner's parameters; the final model's, the last of a finished run, the average of all. "
        f"{frames_note(run)}"
    )
    return Plot("Evaluation", figure.svg("Evaluation scores", identity), caption, tuple(legend))


def topology(run: Run, identity: str) -> Plot | None:
    """The learners and their edges as last reported."""
    drawing = ring.draw(run, identity)
    if drawing is None or (not run.gossips and not any(edge.sender_state for edge in ring.edges(run))):
        return None
    states = {edge.look for edge in ring.edges(run)}
    names = {"live": "live", "healed": "live, around a gap", "done": "ended", "gone": "gone", "unknown": "not opened"}
    legend = tuple((f"edge-{state}", name) for state, name in names.items() if state in states)
    carried = (
        "beside it, where there is room, the messages and bytes that it has carried since its sender last started. A "
        "dashed circle is a learner that has been silent for more than a minute while others were not."
    )
    if not run.gossips:
        who = f"Rank 0, the {run.centre}, has no simulators. " if run.centre else "All ranks are equal. "
        caption = f"{run.algorithm} on {plural(run.num_learners, 'rank')} as they last reported it. {who}"
        caption += f"An arrow is a stream of parameters, gradients or rollouts; {carried}"
        return Plot("Connections", drawing, caption, legend)
    kind = text(run.spec, "topology", "type") or "Ring"
    caption = (
        f"{kind} of {run.num_learners} learners as they last reported it. An arrow is a stream of parameters; {carried}"
    )
    return Plot("The ring" if kind == "Ring" else "The topology", drawing, caption, legend)


def learners_legend(
    run: Run, centre: str = "mean", reporting: Collection[int] | None = None
) -> tuple[tuple[str, str], ...]:
    """Swatches for a run's learners, as `thin_lines` draws them.

    Args:
        reporting: indices of those that have a line; all by default.
    """
    if len(run.learners) > len(SERIES):
        return (("thin", "a learner"), ("thick", centre))
    each = tuple(
        (f"series-{i}", f"{_called(run, learner.rank)} {learner.rank}")
        for i, learner in enumerate(run.learners)
        if reporting is None or i in reporting
    )
    return (*each, ("thick", centre)) if len(each) > 1 else each


def _called(run: Run, rank: int) -> str:
    """Ranks are learners, but beside a learner that has no simulators there are actors."""
    return run.role(rank) if run.centre is not None and run.role(rank) in ("server", "actor") else "learner"


def lines_note(run: Run, *paths: Sequence[str], noisy: bool = True) -> str:
    """What the lines and the band are, in words.

    Args:
        paths: of what is drawn; learners that have recorded none of it do not count.
    """
    reporting = [one for one in run.learners if not paths or any(curve(one, "globalSteps", *path) for path in paths)]
    count = len(reporting)
    averaged_over = "Long lines are averaged over eightieths of the axis"
    if count <= 1:
        return f"One learner. {averaged_over}." if noisy else "One learner."
    some = f" ({math.ceil(count / _every(count))} of them drawn)" if _every(count) > 1 else ""
    note = f"Thin: each of {count} learners{some}; thick: their mean; band: from the lowest to the highest."
    return f"{note} {averaged_over}; the band keeps the extremes." if noisy else note


def frames_note(run: Run) -> str:
    """The unit of a decision in frames, as a sentence; "" where there are none."""
    skip = frames_per_decision(run)
    return f"1 decision = {skip} frames." if skip else ""


def plural(count: int, word: str) -> str:
    """1 learner, 2 learners."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def thin_lines(axes: Axes, quantity: Quantity, curves: Sequence[Curve]) -> None:
    """A line for each learner, each in its own colour if there are few."""
    many, alone = len(curves) > len(SERIES), len(curves) == 1
    for i in range(0, len(curves), _every(len(curves))):
        drawn = averaged(curves[i]) if quantity.noisy else downsample(curves[i])
        look: dict[str, Any] = {"linewidth": 1.8} if alone else {"linewidth": 1.0, "alpha": 0.4 if many else 0.85}
        axes.plot(drawn.x, drawn.y, color=MUTED if many else colour(i), **look)


def _every(count: int) -> int:
    return math.ceil(count / MAX_THIN_LINES) or 1


def band(axes: Axes, together: Spread, paint: str) -> None:
    """The area from the lowest to the highest."""
    axes.fill_between(together.x, together.low, together.high, color=paint, alpha=0.12, linewidth=0)


def mean_line(axes: Axes, together: Spread, quantity: Quantity, paint: str, dash: str = "-") -> None:
    """The mean as a thick line."""
    mean = averaged(together.curve) if quantity.noisy else together.curve
    axes.plot(mean.x, mean.y, color=paint, linewidth=2.2, linestyle=dash)


def _mean_of_learners(axes: Axes, quantity: Quantity, curves: Sequence[Curve]) -> None:
    together = spread(curves)
    if together and sum(map(bool, curves)) > 1:
        band(axes, together, INK)
        mean_line(axes, together, quantity, INK)


def log_axis(axes: Axes, curves: Sequence[Curve]) -> None:
    """A logarithmic y axis with room around the curves; decades are labelled, and 2 and 5 if there are few."""
    values = np.concatenate([one.y[np.isfinite(one.y) & (one.y > 0)] for one in curves])
    if not values.size:
        return
    low, high = float(values.min()) / 1.4, float(values.max()) * 1.4
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [lead * 10.0**decade for decade in decades for lead in ((1, 2, 5) if len(decades) <= 4 else (1,))]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(ticks, [formats.compact(tick) for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())


def _positive(one: Curve) -> Curve:
    """Without what a logarithmic axis cannot show: between equal learners the disagreement is exactly 0."""
    return Curve(one.x, np.where(one.y > 0, one.y, np.nan))


def x_axis(figure: Canvas, x: str, curves: Sequence[Curve]) -> None:
    """The x axis of train records, "globalSteps" or "wallSeconds", from 0 to the end of the longest curve."""
    longest = max((float(one.x[-1]) for one in curves if one), default=1.0) or 1.0
    figure.panels[-1].set_xlim(-0.01 * longest, 1.01 * longest)
    if x == "wallSeconds":
        figure.wall_clock_axis(longest)
    else:
        figure.decisions_axis()


def evaluation_curve(records: Sequence[Record]) -> Curve:
    """Mean returns of evaluations over global steps."""
    x: Array = np.array([number(record, "globalSteps") for record in records])
    return Curve(x, np.array([number(record, "meanReturn") for record in records]))


def _episode_dots(axes: Axes, record: Record, paint: str) -> None:
    returns = numbers(record, "returns")
    steps = number(record, "globalSteps")
    look: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 3, "markeredgewidth": 0, "alpha": 0.3}
    axes.plot([steps] * len(returns), returns, color=paint, **look)
