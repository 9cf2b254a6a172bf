"""runs/<experiment>/: its files, its lock, and what of a run is there already. The layout is in `index`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from gala import atomic, names
from gala.answers import count, json_file, json_object
from gala.errors import GalaError, UsageError, reading
from gala.experiment.index import DEFINITION_FILE, INDEX_FILE, Index, RunEntry, read
from gala.experiment.matrix import PlannedRun
from gala.experiment.place import Sight
from gala.local.changes import changed_fields, describe
from gala.local.rundir import RunDirectory

DOCUMENTS: Final = "documents"
LOGS: Final = "logs"
TAIL_BYTES: Final = 64 * 1024
"""Of a metrics file, searched for its last training record."""
MAX_CHANGES: Final = 3
"""Fields that a message about a changed run names."""


class Folder:
    """The files of one experiment."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock = RunDirectory(path)
        """Only its lock: it works the same for an experiment's folder."""

    def acquire(self) -> None:
        """Take the lock, making the folder if need be.

        Raises: UsageError when another `gala experiment` holds it, or the folder is a run or cannot be read or written.
        """
        with reading(self.path):
            if (self.path / names.RUN_FILE).exists():
                raise UsageError(
                    f"{self.path} is the folder of a run; give the experiment another name, or use --output"
                )
        if not self._lock.acquire():
            raise UsageError(f"another gala experiment is at work in {self.path}; stop it first, or wait for it")

    def release(self) -> None:
        """Let go of the lock."""
        self._lock.release()

    def run_directory(self, name: str) -> Path:
        """The folder of a run."""
        return self.path / name

    def document_file(self, name: str) -> Path:
        """The GalaRun that `gala run` is given."""
        return self.path / DOCUMENTS / f"{name}.yaml"

    def log_file(self, name: str) -> Path:
        """What `gala run` prints."""
        return self.path / LOGS / f"{name}.txt"

    def write_definition(self, text: str) -> None:
        """Replace experiment.yaml."""
        atomic.replace(self.path / DEFINITION_FILE, text.encode())

    def write_index(self, index: Index) -> None:
        """Replace experiment.json."""
        atomic.replace(self.path / INDEX_FILE, index.to_json().encode())

    def entries(self) -> Sequence[RunEntry]:
        """The runs of experiment.json as it was written last; none where it is not there or cannot be read."""
        try:
            found = read(self.path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return ()
        return found.runs if found is not None else ()

    def write_document(self, run: PlannedRun) -> Path:
        """Replace a run's document."""
        path = self.document_file(run.name)
        path.parent.mkdir(exist_ok=True)
        atomic.replace(path, yaml.safe_dump(dict(run.document), sort_keys=False).encode())
        return path

    def strangers(self, expected: set[str]) -> list[str]:
        """Runs in the folder that the definition does not ask for (any more)."""
        if not self.path.is_dir():
            return []
        return sorted(
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in expected and (entry / names.RUN_FILE).is_file()
        )

    def sight(self, run: PlannedRun) -> Sight:
        """What of a run is on the disk. A run that is going on reads as interrupted: the disk does not know."""
        directory = RunDirectory(self.run_directory(run.name))
        try:
            record = directory.record()
            there = directory.run() if record is not None and directory.spec_file.exists() else None
        except GalaError as error:
            return Sight(state="failed", reason=str(error).splitlines()[0])
        if record is None or there is None:
            return Sight(state="waiting")
        changed = {path: it for path, it in changed_fields(there, run.run).items() if path.startswith("spec.")}
        return Sight(
            state=record.state if record.state in ("finished", "failed") else "interrupted",
            steps=made_steps(directory.path),
            wall_seconds=record.wall_seconds,
            changes=describe(changed, MAX_CHANGES),
        )


def made_steps(directory: Path) -> int:
    """Decisions that all learners of a run have made, as far as its files tell; 0 where they do not."""
    steps = count(json_file(directory / names.FINAL_DIRECTORY / names.CARD_FILE).get("globalSteps"))
    if steps is not None:
        return steps
    records = map(last_training, directory.glob(f"learner-*/{names.METRICS_FILE}"))
    return max((record["globalSteps"] for record in records if record is not None), default=0)


def last_training(metrics: Path) -> dict[str, Any] | None:
    """What a learner has written last of its training; None where there is nothing of it."""
    try:
        with metrics.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        record = json_object(line)  # the last one may be half a line
        if record is not None and record.get("kind") == "train" and isinstance(record.get("globalSteps"), int):
            return record
    return None
