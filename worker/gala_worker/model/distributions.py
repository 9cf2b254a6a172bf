"""Action heads: how the numbers a network puts out become actions, log-probabilities and entropies.

Shapes: parameters [..., A'], actions [..., *event] where event is () for Discrete and (D,) otherwise; log_prob and
entropy [...]. Leading dimensions are free: [B] while acting, [T, B] while learning. Parameters are float32.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from gala.errors import SimulatorError

_HALF_LOG_TAU = 0.5 * math.log(2.0 * math.pi)


class ActionDistribution(ABC):
    """A family of action distributions; stateless, the parameters are passed in."""

    num_outputs: int
    """Width of the policy head."""
    num_parameters: int
    """A', the width of the parameters: the head's outputs, and a log standard deviation per dimension for Box."""
    event_shape: tuple[int, ...]
    """Shape of one action as a tensor."""
    action_dtype: torch.dtype

    @abstractmethod
    def sample(self, parameters: Tensor, generator: Generator | None = None) -> Tensor:
        """Random actions; not differentiable."""

    @abstractmethod
    def mode(self, parameters: Tensor) -> Tensor:
        """The most likely actions."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Log-probability (density for Box) of the actions as sampled, before `to_environment`."""

    @abstractmethod
    def entropy(self, parameters: Tensor) -> Tensor:
        """Entropy in nats (differential for Box)."""

    @abstractmethod
    def to_environment(self, actions: Tensor) -> np.ndarray:
        """Actions [B, *event] as the action space wants them."""


class Categorical(ActionDistribution):
    """One of n choices (Discrete); the parameters are logits."""

    event_shape = ()
    action_dtype = torch.int64

    def __init__(self, space: gymnasium.spaces.Discrete) -> None:
        self.num_outputs = self.num_parameters = int(space.n)
        self._start = int(space.start)
        self._dtype = space.dtype

    @torch.no_grad()
    def sample(self, parameters: Tensor, generator: Generator | None = None) -> Tensor:
        # Gumbel-max: argmax(logits - log(Exp(1))) is a draw from softmax(logits); few small kernels, no normalisation.
        noise = torch.empty_like(parameters).exponential_(generator=generator)
        return (parameters - noise.log_()).argmax(-1)

    @torch.no_grad()
    def mode(self, parameters: Tensor) -> Tensor:
        return parameters.argmax(-1)

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        return functional.log_softmax(parameters, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        log_probs = functional.log_softmax(parameters, -1)
        return -(log_probs.exp() * log_probs).sum(-1)

    def to_environment(self, actions: Tensor) -> np.ndarray:
        choices = actions.cpu().numpy()
        return choices if self._start == 0 else choices + self._start


class DiagonalGaussian(ActionDistribution):
    """Independent normals (Box); the parameters are D means, then D log standard deviations.

    The environment gets actions clipped to its bounds; log-probabilities are those of the unclipped ones, as sampled.
    """

    action_dtype = torch.float32

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        self.num_outputs = int(np.prod(space.shape))
        self.num_parameters = 2 * self.num_outputs
        self.event_shape = (self.num_outputs,)
        self._space = space

    @torch.no_grad()
    def sample(self, parameters: Tensor, generator: Generator | None = None) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        noise = torch.empty_like(mean).normal_(generator=generator)
        return noise.mul_(log_std.exp()).add_(mean)

    @torch.no_grad()
    def mode(self, parameters: Tensor) -> Tensor:
        return parameters.chunk(2, -1)[0].clone()

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        distance = (actions - mean) * torch.exp(-log_std)
        return -(0.5 * distance.square() + log_std + _HALF_LOG_TAU).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        log_std = parameters.chunk(2, -1)[1]
        return (log_std + (0.5 + _HALF_LOG_TAU)).sum(-1)

    def to_environment(self, actions: Tensor) -> np.ndarray:
        space = self._space
        shaped = actions.cpu().numpy().reshape(-1, *space.shape)
        return np.asarray(np.clip(shaped, space.low, space.high), dtype=space.dtype)


class Bernoulli(ActionDistribution):
    """Independent switches (MultiBinary); the parameters are the logits of each being on."""

    action_dtype = torch.float32

    def __init__(self, space: gymnasium.spaces.MultiBinary) -> None:
        self.num_outputs = self.num_parameters = int(np.prod(space.shape))
        self.event_shape = (self.num_outputs,)
        self._space = space

    @torch.no_grad()
    def sample(self, parameters: Tensor, generator: Generator | None = None) -> Tensor:
        return torch.bernoulli(torch.sigmoid(parameters), generator=generator)

    @torch.no_grad()
    def mode(self, parameters: Tensor) -> Tensor:
        return (parameters > 0).to(torch.float32)

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        return -functional.binary_cross_entropy_with_logits(parameters, actions, reduction="none").sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        # H = softplus(l) - l * sigmoid(l), finite for any logit.
        return (functional.softplus(parameters) - parameters * torch.sigmoid(parameters)).sum(-1)

    def to_environment(self, actions: Tensor) -> np.ndarray:
        return actions.cpu().numpy().reshape(-1, *self._space.shape).astype(self._space.dtype)


def make_distribution(space: gymnasium.Space[Any]) -> ActionDistribution:
    """The distribution for an action space. Raises: SimulatorError for a space without one."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return Categorical(space)
    if isinstance(space, gymnasium.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return DiagonalGaussian(space)
    if isinstance(space, gymnasium.spaces.MultiBinary):
        return Bernoulli(space)
    raise SimulatorError(
        f"the environment's actions are {space}: supported are Discrete, Box of floats and MultiBinary; "
        "wrap the environment so that it takes one of these"
    )
