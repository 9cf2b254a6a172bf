"""What `gala run` of a name may do: start afresh, resume, change a live run, or be told why not."""

from __future__ import annotations

import contextlib
import time
import uuid
from dataclasses import dataclass
from typing import Final

from gala import names
from gala.errors import RunError, UsageError
from gala.local.changes import IMMUTABLE, Changes, changed_fields, describe, is_below, not_live
from gala.local.process import clear_leftovers
from gala.local.rundir import RunDirectory, RunRecord
from gala.spec import GalaRun, beside

TOTAL_STEPS: Final = "spec.totalSteps"


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """The right to run in a directory, whose lock is held."""

    record: RunRecord
    epoch: int
    """Of the first plan to write: past all that were written here before."""
    resumed: bool
    changes: Changes
    """Fields that differ from the interrupted run's, path -> (old, new)."""


def admit(directory: RunDirectory, run: GalaRun, *, force: bool, grace_seconds: float) -> Admission:
    """Decide about a directory whose lock the caller holds.

    Args:
        grace_seconds: for workers that a killed launcher has left behind, before they are killed too.

    Raises: UsageError when the name is taken by a finished run, another run, or something that is no run.
    """
    name = run.metadata.name
    directory.settle()
    if force and not directory.is_empty():
        if not (directory.path / names.RUN_FILE).exists():
            raise UsageError(f"{directory.path} is not a run directory, --force does not remove it; use another --name")
        with contextlib.suppress(RunError):  # a record that cannot be read names no workers
            _clear_leftovers(directory, directory.record(), grace_seconds)
        directory.set_aside()
        return _afresh()
    record = directory.record()
    if record is None:
        if not directory.is_empty():
            raise UsageError(f"{directory.path} exists and is not a run directory; use another --name or --output")
        return _afresh()
    if record.state == "finished":
        raise UsageError(
            f"run {name} is finished, its results are in {directory.path}; "
            f"start over with --force (removes them) or keep both with --name {beside(name, '2')}"
        )
    _clear_leftovers(directory, record, grace_seconds)
    if not directory.spec_file.exists():
        if directory.has_results():
            raise UsageError(
                f"{directory.spec_file} is gone: nobody knows what the checkpoints beside it are of; put it back, "
                f"use --name {beside(name, '2')} for a run beside it, or --force to start over"
            )
        directory.clear()  # its launcher was killed in its first moments
        return _afresh()
    deadline = run.spec.run_policy.active_deadline_seconds
    if deadline is not None and record.wall_seconds >= deadline:
        raise UsageError(
            f"run {name} has used up its spec.runPolicy.activeDeadlineSeconds: {deadline}; raise it to resume the run"
        )
    changes = changed_fields(directory.planned(), run)
    frozen = {path: change for path, change in changes.items() if is_below(path, IMMUTABLE)}
    if frozen and directory.has_results():
        raise UsageError(
            f"run {name} cannot be resumed as another experiment: {describe(frozen)}; "
            f"undo that, use --name {beside(name, '2')} for a run beside it, or --force to start over"
        )
    if frozen:
        # It never got anywhere, most likely because of what has been corrected now: a wrong environment id.
        directory.clear()
        return _afresh()
    return Admission(record=record, epoch=directory.plan_epoch() + 1, resumed=True, changes=changes)


def amend(directory: RunDirectory, run: GalaRun, *, force: bool, asked: tuple[str, ...]) -> str:
    """Hand a changed document to the live launcher of a directory. Returns what to tell the user.

    Args:
        asked: the fields that the user has set on the command line. Fewer total steps are taken from there only: they
            can end a run, and a run that has ended is not taken up again.

    Raises: UsageError when nothing changed, or something that cannot change while workers run.
    """
    name = run.metadata.name
    if force:
        raise UsageError(
            f"run {name} is running; stop it with Ctrl-C in its terminal before starting over with --force"
        )
    if not directory.spec_file.exists():
        raise UsageError(f"run {name} is just being started; try again in a moment")
    record = directory.record()
    if record is not None and record.is_ending:
        raise UsageError(
            f"run {name} has its steps and is being evaluated; wait for its end, or start another one beside it with "
            f"--name {beside(name, '2')}"
        )
    if record is not None and record.is_stopping:
        raise UsageError(f"run {name} is being stopped; the same command resumes it in a moment")
    if record is not None and record.state not in ("running", "suspended"):
        raise UsageError(f"run {name} is just being started, or ends; try again in a moment")
    changes = changed_fields(directory.run(), run)
    if not changes:
        raise UsageError(
            f"run {name} is already running in {directory.path}; change it with --learners N, "
            f"or start another one beside it with --name {beside(name, '2')}"
        )
    rigid = not_live(changed_fields(directory.planned(), run))
    if rigid:
        resume = "" if any(is_below(path, IMMUTABLE) for path in rigid) else "or stop it with Ctrl-C and resume it so, "
        raise UsageError(
            f"run {name} is running and cannot change this on the fly: {describe(rigid)}; give the "
            f"options of the first call again, {resume}or use --name {beside(name, '2')}"
        )
    before, after = changes.get(TOTAL_STEPS, (0, 0))
    if after < before and not is_below(TOTAL_STEPS, asked):
        raise UsageError(
            f"run {name} is running for {before:,} steps and the document asks for fewer, which may end it for good: "
            f"{TOTAL_STEPS} {before} -> {after}; give --set {TOTAL_STEPS}={before} again, or --set "
            f"{TOTAL_STEPS}={after} if that is what you want"
        )
    directory.write_run(run)
    return f"run {name} is running; handed to its launcher: {describe(changes)}"


def _clear_leftovers(directory: RunDirectory, record: RunRecord | None, grace_seconds: float) -> None:
    """A killed launcher leaves workers behind which are stopping, or hanging: two of a rank must never write."""
    if record is not None:
        clear_leftovers(record.worker_pids, {names.ENV_OUTPUT_DIR: str(directory.path)}, grace_seconds)


def _afresh() -> Admission:
    record = RunRecord(uid=str(uuid.uuid4()), state="running", start_time=time.time())
    return Admission(record=record, epoch=0, resumed=False, changes={})
