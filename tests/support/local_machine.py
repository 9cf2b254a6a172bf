"""A working directory in which `gala run` is called, its workers being fake ones that a script leads."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from waiting import eventually

ENDS_SECONDS = 60.0
"""The longest that a `gala run` may take to end; to start it takes a second of CPU time."""
FAKE_GALA = Path(__file__).parents[1] / "common" / "fake_gala.py"
DOCUMENT = """
apiVersion: gala.dev/v1alpha1
kind: GalaRun
metadata: {name: pole}
spec:
  environment: {id: CartPole-v1, simulators: 4}
  learners: 2
  totalSteps: 1000000
  runPolicy: {backoffLimit: 3}
"""


class Machine:
    """A working directory with a document in it, and the launchers and workers that live there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "runs" / "pole"
        self._launchers: list[subprocess.Popen[str]] = []
        (folder / "pole.yaml").write_text(DOCUMENT)

    def gala(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `gala run pole.yaml ARGUMENTS`."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        launcher = subprocess.Popen(
            [sys.executable, str(FAKE_GALA), "run", "pole.yaml", *arguments], cwd=self.folder, text=True, **options
        )
        self._launchers.append(launcher)
        return launcher

    def says(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a `gala run` that ends by itself."""
        launcher = self.gala(*arguments)
        out, err = launcher.communicate(timeout=ENDS_SECONDS)
        return launcher.returncode, out, err

    def ends(self, launcher: subprocess.Popen[str], code: int) -> str:
        """Wait for the end; returns all that was written."""
        out, err = launcher.communicate(timeout=ENDS_SECONDS)
        assert launcher.returncode == code, out + err
        return out + err

    def script(self, rank: int | str, *lines: str) -> None:
        """What the fake worker of a rank (or of "all") does from now on."""
        path = self.folder / f"fake-{rank}"
        path.with_suffix(".new").write_text("\n".join(lines))
        path.with_suffix(".new").rename(path)

    def notes(self, rank: int, word: str | None = None) -> list[dict[str, Any]]:
        """What a rank's workers wrote down, oldest first."""
        try:
            lines = (self.run / f"learner-{rank}" / "notes.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        notes = [json.loads(line) for line in lines]
        return [note for note in notes if word is None or note["word"] == word]

    def started(self, *ranks: int, times: int = 1) -> None:
        eventually(lambda: all(len(self.notes(rank, "started")) >= times for rank in ranks))

    def pid(self, rank: int) -> int:
        return int(self.notes(rank, "started")[-1]["pid"])

    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.run / "run.json").read_text()))

    def uid(self) -> str | None:
        """Of the run that is there; None while one makes room for another."""
        try:
            return str(self.record()["uid"])
        except FileNotFoundError:
            return None

    def clean_up(self) -> None:
        end_all(self._launchers, self.folder)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second is said of one that went after the file was opened
        return False


def frozen(pid: int) -> bool:
    """Whether a process is stopped by SIGSTOP."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def ignores_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn"))
    return bool(int(ignored, 16) >> (signal.SIGTERM - 1) & 1)


def end_all(launchers: Sequence[subprocess.Popen[str]], folder: Path) -> None:
    """Kills launchers, and the fake workers that they have left behind anywhere below a folder."""
    for launcher in launchers:
        launcher.kill()
        launcher.wait()
        for stream in (launcher.stdout, launcher.stderr):
            if stream is not None:
                stream.close()
    for notes in folder.rglob("learner-*/notes.jsonl"):
        for line in notes.read_text().splitlines():
            pid = json.loads(line)["pid"]
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if alive(pid) and b"fake_worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
