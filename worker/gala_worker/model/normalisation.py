"""Running normalisation of vector observations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

_CLIP = 10.0
_EPSILON = 1e-8
_LARGEST = 1e15


class Moments(NamedTuple):
    """What is known of some observations, all float32.

    Shapes: weight [], their number; mean [D]; variance [D], of the population.
    """

    weight: Tensor
    mean: Tensor
    variance: Tensor

    def are_possible(self) -> bool:
        """Whether some observations that `RunningNormalisation` takes in have these moments."""
        whole = self.weight == self.weight.floor()
        bounded = (self.mean.abs() < _LARGEST) & (self.variance >= 0) & (self.variance <= _LARGEST**2)
        return bool((self.weight >= 0) & whole & bounded.all())


def merged(one: Moments, other: Moments) -> Moments:
    """The moments of both together, of which not both may be of nothing.

    Chan's merge: stable in float32, where sums of squares are not. The mean and variance of nothing do not count.
    """
    total = one.weight + other.weight
    share = other.weight / total
    delta = other.mean - one.mean
    variance = one.variance * (1.0 - share) + other.variance * share + delta.square() * (share * (1.0 - share))
    return Moments(total, one.mean + delta * share, variance)


class RunningNormalisation(nn.Module):
    """Scales observations to mean 0 and variance 1 by all that was observed so far, and clips them to +-10.

    The statistics are float32 buffers so that they live in the flat vector: neighbours average them like parameters,
    and checkpoints and the final model hold them. They are only ever changed in place.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("variance", torch.ones(num_features))
        self.register_buffer("count", torch.zeros(()))
        self._fresh: Moments | None = None

    def forward(self, observations: Tensor) -> Tensor:
        """[B, D] of any number type -> [B, D] float32."""
        scale = torch.rsqrt(self.variance + _EPSILON)
        return ((observations - self.mean) * scale).clamp_(-_CLIP, _CLIP)

    @torch.no_grad()
    def update(self, observations: Tensor, valid: Tensor | None = None) -> None:
        """Takes in a batch [N, D], or those of its rows that are `valid` [N] (bool).

        Left out are rows with numbers that are not finite, or so large that their squares might not be: what stands for
        "no reading" would spoil the statistics for good.
        """
        batch = observations.to(torch.float32)
        usable = (batch.abs() < _LARGEST).all(-1)  # false for NaN
        batch = batch[usable if valid is None else usable & valid]
        if not len(batch):
            return
        variance, mean = torch.var_mean(batch, 0, correction=0)
        seen = Moments(torch.tensor(float(len(batch)), device=batch.device), mean, variance)
        self.merge(seen)
        if self._fresh is not None:
            self._fresh = merged(self._fresh, seen)

    @torch.no_grad()
    def merge(self, seen: Moments) -> None:
        """Takes in what somebody else has seen, as if it had been seen here."""
        for own, value in zip((self.count, self.mean, self.variance), merged(self._moments, seen), strict=True):
            own.copy_(value)

    def collect_fresh(self) -> None:
        """From now on keeps apart what `update` takes in, for `pop_fresh`."""
        self._fresh = Moments(*map(torch.zeros_like, self._moments))

    def pop_fresh(self) -> Moments:
        """What `update` has taken in since the last call; its weight is 0 if that is nothing."""
        assert self._fresh is not None
        fresh = self._fresh
        self.collect_fresh()
        return fresh

    @property
    def _moments(self) -> Moments:
        return Moments(self.count, self.mean, self.variance)
