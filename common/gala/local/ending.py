"""What follows when the total steps are reached: the averaged model, its evaluation, the report, and what is next."""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gala import names
from gala.answers import count, json_file, json_object, mapping, number
from gala.errors import RunError, to_install
from gala.local.interrupts import Interrupts
from gala.local.process import WorkerProcess
from gala.local.rundir import RunDirectory
from gala.local.table import duration
from gala.spec import GalaRun, beside

FINALIZE_LOG = "finalize.log"
MAX_RECORD: Final = 1 << 20
"""A line of metrics.jsonl is far shorter."""


def finalize(
    directory: RunDirectory,
    command: Sequence[str],
    environment: Mapping[str, str],
    interrupts: Interrupts,
    waiting: Callable[[], None],
) -> bool:
    """Average and evaluate the final model in a subprocess. False when the user interrupted it.

    Raises: RunError when it fails.
    """
    log = directory.path / FINALIZE_LOG
    process = WorkerProcess([*command, str(directory.path)], environment, log)
    heard = len(interrupts.received)
    while (code := process.exit_code()) is None:
        waiting()
        interrupts.wait(0.1)
        if len(interrupts.received) > heard:
            process.kill()
            process.wait()
            return False
    if code != 0:
        raise RunError(
            "training has ended, but the evaluation of the final model has failed: "
            f"{process.last_line() or f'exit code {code}'}; see {shown(log)}; the same command tries again"
        )
    return True


def write_report(directory: RunDirectory) -> tuple[Path | None, str]:
    """report.html. Returns its path, or None and the reason: a report that fails must not spoil a run that has not."""
    if importlib.util.find_spec("matplotlib") is None:
        return None, f"for plots, {to_install('report')}, then gala report {shown(directory.path)}"
    try:
        from gala import report

        return report.write([directory.path], directory.path / names.REPORT_FILE), ""
    except Exception as error:
        return None, f"could not be written ({type(error).__name__}: {error})"


def summary(
    directory: RunDirectory, run: GalaRun, source: Path | None, wall_seconds: float, report: tuple[Path | None, str]
) -> list[str]:
    """The lines that end a successful run.

    Args:
        source: the document as the user named it; None where the run is more than what it says.
    """
    name, folder = directory.path.name, directory.path.parent
    path, more = (shlex.quote(shown(each)) for each in (directory.path, folder / beside(name, "more")))
    again = ["gala", "run", os.fspath(source) if source is not None else shown(directory.spec_file)]
    again += ["--name", beside(name, "more"), "--learners", str(min(2 * run.spec.learners, names.MAX_LEARNERS))]
    again += [] if shown(folder) == names.RUNS_DIRECTORY else ["--output", shown(folder)]
    # Whether an environment of the user's own can be filmed only the environment knows.
    watch, what = f"--video {name}.gif", "watch the final policy play"
    if ":" in run.spec.environment.id:
        watch, what = "--episodes 100", "score the final policy in more episodes"
    return [
        f"{name} has reached {_card(directory).get('globalSteps', 0):,} decisions in {duration(wall_seconds)}.",
        *results(directory, report),
        *_skipped(directory, run.spec.learners),
        "Next:",
        f"  gala evaluate {path} {watch}",
        f"      {what}",
        f"  {shlex.join(again)}",
        "      twice the learners, beside this run",
        f"  gala report {path} {more}",
        "      both on one page",
        f"  tensorboard --logdir {path}",
        "      every curve of every learner",
    ]


def results(directory: RunDirectory, report: tuple[Path | None, str]) -> list[str]:
    """What a finished run has brought: its scores, its model, its report."""
    report_path, excuse = report
    final = directory.path / names.FINAL_DIRECTORY
    evaluation = _card(directory).get("evaluation")
    lines = [
        f"  {mode + ' policy':<15} {_score(result)}"
        for mode, result in (evaluation.items() if isinstance(evaluation, dict) else ())
        if isinstance(result, dict)
    ]
    return [
        *lines,
        f"  {'final model':<15} {shown(final / names.MODEL_FILE)}",
        f"  {'report':<15} {shown(report_path) if report_path else excuse}",
    ]


def _skipped(directory: RunDirectory, learners: int) -> list[str]:
    """What the learners could not learn from, as their last records have it; no line where that is nothing."""
    skipped = updates = 0
    logs = []
    for folder in map(directory.learner, range(learners)):
        record = _last_training(folder / names.METRICS_FILE)
        if lost := count(record.get("skippedUpdates")) or 0:
            skipped += lost
            updates += count(record.get("updates")) or 0
            logs.append(shown(folder / names.LOG_FILE))
    if not skipped:
        return []
    why = f"rewards, observations or gradients were not finite; see {logs[0]}"
    return [f"  {'skipped':<15} {skipped:,} of {updates:,} updates, because {why}"]


def _last_training(metrics: Path) -> dict[str, Any]:
    """The last `train` record of a learner; empty where there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_RECORD))
            lines = file.read().splitlines()
    except OSError:
        return {}
    records = (json_object(line) or {} for line in reversed(lines))
    return next((record for record in records if record.get("kind") == "train"), {})


def shown(path: Path) -> str:
    """A path as the user would write it: relative where it lies below the working directory."""
    try:
        return os.fspath(path.relative_to(Path.cwd()))
    except ValueError:
        return os.fspath(path)


def missed_score(directory: RunDirectory, least: float | None) -> str | None:
    """Why the final model's score is not enough, `least` being `evaluation.minReturn`; None where it is."""
    evaluation = mapping(_card(directory).get("evaluation"))
    score = number(mapping(evaluation.get("greedy")).get("meanReturn"))
    if least is None or (score is not None and score >= least):
        return None
    known = "unknown" if score is None else f"{score:g}"
    return (
        f"spec.evaluation.minReturn: the final model's mean return is {known}, below {least:g}; the same command with a"
        " larger spec.totalSteps trains on"
    )


def _card(directory: RunDirectory) -> dict[str, Any]:
    return json_file(directory.path / names.FINAL_DIRECTORY / names.CARD_FILE)


def _score(result: dict[str, Any]) -> str:
    mean = number(result.get("meanReturn"))
    if mean is None:
        return "mean return unknown: the environment has given rewards that are not finite numbers"
    text = f"mean return {mean:.1f}"
    if result.get("stdReturn") is not None:
        text += f" ± {result['stdReturn']:.1f}"
    if result.get("episodes") is not None:
        text += f" over {result['episodes']} episodes"
    if result.get("humanNormalised") is not None:
        text += f" ({result['humanNormalised']:.0%} of human)"
    return text
