"""A trained model as a file that others can use: safetensors, tensors by name, and what they belong to as metadata.

    learner-<rank>/final/model.safetensors   one learner's last parameters, written by `worker.py` at the end
    final/model.safetensors                  their average, written by `finalize`

Observation statistics are buffers of the policy and so are in the file: a policy without them would see other inputs.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gala import atomic, names
from gala.errors import CheckpointError
from gala.plan import RunPlan
from gala.spec import RunSpec
from gala_worker import files
from gala_worker.flat import FlatState, Schema
from gala_worker.state import Counters

FORMAT: Final = "gala-model/1"
MAX_WEIGHT: Final = float(names.MAX_LEARNERS)
"""Push-sum's weights add up to the number of learners."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A policy's tensors by name, and where they come from."""

    tensors: dict[str, Tensor]
    schema_hash: str
    """`FlatState.schema.hash` of the policy."""
    record: dict[str, Any]
    """JSON: run, globalSteps, and whatever else the writer knew."""


def export_model(
    learner_dir: Path, flat: FlatState, plan: RunPlan, rank: int, counters: Counters, *, weight: float = 1.0
) -> Path:
    """Writes a learner's `final/model.safetensors` and, for people, `final/model.json`; each is there whole or not.

    Args:
        weight: the learner's share of the average of all; not 1 with push-sum only.

    Raises:
        OSError: the disk does not take it.
    """
    record = {
        "run": plan.run_name,
        "uid": plan.run_uid,
        "rank": rank,
        "globalSteps": counters.global_steps,
        "steps": counters.steps,
        "updates": counters.updates,
        "episodes": counters.episodes,
        "wallSeconds": counters.wall_seconds,
        "weight": weight,
    }
    directory = learner_dir / names.FINAL_DIRECTORY
    path = save_model(directory / names.MODEL_FILE, flat.tensors(), flat.schema.hash, plan.spec, record)
    text = json.dumps({"schema": flat.schema.hash, **record}, indent=2) + "\n"
    atomic.replace(directory / names.MODEL_RECORD_FILE, text.encode())
    return path


def save_model(
    path: Path, tensors: Mapping[str, Tensor], schema_hash: str, spec: RunSpec, record: Mapping[str, Any]
) -> Path:
    """Writes one model file in one step, and makes its folder."""
    metadata = {
        "format": FORMAT,
        "schema": schema_hash,
        "spec": json.dumps(spec.model_dump(mode="json", by_alias=True)),
        "record": json.dumps(record),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.replace(path, safetensors.torch.save(files.plain_tensors(tensors), metadata=metadata))
    return path


def load_model(path: Path, schema: Schema | None = None) -> Model:
    """Reads a model file; with `schema`, only if it is of that policy.

    Raises:
        CheckpointError: it is missing, truncated, foreign, or holds values that are not finite.
    """
    try:
        content = path.read_bytes()  # safetensors opens no path that is not UTF-8
        tensors = safetensors.torch.load(content)
        metadata = _metadata(content)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not a model that GALA wrote")
        record = json.loads(metadata.get("record", "{}"))
    except OSError as error:
        raise CheckpointError(f"cannot read the model {path}: {error.strerror or error}") from error
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is truncated or no model: {error}") from error
    found = metadata.get("schema", "")
    if schema is not None and found != schema.hash:
        raise CheckpointError(f"{path} is of another network (schema {found[:12]}, expected {schema.hash[:12]})")
    if (name := files.not_finite(tensors)) is not None:
        raise CheckpointError(f"{path} holds values that are not finite numbers, in {name} ({tensors[name].dtype})")
    if schema is not None and not schema.describes(tensors):
        raise CheckpointError(f"{path} holds other tensors than its schema {found[:12]} says, by name, shape or type")
    return Model(tensors=tensors, schema_hash=found, record=record if isinstance(record, dict) else {})


def _metadata(content: bytes) -> dict[str, str]:
    """Of a safetensors file that has been read already: its header is JSON, after the header's length in 8 bytes."""
    (length,) = struct.unpack_from("<Q", content)
    metadata: dict[str, str] | None = json.loads(content[8 : 8 + length]).get("__metadata__")
    return metadata or {}


def share(record: Mapping[str, Any]) -> float:
    """A learner's share of an average, from what is recorded beside its parameters: its push-sum weight.

    A record that says nonsense, or is older than the weights, counts like any other.
    """
    weight = record.get("weight", 1.0)
    return float(weight) if isinstance(weight, int | float) and 0 < weight < MAX_WEIGHT else 1.0


def average(models: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The mean of every tensor, computed in float64 so that the order of the models does not matter.

    Whole numbers (counts) are taken from the first model. With `weights`, one positive number for each model, the mean
    is the weighted one: with push-sum it is this mean that gossip keeps (Kempe et al. 2003, protocol Push-Sum).

    Raises:
        CheckpointError: the models' names or shapes differ.
    """
    first = models[0]
    for model in models[1:]:
        if {n: t.shape for n, t in model.items()} != {n: t.shape for n, t in first.items()}:
            raise CheckpointError("models of different shapes cannot be averaged")
    each = torch.tensor(weights or [1.0] * len(models), dtype=torch.float64)
    mean = {}
    for name, tensor in first.items():
        if tensor.is_floating_point():
            stacked = torch.stack([model[name].double() for model in models])
            mean[name] = (torch.tensordot(each, stacked, dims=1) / each.sum()).to(tensor.dtype)
        else:
            mean[name] = tensor.clone()
    return mean
