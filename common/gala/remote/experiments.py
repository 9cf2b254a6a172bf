"""The runs of an experiment in a cluster: submitted as many at once as fit, fetched as they succeed.

What `gala.experiment.machine` is for this machine. The runs go on when the command ends; the same command finds them
again by their names and labels.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from gala import names, spec
from gala.errors import GalaError, SpecError, UnreachableError, UsageError
from gala.experiment.folder import MAX_CHANGES, Folder
from gala.experiment.matrix import PlannedRun
from gala.experiment.place import Sight
from gala.local.changes import changed_fields, describe
from gala.local.rundir import RunDirectory
from gala.remote import fetching, submitting
from gala.remote.cluster import Cluster
from gala.remote.view import Run, snapshot

UNSCHEDULABLE: Final = "Unschedulable"
"""What keeps the pods of a run from being ready when the cluster is full."""
SETTLING: Final = 4
"""Runs that may be on their way to running at once: what is submitted in vain, at most, before we know it is full."""


class ClusterRuns:
    """Submits, watches and fetches the runs."""

    goes_on = True
    side_by_side = 0

    def __init__(
        self,
        cluster: Cluster,
        folder: Folder,
        *,
        jobs: int | None = None,
        keep: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`jobs`: runs at once at most; None = as many as fit. `keep`: leave runs in the cluster when fetched."""
        self._cluster = cluster
        self._folder = folder
        self._jobs = jobs
        self._keep = keep
        self._say = say
        self._settling: set[str] = set()
        """Submitted, and not seen running yet."""
        self._stuck: set[str] = set()

    def sight(self, run: PlannedRun) -> Sight:
        """From the folder if the run is fetched, else from the cluster. A run that has succeeded is fetched."""
        on_disk = self._folder.sight(run)
        if on_disk.state == "finished" or on_disk.changes:
            return on_disk
        found = self._cluster.find(run.name)
        if found is None:
            self._forget(run.name)
            return on_disk
        changes = self._changes(found, run)
        there = Run.of(found)
        shown = snapshot(there, datetime.now(UTC))
        steps, seconds = shown.global_steps, shown.wall_seconds
        if changes:
            return Sight(state="waiting", changes=changes)
        if there.ended or there.refusal:
            self._forget(run.name)
        if there.state == "Succeeded":
            return self._fetched(run, Sight(state="failed", steps=steps, wall_seconds=seconds))
        if there.ended or there.refusal:
            why = there.failure if there.ended else there.refusal or ""
            return Sight(state="failed", steps=steps, wall_seconds=seconds, reason=why)
        self._settle(run.name, there)
        return Sight(state="running", steps=steps, wall_seconds=seconds)

    def start(self, run: PlannedRun, *, afresh: bool) -> bool:
        """Submit it. A run that has failed in the cluster is deleted and starts over."""
        if not afresh and self._folder.sight(run).state != "waiting":
            where = self._folder.run_directory(run.name)
            raise UsageError(f"{where} holds a run that was begun on this machine: finish it here, or remove it")
        found = self._cluster.find(run.name)
        there = Run.of(found) if found is not None else None
        if there is not None and there.state == "Succeeded" and not afresh:
            return True  # its results were not to be had; the next look tries again
        failed = there is not None and there.state == "Failed"
        submitting.submit(self._cluster, run.document, force=afresh or failed)
        self._settling.add(run.name)
        return True

    def has_room(self, going: int) -> bool:
        """Up to `jobs` at once; without that, for as long as the cluster finds room for what it has got."""
        if self._jobs is not None and going >= self._jobs:
            return False
        return not self._stuck and len(self._settling) < SETTLING

    def stop(self) -> None:
        """The runs go on."""

    def kill(self) -> None:
        """The runs go on."""

    def _fetched(self, run: PlannedRun, otherwise: Sight) -> Sight:
        try:
            path = fetching.fetch(self._cluster, run.name, output=self._folder.path, force=False, say=lambda line: None)
            # A results pod knows the plan, not the document. We do, and that the two agree.
            RunDirectory(path).write_run(run.run)
        except UnreachableError:
            raise
        except GalaError as error:
            return Sight(
                state="failed",
                steps=otherwise.steps,
                wall_seconds=otherwise.wall_seconds,
                reason=f"it has succeeded, but cannot be fetched: {str(error).splitlines()[0]}",
            )
        if not self._keep:
            self._cluster.delete(run.name)
        return self._folder.sight(run)

    def _changes(self, found: dict[str, object], run: PlannedRun) -> str:
        """How the run in the cluster differs from ours. Raises: UsageError when it is nobody's we know."""
        metadata = found.get("metadata")
        labels = metadata.get("labels") if isinstance(metadata, dict) else None
        expected = run.document["metadata"]["labels"][names.LABEL_EXPERIMENT]
        if not isinstance(labels, dict) or labels.get(names.LABEL_EXPERIMENT) != expected:
            raise UsageError(
                f"namespace {self._cluster.namespace} has a run {run.name} that is not of this experiment; "
                "give the experiment another name"
            )
        try:
            there = spec.parse(found)
        except SpecError as error:
            return f"is of another version ({error.problems[0]})"
        changed = changed_fields(there, run.run)
        return describe({path: it for path, it in changed.items() if path.startswith("spec.")}, MAX_CHANGES)

    def _settle(self, name: str, there: Run) -> None:
        if there.state == "Running":
            self._settling.discard(name)
        if there.stuck == UNSCHEDULABLE:
            if name not in self._stuck:
                self._say(f"{name} waits for room in the cluster; no more runs are submitted until it has some")
            self._stuck.add(name)
        else:
            self._stuck.discard(name)

    def _forget(self, name: str) -> None:
        self._settling.discard(name)
        self._stuck.discard(name)
