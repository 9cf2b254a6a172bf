"""The launcher's voice: one place that writes to the terminal."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import IO, Any, Final

from rich.console import Console
from rich.live import Live

from gala.local.table import Snapshot, live_view, plain_line

LINES_AROUND_ROWS: Final = 8
"""Title, borders, headings, progress and hint. Rich cuts off what is higher than the terminal: the progress."""


def lasting_console() -> Console:
    """On stdout; it goes quiet when nobody can read it any more: a training does not end with its terminal."""
    return Console(file=LastingFile(sys.stdout))  # type: ignore[arg-type]


def say(console: Console, line: str) -> None:
    """One line as it is: nothing in it is markup, and it is broken nowhere."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


class LastingFile:
    """A text file. What cannot be written, to a closed terminal or to a pipe whose reader has ended, is dropped."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Takes it all, whatever becomes of it."""
        try:
            return self._file.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Writes what is held back, if there is anybody to read it."""
        try:
            self._file.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        """From now on into nothing, with what the file still holds back: the interpreter flushes it at its end."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._file.fileno())
        os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class Display:
    """Shows a run: a table that is redrawn in place on a terminal that can, lines with a time stamp anywhere else.

    Args:
        console: where to.
        line_seconds: between two plain progress lines.
        live: draw the table on a terminal; else nothing is shown but what is said.
    """

    def __init__(self, console: Console, *, line_seconds: float = 10.0, live: bool = True) -> None:
        self._console = console
        # No refresh thread of rich's own: the launcher redraws when there is something new, and workers need the cores.
        redraws = live and console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, auto_refresh=False, transient=False) if redraws else None
        self._line_seconds = line_seconds
        self._last_line = float("-inf")

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the last table standing and give the terminal back; `say` goes on working."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        """One line about something that happened."""
        stamp = time.strftime("%H:%M:%S")
        say(self._console, f"{stamp} {line}")

    def show(self, snapshot: Snapshot, *, now: float) -> None:
        """Show the state of the run; plain lines come at most every `line_seconds`, and not after the last step."""
        if self._live is not None:
            self._live.update(
                live_view(snapshot, max_rows=max(4, self._console.height - LINES_AROUND_ROWS)), refresh=True
            )
        elif snapshot.global_steps < snapshot.total_steps and now - self._last_line >= self._line_seconds:
            self._last_line = now
            self.say(plain_line(snapshot))
