"""Acting: one rollout of T steps in B simulators, with acting's forward passes kept for learning.

Place in the flow: `worker.py` collects a rollout, `algorithms.a2c` learns from it, `gossip` mixes the result.
Parameters do not change within a rollout, so what the policy computed to act is what learning needs: its autograd
graph is kept and no observation is forwarded twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gala_worker.environments import Episode, Simulators
from gala_worker.model import ActorCritic


@dataclass(frozen=True, slots=True)
class Rollout:
    """What T steps in B simulators gave. Tensors live on the learner's device.

    Shapes:
        parameters: `[T, B, A]`, of the action distributions, with their autograd graph.
        actions: `[T, B, ...]`.
        values: `[T + 1, B]`; the first T carry their graph, the last is the bootstrap and carries none.
        rewards: `[T, B]`, clipped to [-1, 1] where the run asks for it.
        terminated, truncated, valid: bool `[T, B]`; an invalid entry is an autoreset's dummy step.
    """

    parameters: Tensor
    actions: Tensor
    values: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    num_steps: int
    """Agent decisions made: the valid entries."""


class Collector:
    """Steps simulators with the current policy. Not thread-safe: the learner thread owns it."""

    def __init__(
        self,
        simulators: Simulators,
        policy: ActorCritic,
        *,
        rollout_length: int,
        clip_rewards: bool,
        device: torch.device,
        autocast: torch.dtype | None,
        seed: int,
    ) -> None:
        """`autocast` is the type that forward passes compute in, None for float32. Seeds simulators and actions."""
        self._simulators = simulators
        self._policy = policy
        self._clip_rewards = clip_rewards
        self._device = device
        self._autocast = autocast
        self.generator = torch.Generator(device).manual_seed(seed)
        shape = (rollout_length, simulators.num_simulators)
        self._rewards = np.empty(shape, np.float32)
        self._terminated = np.empty(shape, np.bool_)
        self._truncated = np.empty(shape, np.bool_)
        self._valid = np.empty(shape, np.bool_)
        self._observations = self._to_device(simulators.reset(seed))
        self._starts = torch.ones(shape[1], dtype=torch.bool, device=device)
        self._state = policy.initial_state(shape[1])

    def collect(self) -> Rollout:
        """T steps in every simulator, then one more forward pass for the bootstrap values."""
        parameters, actions, values = [], [], []
        state = None if self._state is None else self._state.detach()
        for t in range(len(self._rewards)):
            with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
                output = self._policy(self._observations, state, self._starts)
            state = output.state
            with torch.no_grad():
                action = self._policy.actions.sample(output.parameters, self.generator)
            parameters.append(output.parameters)
            values.append(output.value)
            actions.append(action)
            step = self._simulators.step(self._policy.actions.to_environment(action))
            self._rewards[t] = step.rewards
            self._terminated[t] = step.terminated
            self._truncated[t] = step.truncated
            self._valid[t] = step.valid
            self._observations = self._to_device(step.observations)
            if state is not None:
                self._starts = torch.from_numpy(step.starts.copy()).to(self._device)
            self._policy.observe(self._observations)
        with torch.no_grad(), torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            values.append(self._policy(self._observations, state, self._starts).value)
        self._state = state
        rewards = np.clip(self._rewards, -1.0, 1.0) if self._clip_rewards else self._rewards
        return Rollout(
            torch.stack(parameters),
            torch.stack(actions),
            torch.stack(values),
            self._copy(rewards),
            self._copy(self._terminated),
            self._copy(self._truncated),
            self._copy(self._valid),
            int(np.count_nonzero(self._valid)),
        )

    def pop_episodes(self) -> list[Episode]:
        """Real episodes that ended since the last call."""
        return self._simulators.pop_episodes()

    def close(self) -> None:
        """Closes the simulators."""
        self._simulators.close()

    def _copy(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, device=self._device)

    def _to_device(self, observations: np.ndarray) -> Tensor:
        return torch.from_numpy(observations).to(self._device, copy=True)
