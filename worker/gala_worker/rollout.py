"""Acting: one rollout of T steps in B simulators.

Place in the flow: `worker` collects a rollout, `algorithms.a2c` learns from it, `gossip` mixes the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gala_worker.environments import Episode, Simulators
from gala_worker.model import ActorCritic
from gala_worker.model.tape import Tape


@dataclass(frozen=True, slots=True)
class Rollout:
    """What T steps in B simulators gave, on the learner's device. `tape` holds the forward passes until the next one.

    Shapes: actions [T, B, ...]; values [T + 1, B], the last row is the bootstrap; rewards float32 [T, B], clipped to
    [-1, 1] where the run asks for it; terminated, truncated, valid bool [T, B] as in `environments.Transition`.
    """

    tape: Tape
    actions: Tensor
    values: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    num_steps: int
    """Agent decisions made: the valid entries."""


class Collector:
    """Steps simulators with the current policy. Belongs to the learner thread."""

    def __init__(
        self,
        simulators: Simulators,
        policy: ActorCritic,
        *,
        rollout_length: int,
        clip_rewards: bool,
        compute_type: torch.dtype,
        device: torch.device,
        seed: int,
    ) -> None:
        """Resets the simulators. Equal seeds and parameters give equal rollouts."""
        shape = (rollout_length, simulators.num_simulators)
        self._simulators = simulators
        self._policy = policy
        self._clip_rewards = clip_rewards
        self._device = device
        self._tape = Tape(policy, *shape, compute_type)
        self.generator = torch.Generator(device).manual_seed(seed)
        self._rewards = np.empty(shape, np.float32)
        self._flags = np.empty((3, *shape), np.bool_)
        self._starts = torch.ones(shape[1], dtype=torch.bool, device=device)
        self._observations = self._to_device(simulators.reset(seed))

    def collect(self) -> Rollout:
        """T steps in every simulator, then one more forward pass for the bootstrap values."""
        actions, values = [], []
        terminated, truncated, valid = self._flags
        self._tape.begin()
        for t in range(len(self._rewards)):
            output = self._tape.act(self._observations, self._starts)
            action = self._policy.actions.sample(output.parameters, self.generator)
            values.append(output.value)
            actions.append(action)
            step = self._simulators.step(self._policy.actions.to_environment(action))
            self._rewards[t] = step.rewards
            terminated[t] = step.terminated
            truncated[t] = step.truncated
            valid[t] = step.valid
            self._observations = self._to_device(step.observations)
            if output.state is not None:
                self._starts = self._to_device(step.starts)
            self._policy.observe(self._observations)
        values.append(self._tape.bootstrap(self._observations, self._starts))
        on_device = self._to_device(self._flags)
        rewards = self._to_device(np.clip(self._rewards, -1.0, 1.0) if self._clip_rewards else self._rewards)
        return Rollout(
            self._tape,
            torch.stack(actions),
            torch.stack(values),
            rewards,
            terminated=on_device[0],
            truncated=on_device[1],
            valid=on_device[2],
            num_steps=int(np.count_nonzero(valid)),
        )

    def pop_episodes(self) -> list[Episode]:
        """Real episodes that ended since the last call."""
        return self._simulators.pop_episodes()

    def _to_device(self, array: npt.NDArray[Any]) -> Tensor:
        """A copy: simulators and the next rollout may reuse `array`.

        On a GPU it goes through pinned memory, which torch's allocator caches, so that the host does not wait for it.
        """
        if self._device.type == "cuda":
            return torch.from_numpy(array).pin_memory(self._device).to(self._device, non_blocking=True)
        return torch.tensor(array)
