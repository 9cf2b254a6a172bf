"""Everything about a learner that outlives a process, or that a joining neighbour needs.

Place in the flow: `worker.py` starts from one of these (its own checkpoint, a neighbour's state or the seed) and
captures one at every checkpoint and for every joiner.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gala import names
from gala.errors import CheckpointError
from gala_worker.checkpoint import VECTOR, Checkpoint
from gala_worker.flat import FlatState

log = logging.getLogger(__name__)

ACTION_GENERATOR = "generator.actions"


@dataclass(slots=True)
class Counters:
    """What a learner counts. Belongs to the learner thread."""

    updates: int = 0
    """Updates of the parameters; the version of what it offers to its neighbours."""
    steps: int = 0
    """Agent decisions of this rank, over all its lives."""
    skipped_updates: int = 0
    """Of the updates, those that changed nothing: something was not finite. See `skipped`."""
    episodes: int = 0
    wall_seconds: float = 0.0
    """Time in training since the run's first start, without the time it was stopped."""
    epoch: int = 0
    progress: dict[int, int] = field(default_factory=dict)
    """Steps of every rank, as far as this learner knows."""

    @property
    def global_steps(self) -> int:
        """Agent decisions of all learners together, as far as this learner knows."""
        return sum(self.progress.values())


def capture(
    flat: FlatState,
    optimizer_state: Mapping[str, Tensor],
    counters: Counters,
    generator: torch.Generator | None = None,
    *,
    weight: float = 1.0,
) -> Checkpoint:
    """A copy of the learner's state; with `generator` it is a checkpoint, without it is what a joiner gets.

    Args:
        weight: push-sum's; for those who average checkpoints. A learner starts with 1.0 again.
    """
    kept = {VECTOR: flat.vector, **optimizer_state}
    tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in kept.items()}
    if generator is not None:
        tensors[ACTION_GENERATOR] = generator.get_state()
    return Checkpoint(
        tensors=tensors,
        counters={
            "updates": counters.updates,
            "steps": counters.steps,
            "skippedUpdates": counters.skipped_updates,
            "episodes": counters.episodes,
            "wallSeconds": counters.wall_seconds,
            "epoch": counters.epoch,
            "progress": {str(rank): steps for rank, steps in counters.progress.items()},
            "weight": weight,
        },
        schema_hash=flat.schema.hash,
        global_steps=counters.global_steps,
    )


def restore(
    checkpoint: Checkpoint,
    rank: int,
    flat: FlatState,
    optimizer_state: Mapping[str, Tensor],
    *,
    also: Iterable[Checkpoint] = (),
) -> Counters:
    """Puts a captured state into place and returns its counters.

    What `also` know of the run's progress counts too: of a joiner's own checkpoint and a neighbour's state, either may
    have heard more of some rank. A neighbour's state has no generator, so its episodes and skipped updates are not
    this learner's.

    Raises:
        CheckpointError: it lacks something, or has other shapes. Nothing was changed.
    """
    tensors, counters = _read(checkpoint, flat, optimizer_state)
    for known in also:
        for other, steps in _counters(known.counters).progress.items():
            counters.progress[other] = max(steps, counters.progress.get(other, 0))
    counters.steps = counters.progress.get(rank, 0)
    if ACTION_GENERATOR not in checkpoint.tensors:
        counters.episodes = counters.skipped_updates = 0
    for own, found in tensors:
        own.copy_(found)
    return counters


def restore_furthest(
    candidates: Iterable[Checkpoint | None],
    rank: int,
    flat: FlatState,
    optimizer_state: Mapping[str, Tensor],
) -> tuple[Checkpoint, Counters] | None:
    """Puts the one with the most global steps into place; returns it and its counters, as `restore` does.

    One that cannot be used is passed over with a warning, and what it knows of the run's progress does not count.
    None: there is none that can be used, and nothing was changed.
    """
    usable = []
    for candidate in filter(None, candidates):
        try:
            _read(candidate, flat, optimizer_state)
        except CheckpointError as error:
            log.warning("cannot start from a state: %s", error)
        else:
            usable.append(candidate)
    if not usable:
        return None
    furthest = max(usable, key=lambda found: found.global_steps)
    others = [other for other in usable if other is not furthest]
    return furthest, restore(furthest, rank, flat, optimizer_state, also=others)


def _read(
    checkpoint: Checkpoint, flat: FlatState, optimizer_state: Mapping[str, Tensor]
) -> tuple[list[tuple[Tensor, Tensor]], Counters]:
    """What goes where, and the counters; CheckpointError if something is missing or has another shape."""
    own = {VECTOR: flat.vector, **optimizer_state}
    return [(tensor, _tensor(checkpoint, name, tensor)) for name, tensor in own.items()], _counters(checkpoint.counters)


def _tensor(checkpoint: Checkpoint, name: str, like: Tensor) -> Tensor:
    tensor = checkpoint.tensors.get(name)
    if tensor is None or tensor.shape != like.shape or tensor.dtype != like.dtype:
        found = "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        raise CheckpointError(f"{name} should be {like.dtype} {list(like.shape)}, found {found}")
    return tensor


def _counters(document: Mapping[str, object]) -> Counters:
    try:
        progress = document["progress"]
        if not isinstance(progress, Mapping):
            raise TypeError("progress is not a map")
        counters = Counters(
            updates=int(document["updates"]),  # type: ignore[call-overload]
            steps=int(document["steps"]),  # type: ignore[call-overload]
            skipped_updates=int(document.get("skippedUpdates", 0)),  # type: ignore[call-overload]
            episodes=int(document["episodes"]),  # type: ignore[call-overload]
            wall_seconds=float(document["wallSeconds"]),  # type: ignore[arg-type]
            epoch=int(document["epoch"]),  # type: ignore[call-overload]
            progress={int(rank): int(steps) for rank, steps in progress.items()},
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"its counters cannot be read: {error}") from error
    own = (counters.updates, counters.skipped_updates, counters.steps, counters.episodes, counters.epoch)
    amounts = (*own, *counters.progress.values())
    if not all(0 <= amount < names.COUNT_LIMIT for amount in amounts):
        raise CheckpointError("its counters are negative or impossibly large")
    if not all(0 <= rank < names.MAX_LEARNERS for rank in counters.progress):
        raise CheckpointError("its progress has a rank that no run has")
    if not (math.isfinite(counters.wall_seconds) and counters.wall_seconds >= 0):
        raise CheckpointError(f"its wallSeconds cannot be {counters.wall_seconds}")
    return counters
