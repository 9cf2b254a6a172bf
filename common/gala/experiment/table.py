"""What the user sees of an experiment: a live table, or plain lines, and the matrix as a list. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gala.experiment.index import Index, RunEntry
from gala.experiment.progress import Group, eta_seconds, groups, made, summed
from gala.local.table import duration

MAX_RUNNING: Final = 5
"""Runs under way that have a line of their own."""


def live_view(index: Index, *, at_once: int, note: str = "", max_rows: int = 1024) -> RenderableType:
    """Done, running, left, failed for each combination of levels; what runs; the whole. At most `max_rows` lines."""
    table = Table(
        title=f"{index.name}: {len(index.runs)} runs",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 1, 0, 0),
        header_style="dim",
    )
    for factor in _factors(index):
        table.add_column(factor)
    for heading in ("done", "running", "left", "failed", "decisions"):
        table.add_column(heading, justify="right")
    rows = groups(index)
    running = [entry for entry in index.runs if entry.state == "running"]
    room = max(3, max_rows - min(len(running), MAX_RUNNING))
    hidden = len(rows) - (room - 1) if len(rows) > room else 0
    for group in rows[: len(rows) - hidden]:
        table.add_row(*(str(level) for level in group.levels), *_counts(group))
    lines = [Text(f"... and {hidden} more rows", style="dim")] if hidden else []
    lines += [Text(f"{entry.name}: {_progress(entry)}", style="green") for entry in running[:MAX_RUNNING]]
    if len(running) > MAX_RUNNING:
        lines.append(Text(f"... and {len(running) - MAX_RUNNING} more under way", style="green"))
    whole = summed(index.runs)
    progress = Table.grid(padding=(0, 2, 0, 0))
    progress.add_row(
        ProgressBar(total=1.0, completed=whole.share, width=24, complete_style="green"),
        Text(f"{whole.share:.1%}", style="bold"),
        Text(f"{whole.finished} of {whole.size} runs done"),
        Text(f"ETA {duration(eta_seconds(index.runs, at_once))}"),
    )
    hint = Text(note, "yellow") if note else Text("Ctrl-C stops, the same again goes on", "dim")
    return Stack(table, *lines, progress, hint)


def plain_line(index: Index, *, at_once: int) -> str:
    """The same in one line, for logs and pipes."""
    whole = summed(index.runs)
    running = [entry for entry in index.runs if entry.state == "running"]
    shown = ", ".join(f"{entry.name} {_share(entry):.0%}" for entry in running[:MAX_RUNNING])
    shown += ", ..." if len(running) > MAX_RUNNING else ""
    return (
        f"{whole.finished} of {whole.size} runs done ({whole.share:.1%} of the decisions), "
        f"{whole.running} running{f' ({shown})' if shown else ''}, {whole.left} left, {whole.failed} failed, "
        f"ETA {duration(eta_seconds(index.runs, at_once))}"
    )


def listing(index: Index) -> str:
    """The matrix, one line a run."""
    rows: list[tuple[str, ...]] = [("RUN", *(factor.upper() for factor in index.factors), "STATE", "DECISIONS", "OF")]
    rows += [
        (
            entry.name,
            *(str(entry.factors[factor]) for factor in index.factors),
            entry.state,
            f"{made(entry):,}",
            f"{entry.total_steps:,}",
        )
        for entry in index.runs
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    whole = summed(index.runs)
    total = sum(entry.total_steps for entry in index.runs)
    lines.append(
        f"{whole.size} runs, {total:,} decisions in all: {whole.finished} done, {whole.running} running, "
        f"{whole.left} left, {whole.failed} failed; figures: {', '.join(index.figures)}"
    )
    return "\n".join(lines) + "\n"


def _factors(index: Index) -> list[str]:
    return [factor for factor in index.factors if factor != "seed"]


def _counts(group: Group) -> Sequence[RenderableType]:
    return (
        Text(str(group.finished), style="bold green" if group.finished == group.size else ""),
        Text(str(group.running), style="green" if group.running else "dim"),
        Text(str(group.left), style="" if group.left else "dim"),
        Text(str(group.failed), style="bold red" if group.failed else "dim"),
        f"{group.share:.0%}",
    )


def _progress(entry: RunEntry) -> str:
    return f"{made(entry):,} of {entry.total_steps:,} decisions ({_share(entry):.1%}) in {duration(entry.wall_seconds)}"


def _share(entry: RunEntry) -> float:
    return made(entry) / max(1, entry.total_steps)
