"""One worker as a subprocess: started in a process group of its own, logged to a file, stopped by signals.

Not in a session of its own: Linux (`sched_autogroup`) shares the cores out among sessions first, and does so badly
where they are more than the cores: half as many messages were mixed then (docs/performance.md).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

GUARD: Final = Path(__file__).with_name("guard.py")
LOG_TAIL: Final = 16_384
"""Bytes of a log that are searched for its last line."""


class WorkerProcess:
    """A running (or exited) subprocess; not restarted, a new one takes its place.

    Must be created by the launcher's main thread: the kernel ties PR_SET_PDEATHSIG to the thread that forked.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *command],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # Ctrl-C in a terminal is for the launcher
            )

    @property
    def pid(self) -> int:
        """The worker's process id, which is also the id of its process group."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; as `subprocess` has it, negative when a signal ended it."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask it to write its checkpoint, say farewell and exit."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End it and everything it started, at once. A stopped (SIGSTOP) process dies of this too."""
        if self._process.poll() is None:
            _kill_group(self._process.pid)

    def wait(self) -> int:
        """Wait for its end."""
        return self._process.wait()

    def last_line(self) -> str:
        """The last line it has written to its log since its start; empty if none."""
        with self._log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - LOG_TAIL))
            lines = log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def clear_leftovers(pids: Sequence[int], marker: Mapping[str, str], grace_seconds: float) -> list[int]:
    """See to it that none of `pids` is a worker of this run any more, left behind by a launcher that was killed.

    Such a worker has got its SIGTERM already, when the launcher died: it gets time to write its checkpoint, unless it
    is frozen. A pid may have been given to another program since, so a process counts only if its environment holds
    `marker`. Returns the pids that had to be killed, after they are gone.
    """
    if not hasattr(os, "pidfd_open"):  # not Linux: no PR_SET_PDEATHSIG and no /proc either
        return []
    killed = []
    deadline = time.monotonic() + grace_seconds
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if not _has_environment(pid, marker):
                continue
            grace = 0.0 if _is_frozen(pid) else max(0.0, deadline - time.monotonic())
            if not _ended_within(handle, grace):
                _kill_group(pid)
                _ended_within(handle, 10.0)
                killed.append(pid)
        finally:
            os.close(handle)
    return killed


def _has_environment(pid: int, marker: Mapping[str, str]) -> bool:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return all(f"{key}={value}".encode() in entries for key, value in marker.items())


def _is_frozen(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


def _ended_within(handle: int, seconds: float) -> bool:
    # A pidfd becomes readable when its process has ended; poll, unlike select, takes any descriptor's number.
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
