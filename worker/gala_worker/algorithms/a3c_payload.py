"""What an actor-learner of A3C pushes: a gradient, its observation statistics, and what its loss was.

Float32, little-endian, one behind the other: gradient [P], statistics [N - P], policy loss, value loss, entropy.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from gala_worker.algorithms.losses import A2CLoss
from gala_worker.flat import FlatState
from gala_worker.gossip.codec import is_finite, window

_NUM_LOSSES: Final = 3


class Pushed(NamedTuple):
    """Windows into a payload."""

    gradient: Tensor
    """[P], not clipped."""
    statistics: Tensor
    """[N - P]: the tail of the actor-learner's vector."""
    loss: A2CLoss


def num_bytes(flat: FlatState) -> int:
    """Size of every contribution."""
    return 4 * (len(flat.vector) + _NUM_LOSSES)


def encode(flat: FlatState, loss: A2CLoss) -> list[memoryview]:
    """The pieces of a contribution; on a CPU windows into `flat`, to be sent before it changes."""
    tail = flat.vector[len(flat.trainable) :]
    losses = torch.stack((loss.policy, loss.value, loss.entropy)).to(torch.float32)
    return [window(tensor.detach().to("cpu")) for tensor in (flat.gradient, tail, losses)]


def decode(payload: memoryview, num_trainable: int) -> Pushed:
    """The parts of a contribution, without a copy."""
    values = torch.frombuffer(payload, dtype=torch.float32)
    gradient, statistics = values[:num_trainable], values[num_trainable:-_NUM_LOSSES]
    policy, value, entropy = values[-_NUM_LOSSES:].clone()
    return Pushed(gradient, statistics, A2CLoss(torch.zeros(()), policy, value, entropy))


def is_acceptable(payload: memoryview) -> bool:
    """Whether every number is finite: one NaN would destroy the parameters of the whole run."""
    return is_finite(torch.frombuffer(payload, dtype=torch.float32))
