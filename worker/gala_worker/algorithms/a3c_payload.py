"""What an actor-learner of A3C pushes: a gradient, the moments of what it has observed, and what its loss was.

Float32, little-endian, one behind the other: gradient [P], moments (weight, mean [D], variance [D]) of policies that
normalise their observations, policy loss, value loss, entropy.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from gala_worker.algorithms.losses import A2CLoss
from gala_worker.gossip.codec import is_finite, window
from gala_worker.gossip.messages import Reason, Refusal
from gala_worker.model import ActorCritic
from gala_worker.model.normalisation import Moments

_NUM_LOSSES: Final = 3


class Pushed(NamedTuple):
    """Windows into a payload."""

    gradient: Tensor
    """[P], not clipped."""
    seen: Moments | None
    """Of the observations since the last push; None for policies that do not normalise."""
    loss: A2CLoss


class PayloadLayout:
    """The sizes that all ranks of a run agree on."""

    def __init__(self, policy: ActorCritic) -> None:
        normalisation = policy.normalisation
        self._num_parameters = sum(parameter.numel() for parameter in policy.parameters())
        self._num_features = 0 if normalisation is None else normalisation.mean.numel()
        self._num_moments = 0 if normalisation is None else 1 + 2 * self._num_features
        self.num_bytes = 4 * (self._num_parameters + self._num_moments + _NUM_LOSSES)
        """Of every contribution."""

    def encode(self, gradient: Tensor, seen: Moments | None, loss: A2CLoss) -> list[memoryview]:
        """The pieces of a contribution; that of `gradient` [P] is, on a CPU, a window, to be sent before it changes."""
        losses = torch.stack((loss.policy, loss.value, loss.entropy)).to(torch.float32)
        tail = losses if seen is None else torch.cat((seen.weight.view(1), seen.mean, seen.variance, losses))
        return [window(tensor.detach().to("cpu")) for tensor in (gradient, tail)]

    def decode(self, payload: memoryview) -> Pushed:
        """The parts of a contribution, without a copy."""
        values = torch.frombuffer(payload, dtype=torch.float32)
        gradient, rest = values[: self._num_parameters], values[self._num_parameters :]
        policy, value, entropy = rest[self._num_moments :].clone()
        seen = None
        if self._num_moments:
            variance = self._num_features + 1
            seen = Moments(rest[0], rest[1:variance], rest[variance : self._num_moments])
        return Pushed(gradient, seen, A2CLoss(torch.zeros(()), policy, value, entropy))

    def inspect(self, payload: memoryview) -> Refusal | None:
        """Why a contribution cannot be used: one such number would destroy the parameters of the whole run."""
        if not is_finite(torch.frombuffer(payload, dtype=torch.float32)):
            return Refusal(Reason.NOT_FINITE)
        seen = self.decode(payload).seen
        if seen is not None and not seen.are_possible():
            return Refusal(Reason.MALFORMED, "no observations have such a mean and variance")
        return None
