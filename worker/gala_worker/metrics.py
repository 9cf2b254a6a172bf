"""A learner's measurements: metrics.jsonl for the report, event files for TensorBoard, /metrics for Prometheus.

    train(...)  event(...)  evaluation(...)  ->  queue  ->  one thread  ->  metrics.jsonl, tensorboard/
                                             ->  the latest values in memory  ->  exposition(), by whoever is asked

Place in the flow: `worker.py` and its helpers call the first three, from any thread; `http.py` calls `exposition`.

Promise to the training loop: these calls neither block nor raise. A full disk costs metrics, is logged once, and
writing goes on when there is room again; if the thread cannot keep up, records are dropped and counted.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import torch

from gala import names
from gala_worker.event_file import EventFile
from gala_worker.exposition import LatestValues

if TYPE_CHECKING:  # so that metrics can be read and tested without simulators
    from gala_worker.evaluation import EvaluationResult

log = logging.getLogger(__name__)

MAX_QUEUED: Final = 4096
"""Records that wait for the disk; at one in five seconds, hours of a disk that hangs."""
MAX_PARTIAL_LINE: Final = 2**20
"""A line is far shorter, so that the last line's start lies within this many bytes of the end."""


class MetricsWriter:
    """One learner's records, to all three destinations."""

    def __init__(
        self,
        directory: Path,
        *,
        run: str,
        rank: int,
        incarnation: int,
        wall_seconds: Callable[[], float],
        clock: Callable[[], float] = time.time,
        tensorboard: bool = True,
    ) -> None:
        """Appends to what is in `directory`, the learner's folder.

        Args:
            directory: made when the first record is written.
            run: the run's name; with `rank` the labels of every Prometheus sample.
            wall_seconds: the time in training since the run's first start, stamped on every record that has none.
            clock: seconds since the epoch, likewise.
            tensorboard: whether event files are written.
        """
        self._stamp = {"rank": rank, "incarnation": incarnation}
        self._wall_seconds = wall_seconds
        self._clock = clock
        self._latest = LatestValues(run=run, rank=rank)
        self._sinks = [_GuardedSink(names.METRICS_FILE, lambda: JsonLines(directory / names.METRICS_FILE))]
        if tensorboard:
            self._sinks.append(_GuardedSink("event file", lambda: EventFile(directory / names.TENSORBOARD_DIRECTORY)))
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_QUEUED)
        self._closed = False
        self._abandoned = False
        self._num_dropped = 0
        """Records lost because the disk could not keep up."""
        self._thread = threading.Thread(target=self._drain, name="metrics", daemon=True)
        self._thread.start()

    def train(self, record: Mapping[str, Any]) -> None:
        """One line about the training, every few seconds: steps, losses, gossip. Leave `record` alone afterwards."""
        self._put("train", record)

    def evaluation(self, result: EvaluationResult, *, global_steps: int) -> None:
        """One line about a finished evaluation of the parameters that this learner had at `global_steps`."""
        self._put("evaluation", {"globalSteps": global_steps, **result.document()})

    def event(self, event: str, **details: Any) -> None:
        """One line about something that happened: started, resumed, ring, peer-gone, checkpoint, finished, ..."""
        self._put("event", {"event": event, **details})

    def expect(self, event: str) -> None:
        """This event is to come: until it does, Prometheus is told that there was none of it."""
        self._latest.expect(event)

    def exposition(self) -> bytes:
        """The latest values in Prometheus's text format."""
        return self._latest.exposition(num_dropped=self._num_dropped)

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Writes out what is queued, waiting at most so long for the disk. Later records are ignored."""
        if self._closed:
            return
        self._closed = True
        try:
            self._queue.put(None, timeout=timeout_seconds)
        except queue.Full:
            self._abandoned = True  # the disk hangs: should it ever answer, the thread ends
            return
        self._thread.join(timeout_seconds)

    def _put(self, kind: str, record: Mapping[str, Any]) -> None:
        if self._closed:
            return
        stamped = {
            "kind": kind,
            "time": self._clock(),
            "wallSeconds": self._wall_seconds(),
            **self._stamp,
            **record,
        }
        self._latest.update(stamped)
        try:
            self._queue.put_nowait(stamped)
        except queue.Full:
            if self._num_dropped == 0:
                log.warning("metrics are dropped: the disk does not keep up")
            self._num_dropped += 1

    def _drain(self) -> None:
        while (record := self._queue.get()) is not None:
            plain = to_json(record)
            for sink in self._sinks:
                sink.write(plain)
            if self._abandoned:
                break
        for sink in self._sinks:
            sink.close()


class Sink(Protocol):
    """Where records end up. Used by one thread."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Hands `record` to the operating system before it returns."""

    def close(self) -> None:
        """Ends it."""


class JsonLines:
    """A file with one JSON object a line. A line that a kill left unfinished is cut off when it is opened."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+", buffering=0)
        self._cut_unfinished_line()

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line.

        Raises:
            OSError: not all of it could be written.
        """
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if self._file.write(line) != len(line):
            raise OSError("a line was written in part")

    def close(self) -> None:
        self._file.close()

    def _cut_unfinished_line(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        start = max(0, size - MAX_PARTIAL_LINE)
        self._file.seek(start)
        tail = self._file.read(size - start)
        self._file.truncate(start + tail.rfind(b"\n") + 1)
        self._file.seek(0, os.SEEK_END)


class _GuardedSink:
    """A sink that is opened when needed, and again after a failure; a failure is logged once."""

    def __init__(self, name: str, make: Callable[[], Sink]) -> None:
        self._name = name
        self._make = make
        self._sink: Sink | None = None
        self._failing = False

    def write(self, record: Mapping[str, Any]) -> None:
        try:
            if self._sink is None:
                self._sink = self._make()
            self._sink.write(record)
        except Exception as error:  # whatever it is, it must not end the thread that other sinks depend on
            if not self._failing:
                log.warning("cannot write the %s (%s); training goes on without it", self._name, error)
            self._failing = True
            self.close()
            return
        if self._failing:
            log.info("writing the %s again", self._name)
            self._failing = False

    def close(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            try:
                sink.close()
            except OSError as error:
                log.debug("closing the %s: %s", self._name, error)


def to_json(value: Any) -> Any:
    """`value` with plain Python types only, and None for numbers that JSON cannot say (NaN, infinity)."""
    if isinstance(value, torch.Tensor | np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [to_json(item) for item in value]
    return str(value)
