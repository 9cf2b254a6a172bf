"""The actor-critic that a learner trains: observations in, action-distribution parameters and values out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from gala.errors import Problem, SimulatorError, SpecError
from gala_worker.model.distributions import ActionDistribution, DiagonalGaussian, make_distribution
from gala_worker.model.network import IMAGE_SIZE, Mlp, Nature32, orthogonal
from gala_worker.model.normalisation import RunningNormalisation

if TYPE_CHECKING:
    from gala.spec import Policy

POLICY_GAIN = 0.01
VALUE_GAIN = 1.0


class PolicyOutput(NamedTuple):
    """What one forward pass gives; float32 whatever precision the network computes in."""

    parameters: Tensor
    """[B, A'] of the action distribution."""
    value: Tensor
    """[B]"""
    state: Tensor | None
    """[B, H] of a recurrent policy, to be passed to the next call; None otherwise."""


class ActorCritic(nn.Module):
    """Trunk, optional GRU, and two heads.

    An image trunk is shared by both heads; vector policies have a trunk for each, as is usual for them, unless they are
    recurrent.
    """

    normalisation: RunningNormalisation | None
    critic_trunk: Mlp | None
    memory: nn.GRUCell | None
    log_std: nn.Parameter | None

    def __init__(
        self,
        trunk: Nature32 | Mlp,
        actions: ActionDistribution,
        *,
        critic_trunk: Mlp | None = None,
        recurrent: bool = False,
        normalisation: RunningNormalisation | None = None,
    ) -> None:
        super().__init__()
        size = trunk.num_features
        self.actions = actions
        self.normalisation = normalisation
        self.trunk = trunk
        self.critic_trunk = critic_trunk
        self.memory = _gru(size) if recurrent else None
        self.policy_head = orthogonal(nn.Linear(size, actions.num_outputs), POLICY_GAIN)
        self.value_head = orthogonal(nn.Linear(size, 1), VALUE_GAIN)
        gaussian = isinstance(actions, DiagonalGaussian)
        self.log_std = nn.Parameter(torch.zeros(actions.num_outputs)) if gaussian else None

    def forward(self, observations: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> PolicyOutput:
        """One step of every simulator.

        Shapes: observations [B, ...]; state [B, H] and starts bool [B] for recurrent policies, ignored by others. Where
        `starts`, the observation is the first of an episode and the state is forgotten.
        """
        inputs = self.prepare(observations)
        judged = None if self.critic_trunk is None else self.critic_trunk(inputs)
        return self.decide(self.trunk(inputs), judged, state, starts)

    def prepare(self, observations: Tensor) -> Tensor:
        """Observations [B, ...] as the trunks take them: images as they are, vectors flat and normalised [B, D]."""
        if isinstance(self.trunk, Nature32):
            return observations
        vectors = observations.flatten(1).to(torch.float32)
        return vectors if self.normalisation is None else self.normalisation(vectors)

    def decide(
        self, features: Tensor, judged: Tensor | None, state: Tensor | None, starts: Tensor | None
    ) -> PolicyOutput:
        """What follows the trunks: memory and heads.

        Shapes: features [B, H] of the trunk; judged [B, H] of the critic's own trunk, None where it shares the actor's.
        """
        if self.memory is not None:
            if state is None:
                state = features.new_zeros(features.shape, dtype=torch.float32)
            if starts is not None:
                state = torch.where(starts.unsqueeze(-1), 0.0, state)
            features = state = self.memory(features, state).to(torch.float32)
        parameters, value = self.heads(features, judged)
        return PolicyOutput(parameters, value, state)

    def heads(self, features: Tensor, judged: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Parameters [B, A'] and values [B] from the trunk's features [B, H], and the critic's where it has its own.

        Always in float32: bfloat16 would round a value of 100 to the next half, and these layers cost next to nothing.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(torch.float32)
            parameters = self.policy_head(features)
            if self.log_std is not None:
                parameters = torch.cat((parameters, self.log_std.expand_as(parameters)), -1)
            value = self.value_head(features if judged is None else judged.to(torch.float32))
        return parameters, value.squeeze(-1)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.value_head.weight.device

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Zeros [B, H] for a recurrent policy, None for others."""
        if self.memory is None:
            return None
        return torch.zeros(batch_size, self.memory.hidden_size, device=self.device)

    def observe(self, observations: Tensor, valid: Tensor | None = None) -> None:
        """Lets the observation statistics take in [N, ...], or those rows that are `valid` bool [N]. For training only.

        Does nothing for policies that do not normalise. Safe while graphs of earlier forward passes are kept.
        """
        if self.normalisation is not None:
            self.normalisation.update(observations.flatten(1), valid)

    def gossiped_buffers(self) -> list[str]:
        """Names of the float buffers that neighbours average along with the parameters."""
        return [name for name, _ in self.named_buffers()]


def make_policy(
    observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any], policy: Policy, *, seed: int
) -> ActorCritic:
    """The policy that suits the spaces of one simulator; equal seeds give equal parameters.

    Raises:
        SimulatorError: no policy supports these spaces.
        SpecError: the network asked for does not suit the observations.
    """
    actions = make_distribution(action_space)
    if not isinstance(observation_space, gymnasium.spaces.Box):
        raise SimulatorError(
            f"the environment's observations are {observation_space}: supported are images and vectors (Box); "
            "wrap the environment in gymnasium.wrappers.FlattenObservation"
        )
    image = len(observation_space.shape) == 3 and observation_space.shape[1:] == IMAGE_SIZE
    network = ("nature-32" if image else "mlp") if policy.network == "auto" else policy.network
    _check(observation_space, policy, network, image=image)

    def build() -> ActorCritic:
        if network == "nature-32":
            scale = 1.0 / 255.0 if observation_space.dtype == np.uint8 else 1.0
            trunk = Nature32(observation_space.shape[0], scale=scale)
            return ActorCritic(trunk, actions, recurrent=policy.recurrent)
        num_inputs = int(np.prod(observation_space.shape))
        normalise = policy.normalize_observations is not False
        return ActorCritic(
            Mlp(num_inputs, policy.hidden_sizes),
            actions,
            critic_trunk=None if policy.recurrent else Mlp(num_inputs, policy.hidden_sizes),
            recurrent=policy.recurrent,
            normalisation=RunningNormalisation(num_inputs) if normalise else None,
        )

    return _seeded(build, seed)


def _seeded(build: Callable[[], ActorCritic], seed: int) -> ActorCritic:
    """Builds under a seed, without disturbing anybody else's random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _gru(size: int) -> nn.GRUCell:
    cell = nn.GRUCell(size, size)
    for weight, bias in ((cell.weight_ih, cell.bias_ih), (cell.weight_hh, cell.bias_hh)):
        for gate in weight.data.chunk(3):
            nn.init.orthogonal_(gate)
        nn.init.zeros_(bias)
    return cell


def _check(space: gymnasium.spaces.Box, policy: Policy, network: str, *, image: bool) -> None:
    problems = []
    if network == "nature-32" and not image:
        problems.append(
            Problem(
                path="spec.policy.network",
                value=policy.network,
                message=f"works on images [channels, 84, 84], but the environment's observations are {space}",
                remedy="set mlp, or wrap the environment so that it resizes its images",
            )
        )
    if network == "mlp" and policy.network == "auto" and len(space.shape) == 3:
        raise SimulatorError(
            f"the environment's observations are images of shape {space.shape}: nature-32 works on [channels, 84, 84]; "
            "wrap the environment so that it resizes its images, or set spec.policy.network: mlp to have them flattened"
        )
    if network == "nature-32" and policy.normalize_observations:
        problems.append(
            Problem(
                path="spec.policy.normalizeObservations",
                value=True,
                message="works on vector observations only; images are scaled by a constant",
                remedy="remove it",
            )
        )
    if problems:
        raise SpecError(problems)
