"""Acting's forward passes, kept for learning.

Parameters do not change within a rollout, so what the policy computed to act is what learning needs. `Tape.act`
remembers it, `Tape.replay` gives it back as a differentiable batch: images are not sent through the convolutions a
second time. The heads, the memory and the small trunks of vector policies are cheap and are simply computed again, all
steps at once.

Place in the flow: `rollout` acts with a tape; `algorithms.a2c` differentiates what it replays.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gala_worker.model.convolution_tape import ConvolutionTape
from gala_worker.model.network import Nature32
from gala_worker.model.policy import ActorCritic, PolicyOutput


class Replay(NamedTuple):
    """A rollout's forward passes, differentiable."""

    parameters: Tensor
    """[T, B, A'] of the action distributions."""
    values: Tensor
    """[T, B]"""


class Tape:
    """Holds one rollout of T steps in B simulators; the next one overwrites it. Belongs to the learner thread."""

    def __init__(
        self, policy: ActorCritic, rollout_length: int, num_simulators: int, compute_type: torch.dtype = torch.float32
    ) -> None:
        """`compute_type` is float32 or bfloat16: what the trunks compute in."""
        self._policy = policy
        self._length = rollout_length
        self._batch = num_simulators
        self._compute_type = compute_type
        self._device = policy.device
        self._step = 0
        self._state = policy.initial_state(num_simulators)
        self._first_state = self._state
        self._starts = torch.ones(rollout_length, num_simulators, dtype=torch.bool, device=self._device)
        self._images: ConvolutionTape | None = None
        self._vectors: list[Tensor] = []
        if isinstance(policy.trunk, Nature32):
            self._images = ConvolutionTape(policy.trunk, rollout_length * num_simulators, compute_type)

    def begin(self) -> None:
        """Starts a rollout: the parameters may have changed since the last one."""
        self._step = 0
        self._first_state = self._state
        self._vectors.clear()
        if self._images is not None:
            self._images.load_weights()

    @torch.no_grad()
    def act(self, observations: Tensor, starts: Tensor, new_frames: int | None = None) -> PolicyOutput:
        """One remembered step; the arguments may change afterwards. Shapes: observations [B, ...], starts bool [B].

        `new_frames` is what `environments.Transition` says of these observations and those of the last call; 0 where
        they are the same.
        """
        slot = slice(self._step * self._batch, (self._step + 1) * self._batch)
        self._starts[self._step] = starts
        output = self._forward(observations, starts, slot, new_frames)
        self._state = output.state
        self._step += 1
        return output

    @torch.no_grad()
    def bootstrap(self, observations: Tensor, starts: Tensor, new_frames: int | None = None) -> Tensor:
        """Values [B] of the observations after the last step; nothing is remembered. Arguments as of `act`."""
        return self._forward(observations, starts, None, new_frames).value

    def replay(self) -> Replay:
        """The remembered steps as one differentiable batch."""
        policy = self._policy
        judged: Tensor | None = None
        with self._autocast():
            if self._images is not None:
                features = self._images.replay()
            else:
                inputs = torch.cat(self._vectors)
                features = policy.trunk(inputs)
                if policy.critic_trunk is not None:
                    judged = policy.critic_trunk(inputs)
            if policy.memory is None:
                output = policy.decide(features, judged, None, None)
                parameters, values = output.parameters, output.value
            else:
                parameters, values = self._replay_memory(features.reshape(self._length, self._batch, -1))
        shape = (self._length, self._batch)
        return Replay(parameters.reshape(*shape, -1), values.reshape(shape))

    def _replay_memory(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Back-propagation through the rollout's T steps of the GRU, not further."""
        state = self._first_state
        outputs = []
        for step, starts in zip(features, self._starts, strict=True):
            output = self._policy.decide(step, None, state, starts)
            state = output.state
            outputs.append(output)
        return torch.cat([o.parameters for o in outputs]), torch.cat([o.value for o in outputs])

    def _forward(
        self, observations: Tensor, starts: Tensor, slot: slice | None, new_frames: int | None
    ) -> PolicyOutput:
        policy = self._policy
        with self._autocast():
            if self._images is not None:
                features = self._images.forward(observations, slot, new_frames)
                return policy.decide(features, None, self._state, starts)
            inputs = policy.prepare(observations)
            if slot is not None:
                self._vectors.append(inputs if policy.normalisation is not None else inputs.clone())
            judged = None if policy.critic_trunk is None else policy.critic_trunk(inputs)
            return policy.decide(policy.trunk(inputs), judged, self._state, starts)

    def _autocast(self) -> torch.autocast:
        """For what is left to autograd. After a convolutional trunk it is too small to gain from it."""
        enabled = self._compute_type != torch.float32 and self._images is None
        return torch.autocast(self._device.type, self._compute_type, enabled=enabled)
