"""`gala logs`: what the pods of a run print, side by side, also over the replacement of a pod."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeGuard

from gala.errors import GalaError, NotFoundError, UnreachableError, UsageError
from gala.names import MAX_LEARNERS
from gala.remote.cluster import Cluster, Pod
from gala.remote.view import Run

RESULTS: Final = "results"
POLL_SECONDS: Final = 1.0
"""Between two looks for new pods while following."""
MAX_LINES: Final = 4 * MAX_LEARNERS
"""That wait to be written. Then the readers wait too, and in the end the pods: a pager may be left open for hours."""

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
    """Write the logs as they grow, of pods that come later too, until the run has ended. Arguments as of `show`.

    A connection that breaks is made again; what else keeps a pod's log from being read is noted.

    Raises:
        UsageError: there was no such pod until the end.
        GalaError: the cluster does not answer, or lets not one of the logs be read.
    """
    wanted = which(rank)
    lines: queue.Queue[str] = queue.Queue(MAX_LINES)
    readers = _Readers(cluster, lines, tail=tail, alone=rank is not None, note=note)
    run, came = Run.of(cluster.get(name)), True
    try:
        while True:
            pods = _pods(cluster, run, wanted)
            readers.attend(pods)
            unfinished = readers.unfinished(pods)
            # The pods are those of after the end; who is finished has put its last line before `lines` is looked at.
            if run.ended and not came and not unfinished and lines.empty():
                break
            came = _drain(lines, write, POLL_SECONDS)
            run = Run.of(cluster.get(name))
    finally:
        readers.end()
    if not readers.found:
        raise UsageError(_nothing(run, rank))


class _Readers:
    """One for each pod that has a log."""

    def __init__(
        self, cluster: Cluster, lines: queue.Queue[str], *, tail: int | None, alone: bool, note: Write
    ) -> None:
        self._cluster = cluster
        self._lines = lines
        self._tail = tail
        self._alone = alone
        self._note = note
        self._readers: dict[str, _Reader] = {}
        self._said: set[tuple[str, str]] = set()
        self._told = threading.Event()

    @property
    def found(self) -> bool:
        """Whether a pod has had a log."""
        return bool(self._readers)

    def attend(self, pods: Sequence[Pod]) -> None:
        """Read on where there is something to read, and say of the other pods what keeps their logs from it.

        Raises: GalaError when it is so of all.
        """
        refused = [reader.error for reader in self._readers.values() if _is_refusal(reader.error)]
        if refused and len(refused) == len(self._readers):
            raise refused[0]
        for pod in pods:
            reader = self._readers.get(pod.uid)
            if reader is None and pod.started:
                prefix = _prefix(pod, alone=self._alone)
                self._readers[pod.uid] = _Reader(self._cluster, pod, prefix, self._tail, self._lines, self._told)
            elif reader is None:
                self._say_once(pod, f"{pod.name} has no log yet: {pod.reason}")
            elif isinstance(reader.error, UnreachableError):
                self._say_once(pod, f"{pod.name}: {reader.error}; trying again")
                reader.start()
            elif _is_refusal(reader.error):
                self._say_once(pod, f"{pod.name}: {reader.error}")

    def unfinished(self, pods: Sequence[Pod]) -> bool:
        """Whether a log that has an end is being read: while its pod runs, as that of the results, it has none."""
        endless = {pod.uid for pod in pods if pod.running}
        return any(reader.alive for uid, reader in self._readers.items() if uid not in endless)

    def end(self) -> None:
        """Tell all to end, which they do with their next line."""
        self._told.set()
        while not self._lines.empty():  # room for the line that each may be waiting to hand over
            self._lines.get_nowait()

    def _say_once(self, pod: Pod, text: str) -> None:
        if (pod.uid, text) not in self._said:
            self._said.add((pod.uid, text))
            self._note(text)


class _Reader:
    """Follows the log of one pod, on a thread of its own, to its end or until `told` to end."""

    def __init__(
        self,
        cluster: Cluster,
        pod: Pod,
        prefix: str,
        tail: int | None,
        lines: queue.Queue[str],
        told: threading.Event,
    ) -> None:
        self.error: GalaError | None = None
        """What it ended with instead of the log's end."""
        self._cluster = cluster
        self._pod = pod
        self._prefix = prefix
        self._tail = tail
        self._lines = lines
        self._told = told
        self._heard: float | None = None
        self.start()

    def start(self) -> None:
        """Read; after a broken connection from about where it broke, rather a line twice than one missing."""
        self.error = None
        tail, since = self._tail, None
        if self._heard is not None:
            tail, since = None, math.ceil(time.monotonic() - self._heard) + 1
        self._thread = threading.Thread(
            target=self._read, args=(tail, since), name=f"log of {self._pod.name}", daemon=True
        )
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether more may come."""
        return self._thread.is_alive()

    def _read(self, tail: int | None, since: int | None) -> None:
        try:
            for line in self._cluster.log_lines(self._pod, follow=True, tail=tail, since_seconds=since):
                if self._told.is_set():
                    return
                self._heard = time.monotonic()
                self._lines.put(self._prefix + line)
        except GalaError as error:
            self.error = error


def _is_refusal(error: GalaError | None) -> TypeGuard[GalaError]:
    """Whether trying again does not help: neither a broken connection nor a pod that is gone."""
    return error is not None and not isinstance(error, UnreachableError | NotFoundError)


def _pods(cluster: Cluster, run: Run, wanted: Callable[[Pod], bool]) -> Sequence[Pod]:
    return [pod for pod in cluster.pods(run.name) if pod.run_uid in ("", run.uid) and wanted(pod)]


def _prefix(pod: Pod, *, alone: bool) -> str:
    if alone:
        return ""
    return f"[{RESULTS if pod.rank is None else pod.rank}] "


def _drain(lines: queue.Queue[str], write: Write, seconds: float) -> bool:
    """Write what comes within `seconds`, and no longer, however fast more comes. Returns whether anything did."""
    deadline = time.monotonic() + seconds
    came = False
    while (left := deadline - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            break
        write(line)
        came = True
    return came


def _nothing(run: Run, rank: str | None) -> str:
    which_one = "pod" if rank is None else "results pod" if rank == RESULTS else f"learner {rank}"
    why = f"{run.state}: {run.message}" if run.message else run.state
    return f"{run.name} has no {which_one} in the cluster ({why})"
