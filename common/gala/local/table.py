"""What the user sees while a run goes on: a live table on a terminal, plain lines elsewhere. Pure rendering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gala import durations
from gala.algorithms import ALGORITHMS

STATE_STYLES = {
    "training": "green",
    "finished": "bold green",
    "waiting": "yellow",
    "starting": "yellow",
    "leaving": "yellow",
    "stopping": "yellow",
    "backing off": "red",
    "silent": "red",
    "given up": "bold red",
    "failed": "bold red",
}
ACTIVE_STATES = ("training", "waiting")


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerRow:
    """One learner's line. None = not known (yet)."""

    rank: int
    state: str
    """The worker's own word (starting, training, waiting, stopping, finished), or the supervisor's, or `silent`."""
    steps: int | None = None
    """Decisions of this learner."""
    steps_per_second: float | None = None
    mean_return: float | None = None
    """Of its last 100 episodes, raw score."""
    staleness: int | None = None
    """Its own updates between the arrival of what it mixed last and the mixing; A3C, IMPALA: mean age, in updates."""
    disagreement: float | None = None
    """||x - m|| / ||x|| at the last mixing."""
    restarts: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The run at one moment."""

    name: str
    environment: str
    topology: str
    learners: Sequence[LearnerRow]
    global_steps: int
    """Agent decisions of all learners together."""
    total_steps: int
    wall_seconds: float
    note: str = ""
    """What the launcher is doing, when it is not simply training."""
    hint: str = "Ctrl-C stops, the same again resumes"
    """Shown while there is no note."""

    @property
    def steps_per_second(self) -> float:
        """Decisions per second of all learners together."""
        return math.fsum(row.steps_per_second or 0.0 for row in self.learners)

    @property
    def mean_return(self) -> float | None:
        """The mean of the learners' means; None before the first episode has ended."""
        known = [row.mean_return for row in self.learners if row.mean_return is not None]
        return math.fsum(known) / len(known) if known else None

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the end at the present speed; None while nothing moves."""
        rate = self.steps_per_second
        return max(0, self.total_steps - self.global_steps) / rate if rate > 0 else None

    @property
    def num_active(self) -> int:
        """Learners at work."""
        return sum(row.state in ACTIVE_STATES for row in self.learners)


def shape(algorithm: str, topology: str, learners: int) -> str:
    """How the learners work together: `Ring of 3`, or `IMPALA with 3` where none gossips. An unknown algorithm does."""
    facts = ALGORITHMS.get(algorithm)
    return f"{topology} of {learners}" if facts is None or facts.gossips else f"{algorithm} with {learners}"


def live_view(snapshot: Snapshot, max_rows: int = 1024) -> RenderableType:
    """The table of the learners over the progress of the run; learners beyond `max_rows` share a line."""
    # Fits 80 columns: rich would rather cut words than do without padding.
    table = Table(
        title=f"{snapshot.name}: {snapshot.environment}, {snapshot.topology}",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 1, 0, 0),
        header_style="dim",
    )
    table.add_column("learner", justify="right")
    table.add_column("state", min_width=11)
    for heading in ("decisions", "per second", "return", "staleness", "disagreement", "restarts"):
        table.add_column(heading, justify="right")
    rows = list(snapshot.learners)
    hidden = rows[max(1, max_rows - 1) :] if len(rows) > max_rows else []
    for row in rows[: len(rows) - len(hidden)]:
        table.add_row(
            str(row.rank),
            Text(row.state, style=STATE_STYLES.get(row.state, "")),
            count(row.steps),
            count(row.steps_per_second),
            decimal(row.mean_return),
            count(row.staleness),
            _fraction(row.disagreement),
            Text(str(row.restarts), style="red" if row.restarts else "dim"),
        )
    if hidden:
        active = sum(row.state in ACTIVE_STATES for row in hidden)
        table.add_row("...", f"{active} of {len(hidden)} more active")
    share = min(1.0, snapshot.global_steps / max(1, snapshot.total_steps))
    progress = Table.grid(padding=(0, 2, 0, 0))
    progress.add_row(
        ProgressBar(total=1.0, completed=share, width=24, complete_style="green"),
        Text(f"{share:.1%}", style="bold"),
        Text(f"{count(snapshot.steps_per_second)} decisions/s", style="cyan"),
        Text(f"return {decimal(snapshot.mean_return)}", style="magenta"),
        Text(f"ETA {duration(snapshot.eta_seconds)}"),
    )
    so_far = f"{count(snapshot.global_steps)} of {count(snapshot.total_steps)} decisions"
    hint = snapshot.note or snapshot.hint
    footer = Text(f"{so_far} in {duration(snapshot.wall_seconds)}; ").append(hint, "yellow" if snapshot.note else "dim")
    return Group(table, progress, footer)


def plain_line(snapshot: Snapshot) -> str:
    """The same in one line, for logs and pipes."""
    share = min(1.0, snapshot.global_steps / max(1, snapshot.total_steps))
    return (
        f"{count(snapshot.global_steps)} of {count(snapshot.total_steps)} decisions ({share:.1%}), "
        f"{count(snapshot.steps_per_second)}/s, return {decimal(snapshot.mean_return)}, "
        f"{snapshot.num_active} of {len(snapshot.learners)} learners, ETA {duration(snapshot.eta_seconds)}"
    )


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min`, `3 h 05 min`, `2 d 04 h`; `-` for None."""
    if seconds is None:
        return "-"
    (first, unit), *rest = durations.parts(seconds)
    return " ".join([f"{first} {unit}", *(f"{number:02d} {unit}" for number, unit in rest)])


def count(value: float | None) -> str:
    """A whole number; `-` for None."""
    return "-" if value is None else f"{value:,.0f}"


def decimal(value: float | None) -> str:
    """With one decimal; `-` for None."""
    return "-" if value is None else f"{value:,.1f}"


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
