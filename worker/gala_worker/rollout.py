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

from gala_worker.environments import Episode, Simulators, Transition
from gala_worker.model import ActorCritic
from gala_worker.model.tape import Tape


@dataclass(frozen=True, slots=True)
class Recording:
    """What the policy saw, and with which probabilities it acted.

    Shapes: observations [T + 1, B, ...] as the simulators gave them, the last row is the bootstrap's; starts bool
    [T + 1, B], true where an observation is the first of an episode; parameters [T, B, A'] of the action distributions;
    state [B, H] of a recurrent policy before the first step, None of others.
    """

    observations: Tensor
    starts: Tensor
    parameters: Tensor
    state: Tensor | None


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
    recording: Recording | None = None
    """Where the collector records: what it takes to compute the forward passes again. Overwritten by the next one."""


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
        record: bool = False,
        observe: bool = True,
    ) -> None:
        """Resets the simulators. Equal seeds and parameters give equal rollouts.

        Args:
            observe: let the policy's observation statistics take in what the simulators show. The first rollout is
                taken in step by step, since nothing is known before of the scale; a later one at the beginning of the
                next, so that who computes forward passes again has the statistics that acted.
            record: keep what it takes to compute the forward passes again, for those who learn from a rollout later or
                more than once.
        """
        shape = (rollout_length, simulators.num_simulators)
        self._simulators = simulators
        self._policy = policy
        self._clip_rewards = clip_rewards
        self._observe = observe and policy.normalisation is not None
        self._is_first = True
        self._last: Rollout | None = None
        self._shown: list[Tensor] = []
        self._device = device
        self._tape = Tape(policy, *shape, compute_type)
        self.generator = torch.Generator(device).manual_seed(seed)
        self._rewards = np.empty(shape, np.float32)
        self._flags = np.empty((3, *shape), np.bool_)
        self._starts = torch.ones(shape[1], dtype=torch.bool, device=device)
        self._observations = self._to_device(simulators.reset(seed))
        self._are_vectors = self._observations.is_floating_point()
        self._new_frames: int | None = None
        self._state = policy.initial_state(shape[1])
        self._seen: Tensor | None = None
        if record:
            self._seen = self._observations.new_empty(rollout_length + 1, *self._observations.shape)
            self._seen_starts = torch.ones(rollout_length + 1, shape[1], dtype=torch.bool, device=device)

    def collect(self) -> Rollout:
        """T steps in every simulator, then one more forward pass for the bootstrap values."""
        actions, values, parameters = [], [], []
        first_state = self._state
        terminated, truncated, valid = self._flags
        if self._shown:
            self._policy.observe(torch.cat(self._shown))
            self._shown.clear()
        self._tape.begin()
        for t in range(len(self._rewards)):
            self._note(t)
            output = self._tape.act(self._observations, self._starts, self._new_frames)
            self._state = output.state
            action = self._policy.actions.sample(output.parameters, self.generator)
            values.append(output.value)
            actions.append(action)
            parameters.append(output.parameters)
            step = self._simulators.step(self._policy.actions.to_environment(action))
            self._rewards[t] = step.rewards
            terminated[t] = step.terminated
            truncated[t] = step.truncated
            valid[t] = step.valid
            self._observations = self._to_device(step.observations, copy=False)
            self._new_frames = step.new_frames
            if output.state is not None or self._seen is not None:
                self._starts = self._to_device(step.starts)
            if self._observe and self._is_first:
                self._policy.observe(self._observations)
            elif self._observe:
                self._shown.append(self._observations.clone())
            if self._are_vectors and step.terminated.any():
                self._observations = self._without_gaps(step)
        self._is_first = False
        self._note(len(self._rewards))
        values.append(self._tape.bootstrap(self._observations, self._starts, self._new_frames))
        self._new_frames = 0  # the next rollout begins with the observation that this one ends with
        on_device = self._to_device(self._flags)
        rewards = self._to_device(np.clip(self._rewards, -1.0, 1.0) if self._clip_rewards else self._rewards)
        self._last = Rollout(
            self._tape,
            torch.stack(actions),
            torch.stack(values),
            rewards,
            terminated=on_device[0],
            truncated=on_device[1],
            valid=on_device[2],
            num_steps=int(np.count_nonzero(valid)),
            recording=None
            if self._seen is None
            else Recording(self._seen, self._seen_starts, torch.stack(parameters), first_state),
        )
        return self._last

    def _note(self, t: int) -> None:
        if self._seen is not None:
            self._seen[t] = self._observations
            self._seen_starts[t] = self._starts

    def _without_gaps(self, step: Transition) -> Tensor:
        """The newest observations, with zeros for what is not finite where an episode is over.

        Nothing is decided there, and the loss masks it; but NaN times a gradient of 0 is NaN.
        The observation statistics have seen the numbers as they were.
        """
        over = self._to_device(step.terminated & ~step.starts).unsqueeze(-1)
        seen = self._observations
        return torch.where(over.logical_and(seen.isfinite().logical_not()), 0.0, seen)

    def flaw(self) -> str | None:
        """What is not finite in the last rollout, such as `a reward of simulator 3`; None if nothing is.

        Of observations that are not recorded, it is the values they were given that tell.
        """
        if self._last is None:
            return None
        shown = self._seen if self._seen is not None and self._are_vectors else self._last.values
        for what, numbers in (("a reward", self._last.rewards), ("an observation", shown)):
            flawed = numbers.isfinite().logical_not().transpose(0, 1).flatten(1).any(1)
            if flawed.any():
                return f"{what} of simulator {int(flawed.nonzero()[0])}"
        return None

    def pop_episodes(self) -> list[Episode]:
        """Real episodes that ended since the last call."""
        return self._simulators.pop_episodes()

    def _to_device(self, array: npt.NDArray[Any], *, copy: bool = True) -> Tensor:
        """`array` on the learner's device; a copy, unless `copy` is False and it is there already.

        On a GPU it goes through pinned memory, which torch's allocator caches, so that the host does not wait for it.
        """
        if self._device.type == "cuda":
            return torch.from_numpy(array).pin_memory().to(self._device, non_blocking=True)
        return torch.tensor(array) if copy else torch.from_numpy(array)
