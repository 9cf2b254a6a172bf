"""The runs of an experiment on this machine: each is a `gala run` of its own.

A process and not a thread: one run's end, whatever way it comes, touches no other run, and `gala run` brings the clean
stop, the checkpoints and the resuming with it. It gets SIGTERM from the kernel should this process be killed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from gala.experiment.folder import Folder
from gala.experiment.matrix import PlannedRun
from gala.experiment.place import Sight
from gala.local.process import WorkerProcess
from gala.local.rundir import RunDirectory

GALA: Final = (sys.executable, "-P", "-m", "gala")
STOPPED: Final = (130, 143, 129)
"""Exit codes of a `gala run` that was asked to stop."""


class Machine:
    """Starts, watches and stops the runs. Main thread only."""

    goes_on = False

    def __init__(self, folder: Folder, *, jobs: int = 1, command: Sequence[str] | None = None) -> None:
        self._folder = folder
        self._command = command or GALA
        self._processes: dict[str, WorkerProcess] = {}
        self._cores = _shares(jobs)
        self._slots: dict[str, int] = {}
        """Run -> which share of the cores it has."""
        self.side_by_side = jobs

    def sight(self, run: PlannedRun) -> Sight:
        """From the disk, and from the run's process while there is one."""
        found = self._folder.sight(run)
        process = self._processes.get(run.name)
        if process is None:
            return found
        code = process.exit_code()
        if code is None:
            return Sight(state="running", steps=found.steps, wall_seconds=found.wall_seconds)
        del self._processes[run.name]
        self._slots.pop(run.name, None)
        if found.state == "finished":
            return found
        stopped = code in STOPPED or code < 0
        if code < 0:
            why = f"gala run was killed by signal {-code}"
        else:
            last = process.last_line().removeprefix("error: ")
            why = "" if stopped else last or f"gala run ended with exit code {code}"
        return Sight(
            state="interrupted" if stopped else "failed",
            steps=found.steps,
            wall_seconds=found.wall_seconds,
            reason=why,
        )

    def start(self, run: PlannedRun, *, afresh: bool) -> bool:
        """False while an earlier launcher of this run is still there, on its way to its end."""
        directory = RunDirectory(self._folder.run_directory(run.name))
        if not directory.acquire():
            return False
        directory.release()
        document = self._folder.write_document(run)
        command = [*self._command, "run", str(document), "--output", str(self._folder.path)]
        command += ["--force"] if afresh else []
        process = WorkerProcess(command, {}, self._folder.log_file(run.name))
        self._processes[run.name] = process
        self._slots[run.name] = slot = min(set(range(len(self._cores))) - set(self._slots.values()), default=0)
        if len(self._cores) > 1:
            # Before it has started its workers, which inherit it: each run counts and uses its own cores.
            os.sched_setaffinity(process.pid, self._cores[slot])
        return True

    def has_room(self, going: int) -> bool:
        """Up to `jobs` at once."""
        return going < self.side_by_side

    def stop(self) -> None:
        """Once: stop with a checkpoint. Twice: without."""
        for process in self._processes.values():
            process.terminate()

    def kill(self) -> None:
        """End every `gala run`; its workers get SIGTERM from the kernel."""
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._processes.clear()


def _shares(jobs: int) -> list[set[int]]:
    """The cores of each of so many runs; all share all where there are too few to divide."""
    if not hasattr(os, "sched_getaffinity"):
        return [set()]
    cores = sorted(os.sched_getaffinity(0))
    if jobs == 1 or len(cores) < jobs:
        return [set(cores)]
    return [set(cores[index::jobs]) for index in range(jobs)]
