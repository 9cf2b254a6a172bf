"""The page about an experiment: what it is and how far, its figures, its tables, its runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gala.report import formats, markup
from gala.report.convergence import result
from gala.report.experiment import Entry, Experiment
from gala.report.markup import escape, note
from gala.report.plots import plural
from gala.report.read import number
from gala.report.section import Section, Table

MAX_RUNS = 500
"""Rows of the list of runs."""


def body(experiment: Experiment, sections: Sequence[Section]) -> str:
    """Everything between the page's head and its glossary."""
    drawn = "".join(markup.figure(section.plot) for section in sections)
    drawn = drawn or '<p class="empty">Nothing can be drawn yet. The first points appear when runs have ended.</p>'
    tables = "".join(
        f"<section><h3>{escape(section.plot.title)}</h3>{_table(section.table)}</section>"
        for section in sections
        if section.table is not None
    )
    return f'{_header(experiment)}<section class="plots">{drawn}</section>{tables}{_runs(experiment)}'


def _header(experiment: Experiment) -> str:
    states = Counter(entry.state or "unknown" for entry in experiment.entries)
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    what = [
        plural(len(experiment.entries), "run"),
        f"{plural(len(experiment.algorithms), 'algorithm')}: {', '.join(experiment.algorithms[:8])}",
        ", ".join(experiment.environments[:8]),
    ]
    scale = {"full": "", "small": "small-scale version", "toy": "toy size: a test of the machinery, not a result"}
    what += [text] if (text := scale.get(experiment.scale, f"scale {experiment.scale}")) else []
    description = f'<p class="when">{escape(experiment.description)}</p>' if experiment.description else ""
    done = sum(entry.has_ended for entry in experiment.entries)
    share = done / len(experiment.entries) if experiment.entries else 0.0
    label = f"{done} of {plural(len(experiment.entries), 'run')} have ended"
    return (
        f'<header><p class="kicker">GALA experiment</p><h1>{escape(experiment.name)}</h1>'
        f'<p class="what">{escape(" · ".join(part for part in what if part))}</p>{description}'
        f'<p class="when">{escape(counts)}</p>'
        f'<div class="progress" role="img" aria-label="{escape(label)}"><span style="width:{100 * share:.1f}%"></span>'
        "</div></header>"
    )


def _runs(experiment: Experiment) -> str:
    head = (
        "Run", "State", "Algorithm", "Environment", "Learners", "Simulators", "Seed", "Decisions", "Wall-clock",
        "Training return", "Greedy",
    )  # fmt: skip
    rows = [_row(entry) for entry in experiment.entries[:MAX_RUNS]]
    more = len(experiment.entries) - MAX_RUNS
    hint = "Greedy: mean raw return of the final model's evaluation. Each run's own report is in its folder."
    hint += f" {more} more runs are left out." if more > 0 else ""
    return markup.folded(f"Runs ({len(experiment.entries)})", markup.table(head, rows) + note(hint))


def _row(entry: Entry) -> tuple[str, ...]:
    run = entry.run
    wall = (
        max((w for one in run.learners if (w := number(one.last, "wallSeconds")) >= 0), default=None) if run else None
    )
    return (
        entry.name,
        entry.state or "unknown",
        entry.algorithm,
        entry.environment,
        str(entry.learners),
        str(entry.total_simulators),
        str(entry.seed),
        f"{formats.compact(run.global_steps if run else 0)} of {formats.compact(entry.total_steps)}",
        formats.duration(wall),
        formats.score(result(entry, "training")),
        formats.score(result(entry, "greedy")),
    )


def _table(table: Table) -> str:
    return markup.table(table.head, table.rows) + (note(table.note) if table.note else "")
