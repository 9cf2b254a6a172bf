"""`gala report`: one self-contained HTML page about one run or several.

    read      files -> records          damaged, missing and unfinished ones included
    clock     records -> records        on one wall-clock for all learners
    series, ball, facts     -> numbers  curves, the epsilon-ball, tables
    plots, compare, timeline, ring      -> SVG
    page, tables, markup                -> HTML

Of an experiment, a folder with an experiment.json and runs beside it, it is one page and files to commit:

    experiment, energy      files -> entries with their runs
    lines, statistics       -> what belongs together, and how sure it is
    figures                 -> sections: convergence, curves, scores, throughput, radius, correlation
    experiment_page         -> HTML
    files, standalone       -> figures/: SVGs, tables in Markdown, summary.json

matplotlib is imported when a report is written, not before: every other command works without it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gala import atomic
from gala.answers import json_file
from gala.errors import UsageError, reading, to_install
from gala.experiment.index import INDEX_FILE
from gala.report.clock import on_one_clock
from gala.report.read import Run, read_run


def write(run_dirs: Sequence[Path], output: Path) -> Path:
    """Writes the report on `run_dirs`, compared side by side if there are several, to the HTML file `output`.

    One directory may be an experiment's: then its plots, tables and numbers are in its figures/ as well.

    The runs may still be going, or have crashed. An existing file is replaced in one step, so that a browser never
    loads half a page.

    Returns:
        The path that was written.

    Raises:
        UsageError: no directory is given, one is neither a run nor the only experiment, matplotlib is not installed, or
            the files cannot be written.
    """
    if not run_dirs:
        raise UsageError("gala report: give at least one run directory, such as runs/pong")
    experiments = [directory for directory in run_dirs if is_experiment(Path(directory))]
    if experiments and len(run_dirs) > 1:
        raise UsageError(f"{experiments[0]} is an experiment; it is reported on alone, its runs compared within it")
    runs = [] if experiments else [load(Path(directory)) for directory in run_dirs]
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"gala report needs matplotlib for its plots; {to_install('report')}")
    if experiments:
        return _write_experiment(Path(experiments[0]), output)
    from gala.report import page  # takes matplotlib along

    _replace(output, page.render(runs))
    return output


def is_experiment(directory: Path) -> bool:
    """Whether `directory` is an experiment's: a folder with an experiment.json. Raises: UsageError, see `reading`."""
    with reading(directory):
        return (directory / INDEX_FILE).is_file()


def _write_experiment(directory: Path, output: Path) -> Path:
    """The page, and figures/ in the experiment's folder."""
    from gala.report import page
    from gala.report.experiment import read_experiment
    from gala.report.figures import draw
    from gala.report.files import FIGURES_DIRECTORY, SUMMARY_FILE, files, superseded

    experiment = read_experiment(directory)
    sections = draw(experiment)
    figures = directory / FIGURES_DIRECTORY
    old = list(superseded(json_file(figures / SUMMARY_FILE), sections))
    for name, content in files(experiment, sections):
        _replace(figures / name, content)
    for name in old:
        with contextlib.suppress(OSError):
            (figures / name).unlink()
    _replace(output, page.render_experiment(experiment, sections))
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
        output = Path(os.path.realpath(output))  # where a link leads to: what is replaced is never the link
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir():
            raise IsADirectoryError(21, "it is a folder; give the name of an HTML file")
        if output.exists() and not output.is_file():
            raise FileExistsError(17, "it is a device or a pipe; give the name of an HTML file")
        # JSON can name halves of characters, which UTF-8 cannot.
        atomic.replace(output, content.encode(errors="replace"), durable=False)
    except OSError as error:
        raise UsageError(f"{output}: the report cannot be written: {error.strerror or error}") from error
