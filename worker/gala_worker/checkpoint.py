"""What a learner needs to go on after a kill -9: tensors as safetensors, everything else as JSON; never pickle.

    checkpoints/step-000001000000/   the global step at which it was taken, 12 digits, so that names sort by age
        state.safetensors            flat parameters, optimiser state, the state of the action generator
        state.json                   format, schema, counters; size and SHA-256 of state.safetensors

Place in the flow: `worker.py` saves at every multiple of `checkpoint.everySteps` and when it is told to stop, and loads
at start. The same content as bytes (`dumps`, `loads`) is what a joining learner fetches from a neighbour.

A checkpoint is written under a name that no reader looks at, flushed to the disk, then renamed. So at any moment, also
in the middle of a save, the newest complete checkpoint is there; a kill costs at most the work since the last save.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import shutil
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
from torch import Tensor

from gala import atomic, names
from gala.errors import CheckpointError
from gala_worker import files

log = logging.getLogger(__name__)

FORMAT: Final = "gala-checkpoint/1"
"""Rises when a reader of the old format would misread the new one."""
VECTOR: Final = "vector"
"""The tensor that every checkpoint has: `FlatState.vector`, `[N]` float32."""
MAX_RECORD_BYTES: Final = 16 * 2**20
"""state.json is counters, not data; a larger one is not ours."""
MAX_STATE_BYTES: Final = 2 * 2**30
"""The default bound on a state that a stranger sends."""

_MAGIC: Final = b"GALASTAT"
_HEADER: Final = struct.Struct("<8s32sQ")  # magic, SHA-256 of what follows the header, length of the record
_NAME: Final = re.compile(r"step-(\d{12,})(\.replaced)?")
_ABANDONED: Final = ".partial-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A learner's state at one moment. It holds copies: the learner may go on while somebody reads it."""

    tensors: dict[str, Tensor]
    """Flat and named: `vector`, and whatever else the learner keeps as numbers (`optimizer.square_average`, ...)."""
    counters: dict[str, Any] = field(default_factory=dict)
    """Whatever is not a tensor: steps, updates, topology epoch, progress map, generator states. Must be JSON."""
    schema_hash: str
    """`FlatState.schema.hash`: a checkpoint of another network is not loaded."""
    global_steps: int = 0
    """The run's steps when it was taken, as this learner saw them."""


def save(directory: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Adds `checkpoint` to `directory` and removes all but the newest `keep` up to its step; returns its folder.

    Those of a later step are of another life, and could not be used when this one began: they are left alone, and do
    not count, or this life would keep none of its own.

    `directory` belongs to one learner: two writers would remove each other's unfinished work.

    Raises:
        CheckpointError: it cannot be written, or its counters are not JSON. The older checkpoints are still there.
    """
    target = directory / names.checkpoint_directory(checkpoint.global_steps)
    partial = directory / f"{_ABANDONED}{target.name}-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(directory)
        partial.mkdir()
        tensors = _tensor_bytes(checkpoint.tensors)
        atomic.write_file(partial / names.CHECKPOINT_TENSORS_FILE, tensors)
        atomic.write_file(partial / names.CHECKPOINT_RECORD_FILE, _record_bytes(checkpoint, tensors))
        atomic.sync_directory(partial)
        _publish(partial, target)
        atomic.sync_directory(directory)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"cannot write the checkpoint {target}: {error.strerror or error}") from error
    of_this_life = [path for path in candidates(directory) if _steps(path) <= checkpoint.global_steps]
    for path in of_this_life[max(keep, 1) :]:
        _remove(path)
    return target


def load_latest(directory: Path, schema_hash: str) -> Checkpoint | None:
    """The newest checkpoint in `directory` that is complete and fits; None if there is none.

    One that is truncated, foreign or holds values that are not finite is passed over with a warning, and the one
    before it is tried.
    """
    for path in candidates(directory):
        try:
            return load(path, schema_hash)
        except CheckpointError as error:
            log.warning("%s; trying the one before it", error)
    return None


def load(path: Path, schema_hash: str | None = None) -> Checkpoint:
    """Reads the checkpoint folder `path`; with `schema_hash`, only if it is of that network.

    Raises:
        CheckpointError: it is truncated, foreign, or cannot be read.
    """
    tensors_file = path / names.CHECKPOINT_TENSORS_FILE
    record_file = path / names.CHECKPOINT_RECORD_FILE
    try:
        with _open(record_file) as file:
            content = file.read(MAX_RECORD_BYTES + 1)
        if len(content) > MAX_RECORD_BYTES:
            raise CheckpointError(f"{record_file.name} has more than {MAX_RECORD_BYTES:,} bytes: no checkpoint record")
        record = _parse_record(content, schema_hash)
        with _open(tensors_file) as file:
            size = os.fstat(file.fileno()).st_size
            if size != record["tensors"]["size"]:
                raise CheckpointError(f"has {size:,} of {record['tensors']['size']:,} bytes")
            content = file.read(size)  # safetensors opens no path that is not UTF-8
        if hashlib.sha256(content).hexdigest() != record["tensors"]["sha256"]:
            raise CheckpointError("its content is not what was written")
        return _checkpoint(record, safetensors.torch.load(content))
    except FileNotFoundError as error:
        raise CheckpointError(f"refusing the checkpoint {path}: no {Path(error.filename).name} in it") from error
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"refusing the checkpoint {path}: its tensors cannot be read: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"refusing the checkpoint {path}: {error}") from error


def candidates(directory: Path) -> list[Path]:
    """The checkpoint folders in `directory`, newest first, whether they can be read or not."""
    try:
        found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
    except OSError:
        return []
    # "step-X" comes before "step-X.replaced": of the same step, the newer content first.
    return sorted(found, key=lambda path: (_steps(path), path.suffix == ""), reverse=True)


def _steps(path: Path) -> int:
    """The step in the name of a checkpoint folder."""
    return int(path.stem.rpartition("-")[2])


def dumps(checkpoint: Checkpoint) -> bytes:
    """`checkpoint` as one blob, for a neighbour that joins.

    Raises:
        CheckpointError: the counters are not JSON.
    """
    tensors = _tensor_bytes(checkpoint.tensors)
    record = _record_bytes(checkpoint, tensors)
    digest = hashlib.sha256(record)
    digest.update(tensors)
    return _HEADER.pack(_MAGIC, digest.digest(), len(record)) + record + tensors


def loads(blob: bytes, schema_hash: str | None = None, *, max_bytes: int = MAX_STATE_BYTES) -> Checkpoint:
    """What `dumps` gave. Made for bytes from a stranger: nothing is run, and no size is believed before it is checked.

    Raises:
        CheckpointError: it is too large, truncated, damaged, of another network, or holds values that are not finite.
    """
    if len(blob) > max_bytes:
        raise CheckpointError(f"refusing a state of {len(blob):,} bytes: at most {max_bytes:,} are accepted")
    if len(blob) < _HEADER.size:
        raise CheckpointError("refusing a state that is shorter than its header")
    magic, digest, record_size = _HEADER.unpack_from(blob)
    if magic != _MAGIC:
        raise CheckpointError("refusing a state that GALA did not write")
    content = memoryview(blob)[_HEADER.size :]
    if record_size > min(len(content), MAX_RECORD_BYTES):
        raise CheckpointError("refusing a truncated state")
    if hashlib.sha256(content).digest() != digest:
        raise CheckpointError("refusing a state whose content is not what was sent")
    try:
        record = _parse_record(bytes(content[:record_size]), schema_hash)
        tensors = safetensors.torch.load(bytes(content[record_size:]))
        return _checkpoint(record, tensors)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"refusing a state whose tensors cannot be read: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"refusing a state: {error}") from error


def _open(path: Path) -> io.BufferedReader:
    """Opens a regular file and nothing else: reading a pipe would wait for a writer, a device might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path.name} is no regular file")
    return os.fdopen(descriptor, "rb")


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save(files.plain_tensors(tensors), metadata={"format": FORMAT})


def _record_bytes(checkpoint: Checkpoint, tensors: bytes) -> bytes:
    record = {
        "format": FORMAT,
        "schema": checkpoint.schema_hash,
        "globalSteps": checkpoint.global_steps,
        "counters": checkpoint.counters,
        "tensors": {"size": len(tensors), "sha256": hashlib.sha256(tensors).hexdigest()},
    }
    try:
        return json.dumps(record, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"a checkpoint's counters must be JSON: {error}") from error


def _parse_record(data: bytes, schema_hash: str | None) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its record is not JSON: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(f"its format is not {FORMAT}")
    tensors = record.get("tensors")
    if not (
        isinstance(record.get("schema"), str)
        and isinstance(record.get("globalSteps"), int)
        and isinstance(record.get("counters"), dict)
        and isinstance(tensors, dict)
        and isinstance(tensors.get("size"), int)
        and isinstance(tensors.get("sha256"), str)
    ):
        raise CheckpointError("its record is incomplete")
    if schema_hash is not None and record["schema"] != schema_hash:
        raise CheckpointError(
            f"it is of another network (schema {record['schema'][:12]}, ours is {schema_hash[:12]}): "
            "environment or policy have changed since"
        )
    return record


def _checkpoint(record: dict[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    if (name := files.not_finite(tensors)) is not None:
        raise CheckpointError(f"{name} holds values that are not finite numbers ({tensors[name].dtype})")
    return Checkpoint(
        tensors=tensors,
        counters=record["counters"],
        schema_hash=record["schema"],
        global_steps=record["globalSteps"],
    )


def _publish(partial: Path, target: Path) -> None:
    """Renames `partial` to `target`; a `target` that is there stays loadable until the new one has its name."""
    if not target.exists():
        partial.rename(target)
        return
    replaced = target.with_name(target.name + ".replaced")
    _remove(replaced)
    target.rename(replaced)
    partial.rename(target)
    _remove(replaced)


def _remove(path: Path) -> None:
    """First out of sight of the readers, then off the disk: a kill in between leaves no half checkpoint to find."""
    if not path.exists():
        return
    hidden = path.with_name(f"{_ABANDONED}{path.name}-{os.getpid()}-removed")
    try:
        path.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        log.warning("cannot remove the old checkpoint %s: %s", path, error)


def _remove_abandoned(directory: Path) -> None:
    """What a killed learner left behind."""
    for path in directory.glob(f"{_ABANDONED}*"):
        shutil.rmtree(path, ignore_errors=True)
