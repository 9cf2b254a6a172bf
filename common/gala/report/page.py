"""The page: header, plots, tables. The last step of a report; strings that come from a run are escaped in `markup`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from importlib import resources

from gala.report import compare, experiment_page, formats, plots, tables, timeline
from gala.report.ball import Ball, ball
from gala.report.canvas import style, swatch_class
from gala.report.experiment import Experiment
from gala.report.facts import RunFacts, Score, frames_per_decision, run_facts
from gala.report.markup import chip, escape, figure, swatch, tile
from gala.report.plots import Plot
from gala.report.read import Run, integer, number, text
from gala.report.section import Section

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing may be loaded from anywhere: the browser enforces what the tests check."""

SMOOTHED = "Raw return, mean of each learner's last 100 training episodes (actions sampled, no reward clipping)"

CLOCK = "against the time since the first record, without stops of the whole run"


def render(runs: Sequence[Run]) -> str:
    """The whole page."""
    facts = [run_facts(run) for run in runs]
    labels = run_labels(runs)
    with style():
        if len(runs) == 1:
            title = labels[0]
            body = _header(runs[0], facts[0], labels[0]) + _body(runs[0], facts[0], "run0")
        else:
            title = f"{len(runs)} runs"
            body = _comparison(runs, facts, labels)
            for i, (run, fact, label) in enumerate(zip(runs, facts, labels, strict=True)):
                summary = f"<summary>{swatch(swatch_class(i))}{escape(label)}</summary>"
                body += f'<details class="run">{summary}{_header(run, fact)}{_body(run, fact, f"run{i}")}</details>'
    return document(title, body)


def render_experiment(experiment: Experiment, sections: Sequence[Section]) -> str:
    """The whole page about an experiment."""
    return document(experiment.name, experiment_page.body(experiment, sections))


def document(title: str, body: str) -> str:
    """A self-contained page around `body`, which is markup."""
    css = resources.files("gala.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)} · GALA report</title>\n<style>\n{css}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n{_GLOSSARY}\n</main>\n</body>\n</html>\n"
    )


def run_labels(runs: Sequence[Run]) -> list[str]:
    """The runs' names; where several are the same, with their folders."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else f"{run.name} ({run.directory})" for run in runs]


def _header(run: Run, facts: RunFacts, title: str = "") -> str:
    """What ran and where it stands; with `title` as the page's heading."""
    what = [
        run.algorithm,
        run.environment or "unknown environment",
        plots.plural(run.num_learners, "learner"),
    ]
    if run.gossips:
        what.append(text(run.spec, "topology", "type") or "Ring")
    elif run.centre is not None:
        what[-1] = f"{run.centre} and {plots.plural(run.num_learners - 1, run.role(1))}"
    preset = text(run.spec, "environment", "preset")
    if preset and frames_per_decision(run):
        what.append(f"{preset} preset")
    when = []
    if not math.isnan(number(run.state, "startTime")):
        when.append(f"started {formats.moment(number(run.state, 'startTime'))}")
    if not math.isnan(facts.updated):
        when.append(f"last record {formats.moment(facts.updated)}")
    heading = f'<p class="kicker">GALA report</p><h1>{escape(title)}</h1>' if title else ""
    return (
        f'<header>{heading}<p class="what">{escape(" · ".join(what))}</p>'
        f'<p class="when">{chip(facts.state)}{escape(", ".join(when))}</p>{_progress(facts)}</header>'
        f'<dl class="tiles">{"".join(_tiles(run, facts))}</dl>'
    )


def _progress(facts: RunFacts) -> str:
    if not facts.total_steps:
        return ""
    share = min(facts.global_steps / facts.total_steps, 1.0)
    label = f"{formats.percent(share)} of {formats.compact(facts.total_steps)} decisions"
    bar = f'<span style="width:{100 * share:.1f}%"></span>'
    return f'<div class="progress" role="img" aria-label="{escape(label)}">{bar}</div>'


def _tiles(run: Run, facts: RunFacts) -> Iterator[str]:
    for score in facts.scores.values():
        name = f"{'Final' if score.final else 'Latest'} score, {score.mode}"
        yield tile(name, formats.score(score.mean), _about(score))
    if not facts.scores:
        yield tile("Training return", formats.score(facts.mean_return), "last 100 episodes, mean of those that act")
    frames = frames_per_decision(run)
    detail = [f"of {formats.compact(facts.total_steps)}"] if facts.total_steps else []
    detail += [f"{formats.compact(facts.global_steps * frames)} frames"] if frames else []
    yield tile("Decisions", formats.compact(facts.global_steps), " · ".join(detail))
    yield tile("Decisions per second", formats.count(facts.steps_per_second), "all learners, whole run")
    yield tile("Wall-clock", formats.duration(facts.wall_seconds), "of training")
    reporting = sum(learner.rank in run.ranks and learner.state != "no data yet" for learner in facts.learners)
    former = sum(learner.rank not in run.ranks for learner in facts.learners)
    detail = [plots.plural(sum(learner.restarts for learner in facts.learners), "restart")]
    detail += [f"{former} more before"] if former else []
    yield tile("Learners reporting", f"{reporting} of {run.num_learners}", " · ".join(detail))


def _about(score: Score) -> str:
    parts = [f"± {formats.score(score.deviation)}"] if not math.isnan(score.deviation) else []
    parts += [f"{score.episodes} episodes"] if score.episodes else []
    if not math.isnan(score.human_normalised):
        parts.append(f"{formats.percent(score.human_normalised)} of human")
    if not score.final and score.global_steps is not None:
        parts.append(f"at {formats.compact(score.global_steps)}")
    return " · ".join(parts)


def _body(run: Run, facts: RunFacts, identity: str) -> str:
    bound = ball(run) if run.gossips else None
    drawn = "".join(figure(plot) for plot in _plots(run, identity, bound) if plot)
    drawn = drawn or _empty("Nothing is recorded yet. The first lines appear seconds after a learner has started.")
    rows = tables.learners(run, facts.learners) + tables.ball_note(facts, bound) if facts.learners else ""
    rows = f"<section><h3>Learners</h3>{rows}</section>" if rows else ""
    return (
        f'<section class="plots">{drawn}</section>{rows}'
        f"{tables.edges(run)}{tables.events(run)}{tables.spec(run)}{tables.origin(run)}"
    )


def _plots(run: Run, identity: str, bound: Ball | None) -> Iterator[Plot | None]:
    ids = (f"{identity}-{i}" for i in itertools.count())
    smooth_lines = plots.lines_note(run, plots.RETURN.path, noisy=False)
    frames = plots.frames_note(run)
    seed = integer(run.spec, "seed")
    one_run = "One run." if seed is None else f"One run, seed {seed}."
    yield plots.learners(
        run,
        "Return against decisions",
        [plots.RETURN],
        "globalSteps",
        f"{SMOOTHED}. {smooth_lines} {one_run} {frames}",
        next(ids),
    )
    yield plots.learners(
        run, "Return against wall-clock", [plots.RETURN], "wallSeconds",
        f"{SMOOTHED}, {CLOCK}. {smooth_lines} {one_run}", next(ids),
    )  # fmt: skip
    yield plots.evaluations(run, next(ids))
    yield plots.throughput(run, next(ids))
    if run.num_learners > 1:
        if run.gossips:
            yield plots.disagreement(run, bound, next(ids))
        yield plots.topology(run, next(ids))
        yield plots.staleness(run, next(ids))
    yield plots.learners(
        run, "Losses", [plots.POLICY_LOSS, plots.VALUE_LOSS], "globalSteps",
        "Of the update before each record, over its decisions. "
        f"{plots.lines_note(run, plots.POLICY_LOSS.path)} {frames}", next(ids),
    )  # fmt: skip
    yield plots.learners(
        run, "Entropy and gradients", [plots.ENTROPY, plots.GRADIENT_NORM], "globalSteps",
        "Entropy 0 is a policy that has made up its mind. The gradient's norm is that before clipping. "
        f"{plots.lines_note(run, plots.ENTROPY.path)} {frames}", next(ids),
    )  # fmt: skip
    yield timeline.timeline(run, next(ids))


def _comparison(runs: Sequence[Run], facts: Sequence[RunFacts], labels: Sequence[str]) -> str:
    environments = sorted({run.environment for run in runs if run.environment})
    what = " · ".join(environments[:4]) + (" · …" if len(environments) > 4 else "")
    head = f'<header><p class="kicker">GALA report</p><h1>{len(runs)} runs side by side</h1>'
    head += f'<p class="what">{escape(what)}</p></header>'
    if len(environments) > 1:
        head += '<p class="warning">These runs are of different environments: their returns cannot be compared.</p>'
    table = f"<section>{tables.comparison(runs, facts, labels)}{tables.seeds(runs)}</section>"
    drawn = "".join(figure(plot) for plot in _comparison_plots(runs, labels) if plot)
    drawn = drawn or _empty("None of these runs has recorded anything yet.")
    return f'{head}{table}<section class="plots">{drawn}</section><h2>Each run</h2>'


def _comparison_plots(runs: Sequence[Run], labels: Sequence[str]) -> Iterator[Plot | None]:
    ids = (f"compare-{i}" for i in itertools.count())
    notes = {plots.frames_note(run) for run in runs}
    frames = notes.pop() if len(notes) == 1 else ""
    lines = "Lines: mean over a run's learners, averaged over eightieths of the run. One seed per run."
    bands = "Lines: mean over a run's learners; bands: from its lowest to its highest learner. One seed per run."
    yield compare.quantity(
        runs,
        labels,
        "Return against decisions",
        plots.RETURN,
        "globalSteps",
        f"{SMOOTHED}. {bands} {frames}",
        next(ids),
    )
    yield compare.quantity(
        runs, labels, "Return against wall-clock", plots.RETURN, "wallSeconds",
        f"{SMOOTHED}, {CLOCK}. {bands}", next(ids),
    )  # fmt: skip
    yield compare.evaluations(runs, labels, "greedy", next(ids))
    yield compare.evaluations(runs, labels, "sampled", next(ids))
    yield compare.throughput(runs, labels, next(ids))
    yield compare.quantity(
        runs, labels, "Relative disagreement", plots.RELATIVE_DISAGREEMENT, "globalSteps",
        "Distance of a learner's parameters from the mean of its neighbours' messages, over their norm, at the moment "
        f"of mixing. {lines} {frames}", next(ids),
    )  # fmt: skip
    yield compare.quantity(
        runs, labels, "Staleness", plots.STALENESS_UPDATES, "globalSteps",
        "How many updates old what came from others was when it was used: with gossip the neighbours' parameters, of "
        f"A3C the gradients, of IMPALA the rollouts. {lines} {frames}", next(ids),
    )  # fmt: skip
    yield compare.quantity(
        runs, labels, "Entropy", plots.ENTROPY, "globalSteps",
        f"0 is a policy that has made up its mind. {lines} {frames}", next(ids),
    )  # fmt: skip


def _empty(message: str) -> str:
    return f'<p class="empty">{escape(message)}</p>'


_GLOSSARY = """<footer><h2>Reading this page</h2><dl>
<dt>Decision</dt><dd>one action of the agent in one simulator, counted over all learners together; an Atari emulator
runs several frames, usually 4, for each.</dd>
<dt>Update</dt><dd>one gradient step of one learner.</dd>
<dt>Mixing</dt><dd>a learner replaces its parameters x by the mean of x and its neighbours' latest messages.</dd>
<dt>Disagreement</dt><dd>‖x − m‖: how far a learner is from the mean m of its neighbours' messages when it mixes.</dd>
<dt>ε-ball</dt><dd>the ball around the learners' common mean which synchronous gossip cannot leave; the better the
topology mixes and the smaller the updates, the smaller the ball.</dd>
<dt>Of human</dt><dd>(score − random) / (human − random), for the Atari games that have published scores.</dd>
</dl></footer>"""
