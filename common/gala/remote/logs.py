"""`gala logs`: what the pods of a run print, side by side, also over the replacement of a pod."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from gala.errors import GalaError, UsageError
from gala.names import MAX_LEARNERS
from gala.remote.cluster import Cluster, Pod
from gala.remote.view import Run

RESULTS: Final = "results"
POLL_SECONDS: Final = 1.0
"""Between two looks for new pods while following."""

Write = Callable[[str], None]


def which(rank: str | None) -> Callable[[Pod], bool]:
    """The pods meant by the argument RANK: a learner's, `results`, or all.

    Raises: UsageError.
    """
    if rank is None:
        return lambda pod: True
    if rank == RESULTS:
        return lambda pod: pod.rank is None
    if not (rank.isascii() and rank.isdigit() and int(rank) < MAX_LEARNERS):
        raise UsageError(f"{rank} is no rank: give 0 to {MAX_LEARNERS - 1}, or results for the pod that evaluates")
    return lambda pod: pod.rank == int(rank)


def show(cluster: Cluster, name: str, *, rank: str | None, tail: int | None, write: Write, note: Write) -> None:
    """Write the logs as they are now.

    Args:
        tail: only so many lines of each, the last.
        write: gets each line.
        note: gets what there is to say about pods without a log.

    Raises: UsageError when there is no such pod.
    """
    run = Run.of(cluster.get(name))
    pods = _pods(cluster, run, which(rank))
    if not pods:
        raise UsageError(_nothing(run, rank))
    for pod in pods:
        if not pod.started:
            note(f"{pod.name} has no log yet: {pod.reason}")
            continue
        prefix = _prefix(pod, alone=rank is not None)
        for line in cluster.log_lines(pod, tail=tail):
            write(prefix + line)


def follow(cluster: Cluster, name: str, *, rank: str | None, tail: int | None, write: Write, note: Write) -> None:
    """Write the logs as they grow, of pods that come later too, until the run has ended. Arguments as of `show`."""
    wanted = which(rank)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    readers: dict[str, _Reader] = {}
    waiting: set[str] = set()
    run = Run.of(cluster.get(name))
    while True:
        pods = _pods(cluster, run, wanted)
        for pod in pods:
            reader = readers.get(pod.uid)
            if pod.started and (reader is None or reader.broken):
                readers[pod.uid] = _Reader(cluster, pod, _prefix(pod, alone=rank is not None), tail, reader, lines)
            elif not pod.started and pod.uid not in waiting:
                waiting.add(pod.uid)
                note(f"{pod.name} has no log yet: {pod.reason}")
        _drain(lines, write, POLL_SECONDS)
        run = Run.of(cluster.get(name))
        if run.ended and not any(reader.alive for reader in readers.values()):
            _drain(lines, write, 0.0)
            if not readers:
                raise UsageError(_nothing(run, rank))
            return


class _Reader:
    """Follows the log of one pod, on a thread of its own, to its end."""

    def __init__(
        self,
        cluster: Cluster,
        pod: Pod,
        prefix: str,
        tail: int | None,
        earlier: _Reader | None,
        lines: queue.SimpleQueue[str],
    ) -> None:
        self.broken = False
        """The connection broke before the log's end."""
        self._heard = time.monotonic()
        # After a broken connection from about where it broke, rather a line twice than one missing.
        self._since = None if earlier is None else max(1, round(time.monotonic() - earlier._heard) + 1)
        self._arguments = (cluster, pod, prefix, tail if earlier is None else None, lines)
        self._thread = threading.Thread(target=self._read, name=f"log of {pod.name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether more may come."""
        return self._thread.is_alive()

    def _read(self) -> None:
        cluster, pod, prefix, tail, lines = self._arguments
        try:
            for line in cluster.log_lines(pod, follow=True, tail=tail, since_seconds=self._since):
                self._heard = time.monotonic()
                lines.put(prefix + line)
        except GalaError:
            self.broken = True


def _pods(cluster: Cluster, run: Run, wanted: Callable[[Pod], bool]) -> Sequence[Pod]:
    return [pod for pod in cluster.pods(run.name) if pod.run_uid in ("", run.uid) and wanted(pod)]


def _prefix(pod: Pod, *, alone: bool) -> str:
    if alone:
        return ""
    return f"[{RESULTS if pod.rank is None else pod.rank}] "


def _drain(lines: queue.SimpleQueue[str], write: Write, seconds: float) -> None:
    """Write what comes within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            write(lines.get(timeout=max(0.0, deadline - time.monotonic())) if seconds else lines.get_nowait())
        except queue.Empty:
            return


def _nothing(run: Run, rank: str | None) -> str:
    which_one = "pod" if rank is None else "results pod" if rank == RESULTS else f"learner {rank}"
    why = f"{run.state}: {run.message}" if run.message else run.state
    return f"{run.name} has no {which_one} in the cluster ({why})"
