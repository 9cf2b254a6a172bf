"""Recording for the study of gossip: how large each update was, what was mixed, and parameters and gradients now and
then. `gala.diagnostics` says what the files hold; `gala.report` computes the epsilon-ball and correlations from them.

How an algorithm uses it (`open_diagnostics` answers None when the run does not ask for it):

    diagnostics = open_diagnostics(spec, learner_dir, rank=..., incarnation=..., num_parameters=P)
    if diagnostics: diagnostics.start(counters.updates, flat.trainable)       # once, in begin(), before any update
    while training:
        update = a2c.update(rollout, progress, measure_update=measure or diagnostics is not None)
        counters.updates += 1
        ...mixing = gossip.mix(flat.vector), where it is due...
        if diagnostics:
            diagnostics.update(counters.updates, update.step.update_norm, mixing)     # at every update, in order
            if diagnostics.is_due(counters.updates):                                  # after the mixing
                diagnostics.snapshot(counters.updates, flat.trainable, flat.gradient)
    if diagnostics: diagnostics.close()

A2C over several ranks gives the gradient of its own shard: a copy of `flat.gradient` from before the all-reduce, taken
when `is_due(counters.updates + 1)`; its mixing is None.

What is given is copied before a call returns. A thread writes; it never holds up the training: where the disk does not
keep up, snapshots are left out, and a trace that would lose a line ends instead. What is on the disk is bounded: beyond
`diagnostics.maxSnapshots` the interval doubles and the snapshots in between go, on all ranks at the same version.
"""

from __future__ import annotations

import json
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import safetensors.torch
import torch
from torch import Tensor

from gala import atomic
from gala import diagnostics as names
from gala.spec import RunSpec

log = logging.getLogger(__name__)

MAX_QUEUED_SNAPSHOTS: Final = 4
"""Copies that may wait for the disk."""
MAX_BUFFERED_UPDATES: Final = 100_000
"""Lines of the trace that may wait for the disk: seconds to minutes of training."""
WRITE_SECONDS: Final = 1.0
"""How often the trace is handed to the operating system: a kill -9 costs so much of it."""

_SNAPSHOT: Final = re.compile(r"snapshot-\d+-(\d{12,})\.safetensors")


class Mixed(Protocol):
    """What this module reads of a mixing; `gala_worker.gossip.peer.Mixing` is one."""

    @property
    def peers(self) -> Sequence[int]:
        """Whose messages were mixed in."""

    @property
    def versions(self) -> Sequence[int]:
        """Their versions."""

    @property
    def incarnations(self) -> Sequence[int]:
        """Which process of each peer it was."""


def open_diagnostics(
    spec: RunSpec, learner_dir: Path, *, rank: int, incarnation: int, num_parameters: int
) -> Diagnostics | None:
    """The recorder of a learner; None when `spec.diagnostics` is off."""
    every = spec.diagnostics.every_updates
    if every is None:
        return None
    return Diagnostics(
        learner_dir / names.DIRECTORY,
        rank=rank,
        incarnation=incarnation,
        every_updates=every,
        num_parameters=num_parameters,
        max_snapshots=spec.diagnostics.max_snapshots,
        wire=spec.gossip.precision,
        mixing=spec.gossip.mixing,
    )


class Diagnostics:
    """Records one life of a learner. Belongs to the learner thread."""

    def __init__(
        self,
        directory: Path,
        *,
        rank: int,
        incarnation: int,
        every_updates: int,
        num_parameters: int,
        max_snapshots: int = 200,
        wire: str = "float32",
        mixing: str = "average",
    ) -> None:
        """Writes nothing yet.

        Args:
            every_updates: a snapshot at every version that is a multiple of it, while there are few.
            num_parameters: P.
            max_snapshots: how many are kept, over all lives of this rank.
            wire: number format of messages, for the record.
            mixing: average or push-sum, likewise.
        """
        self._directory = directory
        self._identity = {"rank": rank, "incarnation": incarnation}
        self._incarnation = incarnation
        self._num_parameters = num_parameters
        self._kind = {"wire": wire, "mixing": mixing}
        self._interval = every_updates
        self._limit = max_snapshots
        self._last = 0
        self._versions: set[int] = set()
        self._lines: list[str] = []
        self._broken = False
        self._lock = threading.Lock()
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(MAX_QUEUED_SNAPSHOTS)
        self._next_write = 0.0
        self._left_out = 0
        self._thread: threading.Thread | None = None

    @property
    def interval(self) -> int:
        """Updates between two snapshots, as of now."""
        return self._interval

    def start(self, version: int, parameters: Tensor) -> None:
        """Begins the trace of this life.

        Args:
            version: the learner's update count before its first update.
            parameters: [P], as restored.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self._versions = {
            int(match[1]) for path in self._directory.iterdir() if (match := _SNAPSHOT.fullmatch(path.name))
        }
        header = {
            "format": names.TRACE_FORMAT,
            **self._identity,
            "version": version,
            "parameters": self._num_parameters,
            **self._kind,
        }
        self._lines.append(json.dumps(header) + "\n")
        self._last = version
        self._thread = threading.Thread(target=self._work, name="diagnostics", daemon=True)
        self._thread.start()
        content = {names.TENSOR_PARAMETERS: _copy(parameters)}
        self._jobs.put(partial(self._save, names.start_file(self._incarnation), content))
        self._thin()

    def is_due(self, version: int) -> bool:
        """Whether a snapshot is to be taken at this version."""
        return version % self._interval == 0

    def update(self, version: int, update_norm: float | None, mixing: Mixed | None) -> None:
        """One update and what was mixed in after it; to be called at every update.

        Args:
            version: the update count after the update.
            update_norm: 2-norm of the optimiser's change of the parameters [P].
            mixing: None where nothing was mixed. Where the run averages, the learner and its m messages count
                1 / (1 + m) each.

        Raises:
            ValueError: there is no norm, or a version was left out.
        """
        if update_norm is None:
            raise ValueError("diagnostics need the norm of every update: call update(..., measure_update=True)")
        if version != self._last + 1:
            raise ValueError(f"version {version} follows {self._last} in a trace")
        self._last = version
        line = f"[{version}, {update_norm:.9g}, {self._mixed(mixing)}]\n"
        with self._lock:
            if len(self._lines) < MAX_BUFFERED_UPDATES and not self._broken:
                self._lines.append(line)
            elif not self._broken:
                self._broken = True  # a trace with a gap would be worse than a short one
                log.warning("the diagnostics' trace ends at version %s: the disk does not keep up", version - 1)
        if (now := time.monotonic()) >= self._next_write:
            self._next_write = now + WRITE_SECONDS
            self._try(self._append)

    def snapshot(self, version: int, parameters: Tensor, gradient: Tensor) -> None:
        """Keeps what the learner is at `version`, for which `is_due`.

        Args:
            parameters: [P] right after the mixing.
            gradient: [P] of the update, before clipping.
        """
        if self._jobs.full():
            self._leave_out(version)
            return
        content = {names.TENSOR_PARAMETERS: _copy(parameters), names.TENSOR_GRADIENT: _copy(gradient)}
        self._versions.add(version)
        self._try(partial(self._save, names.snapshot_file(self._incarnation, version), content))
        self._thin()

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Writes out what is there, waiting at most so long for the disk."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._try(partial(self._sweep, self._interval))
        try:
            self._jobs.put(None, timeout=timeout_seconds)
        except queue.Full:
            log.warning("the diagnostics' last records are lost: the disk does not answer")
            return
        thread.join(timeout_seconds)

    def _thin(self) -> None:
        """Doubles the interval while there are too many snapshots; the files go on the other thread."""
        while len(self._versions) > self._limit:
            self._interval *= 2
            kept = {version for version in self._versions if version % self._interval == 0}
            self._versions = kept
            self._try(partial(self._sweep, self._interval))

    def _mixed(self, mixing: Mixed | None) -> str:
        if mixing is None:
            return "[]"
        count = len(mixing.peers)
        weight = 1 / (1 + count) if self._kind["mixing"] == "average" else None
        messages = zip(mixing.peers, mixing.incarnations, mixing.versions, [weight] * count, strict=True)
        return json.dumps([list(message) for message in messages])

    def _try(self, job: Callable[[], None]) -> None:
        with suppress(queue.Full):  # a later job does the same: lines wait in memory, a sweep takes all that is left
            self._jobs.put_nowait(job)

    def _leave_out(self, version: int) -> None:
        self._left_out += 1
        if self._left_out == 1:
            log.warning("a snapshot for the diagnostics is left out at version %s: the disk does not keep up", version)

    # ---------------------------------------------------------------- the other thread

    def _work(self) -> None:
        failing = False
        while True:
            job = self._jobs.get()
            try:
                (job or self._append)()
                failing = False
            except OSError as error:
                if not failing:
                    log.warning("cannot write diagnostics (%s); training goes on without", error)
                failing = True
            if job is None:
                return

    def _append(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
        path = self._directory / names.trace_file(self._incarnation)
        try:
            with path.open("a", encoding="ascii") as file:
                file.write("".join(lines))
        except OSError:
            with self._lock:
                self._broken = True  # whatever got lost, nothing is to follow it
            raise

    def _save(self, name: str, content: dict[str, Tensor]) -> None:
        """A reader finds all of the file or none; it need not survive a loss of power, so nothing is flushed."""
        atomic.replace(self._directory / name, safetensors.torch.save(content), durable=False)

    def _sweep(self, interval: int) -> None:
        for path in list(self._directory.iterdir()):
            match = _SNAPSHOT.fullmatch(path.name)
            if match and int(match[1]) % interval:
                path.unlink(missing_ok=True)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
