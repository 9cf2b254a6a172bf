"""What an IMPALA actor sends: one recorded rollout as a fixed sequence of arrays, and its way into a learner's batch.

Place in the flow: an actor encodes what `rollout` recorded, `hub` carries the bytes, the learner decodes and joins
several into the `Batch` that `impala_update` learns from.

Every contribution of a run has the same size, which both sides compute from the run's document: T steps, B simulators,
the spaces, the memory's width. There is no header and nothing to parse, only little-endian arrays one behind the other,
the widest numbers first so that all are aligned. What arrives is checked as if it were hostile before anything uses it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gala.errors import MessageError, NotFiniteError
from gala_worker.gossip.messages import Reason, Refusal
from gala_worker.model.distributions import ActionDistribution, Bernoulli, Categorical
from gala_worker.rollout import Rollout

Arrays = dict[str, npt.NDArray[Any]]
Octets = bytes | bytearray | memoryview

MAX_REWARD: Final = 1e15
"""Returns of larger ones, and their squares, may not be numbers; the batch of all actors would be lost with them."""
_FLAGS: Final = ("terminated", "truncated", "valid", "starts")


class Batch(NamedTuple):
    """Recorded rollouts side by side, on the learner's device. N simulators of one or several actors."""

    observations: Tensor
    """[T + 1, N, ...]: uint8 images or float32 vectors; the last row is for the bootstrap."""
    actions: Tensor
    """[T, N, *event]"""
    parameters: Tensor
    """[T, N, A'] of the distributions that the actions were drawn from."""
    rewards: Tensor
    """float32 [T, N]"""
    terminated: Tensor
    """bool [T, N], like the next two."""
    truncated: Tensor
    valid: Tensor
    starts: Tensor
    """bool [T + 1, N]: this observation is the first of an episode."""
    state: Tensor | None
    """[N, H] of a recurrent policy before the first step."""

    @classmethod
    def of(cls, rollout: Rollout) -> Batch:
        """One recorded rollout, in its own memory, as it was acted.

        Raises: ValueError where it was not recorded.
        """
        seen = rollout.recording
        if seen is None:
            raise ValueError("the rollout has no recording")
        return cls(
            seen.observations,
            rollout.actions,
            seen.parameters,
            rollout.rewards,
            rollout.terminated,
            rollout.truncated,
            rollout.valid,
            seen.starts,
            seen.state,
        )


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class RolloutLayout:
    """Where what lies in a contribution; equal on both sides for equal arguments."""

    def __init__(
        self,
        steps: int,
        simulators: int,
        observation_space: gymnasium.Space[Any],
        actions: ActionDistribution,
        *,
        state_size: int | None = None,
    ) -> None:
        """`observation_space` is that of one simulator; `state_size` is H of a recurrent policy, None of others.

        Raises: ValueError for observations that are neither uint8 nor float32, which no simulators have.
        """
        if observation_space.dtype not in (np.uint8, np.float32) or observation_space.shape is None:
            raise ValueError(f"observations must be uint8 or float32, got {observation_space}")
        self._actions = actions
        over, after = (steps, simulators), (steps + 1, simulators)
        shapes: dict[str, tuple[tuple[int, ...], str]] = {
            "actions": ((*over, *actions.event_shape), "<i8" if actions.action_dtype == torch.int64 else "<f4"),
            "parameters": ((*over, actions.num_parameters), "<f4"),
            "rewards": (over, "<f4"),
            "terminated": (over, "u1"),
            "truncated": (over, "u1"),
            "valid": (over, "u1"),
            "starts": (after, "u1"),
            "observations": (
                (*after, *observation_space.shape),
                "u1" if observation_space.dtype == np.uint8 else "<f4",
            ),
        }
        if state_size is not None:
            shapes["state"] = ((simulators, state_size), "<f4")
        fields, offset = [], 0
        for name, (shape, code) in sorted(shapes.items(), key=lambda item: -np.dtype(item[1][1]).itemsize):
            fields.append(_Field(name, shape, np.dtype(code), offset))
            offset += fields[-1].num_bytes
        self._fields = tuple(fields)
        self.num_bytes = offset
        """Of every contribution."""

    def encode(self, rollout: Batch) -> list[memoryview]:
        """The arrays as bytes, in order: windows into the rollout's memory where it is the CPU's.

        Raises: ValueError for a rollout of another shape.
        """
        parts = []
        for field in self._fields:
            tensor: Tensor | None = getattr(rollout, field.name)
            if tensor is None:
                raise ValueError(f"the rollout has no {field.name}")
            if tensor.dtype == torch.bool:
                tensor = tensor.view(torch.uint8)
            array = np.ascontiguousarray(tensor.detach().cpu().numpy())
            if array.shape != field.shape or array.dtype != field.dtype:
                raise ValueError(
                    f"{field.name} must be {field.dtype} {list(field.shape)}, got {array.dtype} {list(array.shape)}"
                )
            parts.append(memoryview(array.data).cast("B"))
        return parts

    def inspect(self, payload: Octets) -> Refusal | None:
        """Why `decode` would not take it, if it would not."""
        try:
            self.decode(payload)
        except NotFiniteError as error:
            return Refusal(Reason.NOT_FINITE, str(error))
        except MessageError as error:
            return Refusal(Reason.MALFORMED, str(error))
        return None

    def decode(self, payload: Octets, *, num_steps: int | None = None) -> Arrays:
        """The arrays of a contribution, as windows into `payload`.

        `num_steps` is how many decisions its sender says are in it.
        Raises: MessageError for a payload of another size, numbers that are not finite, actions that the environment
            does not have, flags that are neither 0 nor 1, or another number of decisions. Nothing of it may be used.
        """
        content = memoryview(payload).cast("B")
        if len(content) != self.num_bytes:
            raise MessageError(f"a rollout of {len(content):,} bytes instead of {self.num_bytes:,}")
        arrays: Arrays = {}
        for field in self._fields:
            window = content[field.offset : field.offset + field.num_bytes]
            array = np.frombuffer(window, field.dtype).reshape(field.shape)
            if field.name in _FLAGS:
                if array.max() > 1:
                    raise MessageError(f"{field.name} in a rollout that are neither true nor false")
                array = array.view(np.bool_)
            elif field.dtype.kind == "f" and not np.isfinite(array).all():
                raise NotFiniteError(f"{field.name} in a rollout that are not finite")
            arrays[field.name] = array
        if np.abs(arrays["rewards"]).max() > MAX_REWARD:
            raise MessageError(f"rewards in a rollout that are beyond {MAX_REWARD:g}")
        self._check_actions(arrays)
        decisions = int(np.count_nonzero(arrays["valid"]))
        if num_steps is not None and decisions != num_steps:
            raise MessageError(f"a rollout of {decisions:,} decisions that is said to have {num_steps:,}")
        return arrays

    def _check_actions(self, arrays: Arrays) -> None:
        actions = arrays["actions"]
        if isinstance(self._actions, Categorical) and (
            actions.min() < 0 or actions.max() >= self._actions.num_parameters
        ):
            raise MessageError("actions in a rollout that the environment does not have")
        if isinstance(self._actions, Bernoulli) and not ((actions == 0.0) | (actions == 1.0)).all():
            raise MessageError("switches in a rollout that are neither on nor off")
        # A density can vanish, or be infinite, although every number is finite; its ratio would then be no number.
        numbers = torch.tensor(arrays["parameters"]), torch.tensor(actions)
        if not self._actions.log_prob(*numbers).isfinite().all():
            raise MessageError("actions in a rollout that its policy cannot have taken")

    def join(self, rollouts: Sequence[Arrays], device: torch.device) -> Batch:
        """Decoded rollouts, in their order, as one batch of its own memory."""

        def joined(name: str, axis: int) -> Tensor:
            tensor = torch.from_numpy(np.concatenate([arrays[name] for arrays in rollouts], axis))
            if device.type == "cuda":
                return tensor.pin_memory().to(device, non_blocking=True)
            return tensor

        names = [name for name in Batch._fields if name != "state"]
        state = joined("state", 0) if "state" in rollouts[0] else None
        return Batch(**{name: joined(name, 1) for name in names}, state=state)
