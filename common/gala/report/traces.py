"""Reads what learners recorded for the study of gossip; `gala.diagnostics` says what is in the files.

Next in the flow: `radius` and `correlation`. Unlike the rest of a report, which shows what it can read, these compute
bounds: whatever is damaged here is refused, apart from a last line that is still being written.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gala import diagnostics as names
from gala.report.read import Run

Array = npt.NDArray[np.float64]

_TRACE = re.compile(r"trace-(\d+)\.jsonl")
_MAX_HEADER_BYTES = 1 << 20


class TraceError(ValueError):
    """A record from which nothing true can be computed. The message says which file, and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """One message in a mixing."""

    rank: int
    """Of its sender."""
    version: int
    """The sender's update count."""
    weight: float
    """Its share in the new parameters; NaN if it was not recorded."""
    incarnation: int | None = None
    """Of its sender; None if it was not recorded."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A file with parameters and, unless it is the start of a life, the gradient."""

    path: Path

    def parameters(self) -> Array:
        """[P].

        Raises: TraceError when the file cannot be read.
        """
        return read_tensor(self.path, names.TENSOR_PARAMETERS)

    def gradient(self) -> Array:
        """[P].

        Raises: TraceError when the file cannot be read.
        """
        return read_tensor(self.path, names.TENSOR_GRADIENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """What one process of a rank recorded. Update number t of it, from 0, has the version `version + 1 + t`."""

    rank: int
    incarnation: int
    version: int
    """The update count that it began with."""
    norms: tuple[float, ...]
    """Of every update."""
    mixed: tuple[tuple[Mixed, ...], ...]
    """What was mixed in right after every update."""
    start: Snapshot
    snapshots: Mapping[int, Snapshot]
    """By version."""
    wire: str = "float32"
    mixing: str = "average"

    @property
    def last_version(self) -> int:
        """The update count at the end of the trace."""
        return self.version + len(self.norms)


def read_traces(run: Run) -> dict[int, tuple[Life, ...]]:
    """The lives of every rank that recorded something, oldest first; empty if no rank did.

    Raises:
        TraceError: a trace is damaged.
    """
    found: dict[int, tuple[Life, ...]] = {}
    for learner in run.learners:
        directory = run.directory / f"learner-{learner.rank}" / names.DIRECTORY
        matches = (_TRACE.fullmatch(path.name) for path in directory.iterdir()) if directory.is_dir() else ()
        incarnations = sorted(int(match[1]) for match in matches if match)
        lives = tuple(life for incarnation in incarnations if (life := _read_life(directory, incarnation)))
        if lives:
            found[learner.rank] = lives
    return found


def snapshots_of(lives: tuple[Life, ...]) -> dict[int, tuple[int, Snapshot]]:
    """By version: the life, counted from 0, and its snapshot. A later life's replaces an earlier one's."""
    return {version: (i, snapshot) for i, life in enumerate(lives) for version, snapshot in life.snapshots.items()}


def read_tensor(path: Path, name: str) -> Array:
    """A float32 tensor of one dimension from a safetensors file, which needs no more than numpy.

    Raises:
        TraceError: there is no such file or tensor, or it is of another kind.
    """
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > _MAX_HEADER_BYTES:
                raise TraceError(f"{path}: not a safetensors file")
            entry = json.loads(file.read(size))[name]
            begin, end = entry["data_offsets"]
            if entry["dtype"] != "F32" or len(entry["shape"]) != 1:
                raise TraceError(f"{path}: {name} is {entry['dtype']} {entry['shape']}, expected one dimension of F32")
            file.seek(8 + size + begin)
            data = file.read(end - begin)
            if len(data) != 4 * entry["shape"][0]:
                raise TraceError(f"{path}: {name} is cut off")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(f"{path}: {name} cannot be read ({type(error).__name__}: {error})") from error
    return np.frombuffer(data, "<f4").astype(np.float64)


def _read_life(directory: Path, incarnation: int) -> Life | None:
    """None for a trace that has no whole line yet."""
    path = directory / names.trace_file(incarnation)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    if not lines:
        return None
    try:
        header = json.loads(lines[0])
        if header["format"] != names.TRACE_FORMAT:
            raise TraceError(f"{path}: is of format {header['format']}, this GALA reads {names.TRACE_FORMAT}")
        rank, version = int(header["rank"]), int(header["version"])
        wire, mixing = str(header["wire"]), str(header["mixing"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(f"{path}: line 1 is not the header of a trace") from error
    norms: list[float] = []
    mixed: list[tuple[Mixed, ...]] = []
    for number, line in enumerate(lines[1:], 2):
        try:
            said, norm, messages = json.loads(line)
            entries = tuple(_mixed(*message) for message in messages)
            norms.append(float(norm))
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise TraceError(f"{path}: line {number} is damaged") from error
        if said != version + number - 1:
            raise TraceError(f"{path}: line {number} is version {said}, expected {version + number - 1}")
        if not (math.isfinite(norms[-1]) and norms[-1] >= 0):
            raise TraceError(f"{path}: line {number}: an update cannot be {norms[-1]} long")
        mixed.append(entries)
    prefix = f"snapshot-{incarnation}-"
    return Life(
        rank=rank,
        incarnation=incarnation,
        version=version,
        norms=tuple(norms),
        mixed=tuple(mixed),
        start=Snapshot(directory / names.start_file(incarnation)),
        snapshots={
            int(path.stem.removeprefix(prefix)): Snapshot(path) for path in directory.glob(f"{prefix}*.safetensors")
        },
        wire=wire,
        mixing=mixing,
    )


def _mixed(rank: int, incarnation: int | None, version: int, weight: float | None) -> Mixed:
    share = math.nan if weight is None else float(weight)
    return Mixed(int(rank), int(version), share, None if incarnation is None else int(incarnation))
