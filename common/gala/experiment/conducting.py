"""The loop of `gala experiment`: start what may start, look at what runs, write down what is, until all is done.

One thread. It knows neither processes nor clusters: `place` does. What is done already is read from the folder, so that
the same command goes on after a stop, a crash, or a machine's restart.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.live import Live

from gala.errors import GalaError, RunError, UnreachableError, UsageError
from gala.experiment.folder import Folder
from gala.experiment.index import RunEntry
from gala.experiment.matrix import Expansion, PlannedRun
from gala.experiment.place import Place, Sight
from gala.experiment.table import live_view, plain_line
from gala.local import ending
from gala.local.console import say
from gala.local.interrupts import Interrupts
from gala.local.rundir import RunDirectory

MAX_NAMED: Final = 5
"""Runs that a message names."""
LINES_AROUND_ROWS: Final = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Rhythm:
    """How often, and how long at most, in seconds."""

    look: float = 0.5
    """Between two looks at the runs."""
    line: float = 30.0
    """Between two plain progress lines."""
    record: float = 10.0
    """Between two writes of experiment.json while no run changes its state."""
    kill: float = 20.0
    """For runs that were asked to stop twice."""
    unreachable: float = 600.0
    """For so long a cluster may be away."""


def conduct(
    expansion: Expansion,
    folder: Folder,
    place: Place,
    *,
    console: Console,
    force: bool = False,
    definition: str = "",
    rhythm: Rhythm | None = None,
) -> int:
    """Run what is left of the experiment. Returns the exit code: 0 all done, 128 + signal when interrupted.

    Args:
        force: start runs over whose document differs from what is there.
        definition: the text for experiment.yaml.

    Raises:
        UsageError: the folder is in use, or holds runs of another definition.
        RunError: some runs have failed.
    """
    folder.acquire()
    try:
        return _Conductor(expansion, folder, place, console, force, rhythm or Rhythm()).run_to_end(definition)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise RunError(f"the experiment cannot go on: {where}{error.strerror}") from error
    finally:
        folder.release()


def survey(expansion: Expansion, folder: Folder) -> list[RunEntry]:
    """The runs as they stand on the disk. Touches nothing."""
    entries = [run.entry() for run in expansion.runs]
    reasons = {entry.name: entry.reason for entry in folder.entries()}
    for run, entry in zip(expansion.runs, entries, strict=True):
        _note(entry, folder.sight(run))
        entry.reason = entry.reason or (reasons.get(entry.name, "") if entry.state == "failed" else "")
    return entries


class _Conductor:
    def __init__(
        self, expansion: Expansion, folder: Folder, place: Place, console: Console, force: bool, rhythm: Rhythm
    ) -> None:
        self._expansion = expansion
        self._folder = folder
        self._place = place
        self._console = console
        self._force = force
        self._rhythm = rhythm
        self._runs: dict[str, PlannedRun] = {run.name: run for run in expansion.runs}
        self._entries: dict[str, RunEntry] = {run.name: run.entry() for run in expansion.runs}
        self._queue: deque[str] = deque()
        self._active: list[str] = []
        self._afresh: set[str] = set()
        self._in_the_way: set[str] = set()
        """Runs in which somebody else is, or was, at work."""
        self._interrupts = Interrupts()
        self._live: Live | None = None
        self._note = ""
        self._index = expansion.index(list(self._entries.values()))
        self._written = self._last_line = float("-inf")
        self._heard = time.monotonic()

    def run_to_end(self, definition: str) -> int:
        self._take_stock()
        self._folder.write_definition(definition)
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
        try:
            with self._interrupts:
                if self._live is not None:
                    self._live.start()
                self._greet()
                self._loop()
        except BaseException:
            self._place.kill()
            raise
        finally:
            if self._live is not None:
                self._live.stop()
                self._live = None
            self._write()
        return self._end()

    def _take_stock(self) -> None:
        """What is done, under way, to be done. Raises: UsageError when what is there is another experiment's."""
        changed: list[str] = []
        shared = {entry.name: entry.side_by_side for entry in self._folder.entries()}
        for name, run in self._runs.items():
            self._entries[name].side_by_side = shared.get(name, 0)
            sight = self._place.sight(run)
            if sight.changes:
                changed.append(f"{name}: {sight.changes}")
                self._afresh.add(name)
                self._entries[name].side_by_side = 0
                sight = Sight(state="waiting")
            _note(self._entries[name], sight)
            if sight.state == "running":
                self._active.append(name)
            elif sight.state != "finished":
                self._queue.append(name)
        if changed and not self._force:
            more = f"\n... and {len(changed) - MAX_NAMED} more" if len(changed) > MAX_NAMED else ""
            raise UsageError(
                f"{len(changed)} of {len(self._runs)} runs are there with another definition; --force starts those over"
                " (removes what they have learned), another metadata.name keeps both\n"
                + "\n".join(changed[:MAX_NAMED])
                + more
            )

    def _loop(self) -> None:
        asked = 0
        insisted = float("inf")
        while True:
            now = time.monotonic()
            if len(self._interrupts.received) > asked:
                asked = len(self._interrupts.received)
                if self._place.goes_on or not self._active:
                    return
                if self._interrupts.insistent:
                    insisted = min(insisted, now)
                self._note = "stopping: the runs write their checkpoints; a second Ctrl-C kills them"
                self._say(self._note)
                self._place.stop()
            if asked and (now - insisted >= self._rhythm.kill or asked >= 3):
                self._place.kill()
            self._look(now)
            if not asked:
                self._start()
            self._show(now)
            if not self._active and (asked or not self._queue):
                return
            self._interrupts.wait(self._rhythm.look)

    def _look(self, now: float) -> None:
        for name in list(self._active):
            entry = self._entries[name]
            try:
                sight = self._place.sight(self._runs[name])
                self._heard = now
            except UnreachableError as error:
                if now - self._heard >= self._rhythm.unreachable:
                    raise
                self._note = f"{error}; waiting for it"
                return
            except GalaError as error:
                sight = Sight(state="failed", reason=_one_line(error), steps=entry.steps)
            if self._note.endswith("waiting for it"):
                self._note = ""
            before = entry.state
            _note(entry, sight)
            if entry.state == "running":
                continue
            self._active.remove(name)
            if entry.state != before and not self._interrupts.received:
                self._say(f"{name} {_ended(entry)}")
            self._write()

    def _start(self) -> None:
        for _ in range(len(self._queue)):
            if self._interrupts.received or not self._place.has_room(len(self._active)):
                return
            name = self._queue.popleft()
            entry = self._entries[name]
            resumed = entry.state == "interrupted"
            try:
                started = self._place.start(self._runs[name], afresh=name in self._afresh)
            except UnreachableError as error:
                self._queue.appendleft(name)
                self._note = f"{error}; waiting for it"
                return
            except GalaError as error:
                _note(entry, Sight(state="failed", reason=_one_line(error), steps=entry.steps))
                self._say(f"{name} {_ended(entry)}")
                continue
            if not started:
                self._queue.append(name)
                if name not in self._in_the_way:
                    self._in_the_way.add(name)
                    self._say(f"{name}: another gala run is at work in it; waiting")
                continue
            self._afresh.discard(name)
            entry.state, entry.reason = "running", ""
            entry.side_by_side = max(entry.side_by_side, self._place.side_by_side)
            self._active.append(name)
            self._say(f"{name} {'resumes' if resumed else 'starts'}")
            self._write()

    def _show(self, now: float) -> None:
        if now - self._written >= self._rhythm.record:
            self._write()
        at_once = max(1, len(self._active))
        if self._live is not None:
            rows = max(4, self._console.height - LINES_AROUND_ROWS)
            self._live.update(live_view(self._index, at_once=at_once, note=self._note, max_rows=rows), refresh=True)
        elif now - self._last_line >= self._rhythm.line and (self._active or self._queue):
            self._last_line = now
            self._say(plain_line(self._index, at_once=at_once))

    def _greet(self) -> None:
        done = sum(entry.state == "finished" for entry in self._entries.values())
        goes = f", {done} of them done already" if done else ""
        where = ending.shown(self._folder.path)
        self._say(f"{self._expansion.name}: {len(self._runs)} runs{goes}; everything goes to {where}")
        strangers = self._folder.strangers(set(self._runs))
        if strangers:
            named = ", ".join(strangers[:MAX_NAMED]) + (", ..." if len(strangers) > MAX_NAMED else "")
            self._say(f"{len(strangers)} runs there are not of this definition, and are left as they are: {named}")
        if self._place.side_by_side > 1:
            self._say(
                f"up to {self._place.side_by_side} runs share this machine: "
                "their wall-clock, energy and throughput are not those of a run by itself"
            )

    def _end(self) -> int:
        entries = list(self._entries.values())
        failed = [entry for entry in entries if entry.state == "failed"]
        done = sum(entry.state == "finished" for entry in entries)
        if self._interrupts.received:
            how = "the runs in the cluster go on" if self._place.goes_on else "stopped"
            self._say(f"{how}; {done} of {len(entries)} runs are done; the same command goes on")
            return self._interrupts.exit_code
        if failed:
            named = [f"{entry.name}: {entry.reason}" for entry in failed[:MAX_NAMED]]
            more = [f"... and {len(failed) - MAX_NAMED} more"] if len(failed) > MAX_NAMED else []
            head = f"{len(failed)} of {len(entries)} runs have failed, {done} are done; the same command tries again"
            raise RunError("\n".join([head, *named, *more]))
        interrupted = [entry.name for entry in entries if entry.state != "finished"]
        if interrupted:
            raise RunError(
                f"{len(interrupted)} of {len(entries)} runs were stopped by somebody else, such as {interrupted[0]}; "
                "the same command goes on"
            )
        say(self._console, f"{self._expansion.name}: all {len(entries)} runs are done.")
        page, excuse = ending.write_report(RunDirectory(self._folder.path))
        say(self._console, f"  {'report':<15} {ending.shown(page) if page else excuse}")
        say(self._console, f"  {'figures':<15} {', '.join(self._expansion.figures)}")
        return 0

    def _write(self) -> None:
        self._written = time.monotonic()
        try:
            self._folder.write_index(self._index)
        except OSError as error:
            # A full disk must not end runs that are otherwise well.
            self._say(f"the index cannot be written: {error.strerror}")

    def _say(self, line: str) -> None:
        say(self._console, f"{time.strftime('%H:%M:%S')} {line}")


def _note(entry: RunEntry, sight: Sight) -> None:
    entry.state, entry.reason = sight.state, sight.reason
    entry.steps, entry.wall_seconds = sight.steps, sight.wall_seconds


def _ended(entry: RunEntry) -> str:
    match entry.state:
        case "finished":
            return "is done"
        case "failed":
            return f"has failed: {entry.reason}"
        case _:
            return "was stopped" + (f": {entry.reason}" if entry.reason else "")


def _one_line(error: GalaError) -> str:
    lines: Sequence[str] = str(error).splitlines() or [type(error).__name__]
    return lines[0] + (f" (and {len(lines) - 1} more problems)" if len(lines) > 1 else "")
