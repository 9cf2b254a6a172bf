"""The run directory: what a run leaves on disk, who may write it, and what a second `gala run` of that name may do.

    runs/<name>/  galarun.yaml  plan.json  run.json  launcher.lock  learner-<rank>/...  final/...  report.html

launcher.lock is held (flock) while a launcher lives; the kernel lets go of it whatever way the launcher dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal

import yaml

from gala import answers, atomic, names, spec
from gala.errors import MAX_SHOWN_VALUE, RunError, SpecError, UsageError
from gala.plan import RunPlan

State = Literal["running", "suspended", "stopped", "finished", "failed"]

_REPLACED: Final = ".replaced"
"""Where `--force` keeps the earlier run until its successor trains."""
_MOVING: Final = f"{_REPLACED}.moving"
"""It again, on its way there or back: a launcher that finds it was preceded by one killed in between."""
_FORGOTTEN: Final = f"{_REPLACED}.forgotten"
"""It again, when it is in nobody's way."""
MAX_PID: Final = 2**22
"""Linux gives out no larger process id."""


@dataclass(kw_only=True, slots=True)
class RunRecord:
    """run.json: the launcher's memory."""

    uid: str
    """The same over stops and resumes; another one after --force."""
    state: State
    start_time: float
    """Unix seconds of the first start."""
    wall_seconds: float = 0.0
    """Seconds that the run has been running, without the time between a stop and a resume, as of `updated_time`."""
    updated_time: float = 0.0
    """Unix seconds of this record."""
    launcher_pid: int = 0
    worker_pids: list[int] = field(default_factory=list)
    """For the next launcher to clear away, should this one be killed."""
    is_ending: bool = False
    """Trained, and being averaged and evaluated: a changed document comes too late."""
    is_stopping: bool = False
    """Its workers have been told to stop, for good as far as this launcher is concerned: likewise."""
    energy: dict[str, dict[str, str]] = field(default_factory=dict)
    """`cpu` and `gpu`: the source of what energy.jsonl has, or why it is missing."""

    def to_json(self) -> str:
        """The content of run.json."""
        document = {
            "uid": self.uid,
            "state": self.state,
            "startTime": self.start_time,
            "wallSeconds": round(self.wall_seconds, 3),
            "updatedTime": self.updated_time,
            "launcherPid": self.launcher_pid,
            "workerPids": self.worker_pids,
        }
        if self.state in ("running", "suspended"):
            marks = {"isEnding": self.is_ending, "isStopping": self.is_stopping}
            document |= {mark: True for mark, is_set in marks.items() if is_set}
        if self.energy:
            document["energy"] = self.energy
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Read run.json. Raises: ValueError, KeyError, TypeError or RecursionError for anything else."""
        document = answers.mapping(json.loads(text))
        pids = map(answers.count, document.get("workerPids", []))
        return cls(
            uid=str(document["uid"]),
            state=document["state"],
            start_time=_seconds(document["startTime"]),
            wall_seconds=_seconds(document["wallSeconds"]),
            updated_time=_seconds(document["updatedTime"]),
            launcher_pid=answers.count(document.get("launcherPid")) or 0,
            # What cannot be a process has left nothing behind to clear away.
            worker_pids=[pid for pid in pids if pid is not None and 0 < pid <= MAX_PID],
            is_ending=bool(document.get("isEnding")),
            is_stopping=bool(document.get("isStopping")),
        )


class RunDirectory:
    """Paths, files and the lock of one run."""

    def __init__(self, path: Path) -> None:
        try:
            self.path = Path.cwd() / path  # without one, torch does not start either, wherever the run is
        except FileNotFoundError as error:
            raise UsageError(f"{path}: the working directory has been removed; cd to another one") from error
        self._lock: IO[bytes] | None = None

    @property
    def spec_file(self) -> Path:
        """The run's document; the live launcher follows its changes."""
        return self.path / names.SPEC_FILE

    @property
    def plan_file(self) -> Path:
        """What the workers watch."""
        return self.path / names.PLAN_FILE

    def learner(self, rank: int) -> Path:
        """A learner's folder."""
        return self.path / names.learner_directory(rank)

    def acquire(self) -> bool:
        """Take the lock, making the folder if need be. False while another launcher lives here."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / names.LOCK_FILE).open("ab")
        except OSError as error:
            raise UsageError(
                f"cannot write to {self.path}: {error.strerror}; choose another folder with --output"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._lock = lock
        return True

    def is_foreign(self) -> bool:
        """Whether there is something that no launcher has left."""
        ours = any((self.path / name).exists() for name in (names.LOCK_FILE, names.RUN_FILE))
        return self.path.is_dir() and not ours and not self.is_empty()

    def release(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def clear(self) -> None:
        """Remove everything but the lock, which must be held, and what was set aside.

        run.json goes last: until then the folder is known as a run.
        """
        for entry in sorted(self._content(), key=lambda entry: entry.name == names.RUN_FILE):
            _remove(entry)

    def set_aside(self) -> None:
        """Put everything but the lock out of the way, until `bring_back` or `forget`.

        Where an earlier run lies there already, what is here has never trained: that goes, and the earlier run stays.
        """
        if (self.path / _REPLACED).is_dir():
            self.clear()
            return
        moving = self.path / _MOVING
        moving.mkdir()
        for entry in self._content():
            entry.rename(moving / entry.name)
        moving.rename(self.path / _REPLACED)

    def bring_back(self) -> bool:
        """Have what was set aside in place of what is here now. False where there is nothing of the kind."""
        aside = self.path / _REPLACED
        if not aside.is_dir():
            return False
        (self.path / names.RUN_FILE).unlink(missing_ok=True)  # from here on `settle` goes on with it
        self.clear()
        aside.rename(self.path / _MOVING)
        self._move_back()
        return True

    def settle(self) -> None:
        """Undo or complete what a launcher that was killed has left half done: an earlier run is in its place then."""
        if (self.path / _MOVING).is_dir():
            self._move_back()
        elif not (self.path / names.RUN_FILE).exists():
            self.bring_back()

    def _move_back(self) -> None:
        moving = self.path / _MOVING
        for entry in moving.iterdir():
            entry.rename(self.path / entry.name)
        moving.rmdir()

    def forget(self) -> None:
        """Remove what was set aside, as far as the disk lets us. In one step it is no run any more to bring back."""
        forgotten = self.path / _FORGOTTEN
        with contextlib.suppress(OSError):
            (self.path / _REPLACED).rename(forgotten)
        shutil.rmtree(forgotten, ignore_errors=True)

    def is_empty(self) -> bool:
        """Whether nothing but the lock is here (and what a launcher killed in its first moments may leave)."""
        ours = (names.LOCK_FILE, _REPLACED, f".{names.RUN_FILE}.")
        return all(entry.name.startswith(ours) for entry in self.path.iterdir())

    def has_results(self) -> bool:
        """Whether a learner has left a checkpoint or a model here: something to lose."""
        kept = (names.CHECKPOINTS_DIRECTORY, names.FINAL_DIRECTORY)
        return any(any((folder / name).glob("*")) for folder in self.path.glob("learner-*") for name in kept)

    def _content(self) -> list[Path]:
        assert self._lock is not None, "only the launcher that holds the lock may clear a run"
        ours = (names.LOCK_FILE, _REPLACED, _MOVING, _FORGOTTEN)
        return [entry for entry in self.path.iterdir() if entry.name not in ours]

    def record(self) -> RunRecord | None:
        """run.json; None where there is none.

        Raises: RunError when it cannot be read.
        """
        path = self.path / names.RUN_FILE
        try:
            return RunRecord.from_json(path.read_text())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(f"{path} is damaged ({error}); start over with --force") from error

    def write_record(self, record: RunRecord) -> None:
        """Replace run.json."""
        atomic.replace(self.path / names.RUN_FILE, record.to_json().encode())

    def run(self) -> spec.GalaRun:
        """galarun.yaml. Raises: SpecError."""
        return spec.load(self.spec_file)

    def write_run(self, run: spec.GalaRun) -> None:
        """Replace galarun.yaml."""
        atomic.replace(self.spec_file, yaml.safe_dump(run.document(), sort_keys=False).encode())

    def planned(self) -> spec.GalaRun:
        """The run as its workers had it last: the plan's spec, since users edit galarun.yaml; that if there is no plan.

        Raises: SpecError for galarun.yaml.
        """
        run = self.run()
        try:
            return run.model_copy(update={"spec": RunPlan.from_json(self.plan_file.read_text()).spec})
        except (OSError, ValueError, SpecError):
            return run

    def plan_epoch(self) -> int:
        """The epoch of the last plan; -1 where there is none or it is of another version of GALA."""
        try:
            return int(json.loads(self.plan_file.read_text())["epoch"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return -1

    def write_plan(self, plan: RunPlan) -> None:
        """Replace plan.json; the workers notice."""
        atomic.replace(self.plan_file, plan.to_json().encode())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _seconds(value: Any) -> float:
    found = answers.number(value)
    if found is None:
        raise ValueError(f"a time must be a finite number, got {str(value)[:MAX_SHOWN_VALUE]}")
    return found
