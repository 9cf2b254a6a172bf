"""`gala report`: one self-contained HTML page about one run or several.

    read      files -> records          damaged, missing and unfinished ones included
    clock     records -> records        on one wall-clock for all learners
    series, ball, facts     -> numbers  curves, the epsilon-ball, tables
    plots, compare, timeline, ring      -> SVG
    page, tables, markup                -> HTML

matplotlib is imported when a report is written, not before: every other command works without it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gala.errors import UsageError
from gala.report.clock import on_one_clock
from gala.report.read import Run, read_run


def write(run_dirs: Sequence[Path], output: Path) -> Path:
    """Writes the report on `run_dirs`, compared side by side if there are several, to the HTML file `output`.

    The runs may still be going, or have crashed. An existing file is replaced in one step, so that a browser never
    loads half a page.

    Returns:
        The path that was written.

    Raises:
        UsageError: no directory is given, one is not a run, matplotlib is not installed, or `output` cannot be written.
    """
    if not run_dirs:
        raise UsageError("gala report: give at least one run directory, such as runs/pong")
    runs = [load(Path(directory)) for directory in run_dirs]
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("gala report needs matplotlib for its plots; install it with: pip install gala[report]")
    from gala.report import page  # takes matplotlib along

    _replace(output, page.render(runs))
    return output


def load(directory: Path) -> Run:
    """A run as the report sees it: read, and on one wall-clock.

    Raises:
        UsageError: `directory` is not a run.
    """
    run = read_run(directory)
    return replace(run, learners=on_one_clock(run.learners))


def _replace(output: Path, content: str) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir():
            raise IsADirectoryError(21, "it is a folder; give the name of an HTML file")
        handle, temporary = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(content)
            # mkstemp's 0600 would keep a web server, or a colleague, from reading the page.
            Path(temporary).chmod(0o644)
            Path(temporary).replace(output)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise UsageError(f"{output}: the report cannot be written: {error.strerror or error}") from error
