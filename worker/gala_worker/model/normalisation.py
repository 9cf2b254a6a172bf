"""Running normalisation of vector observations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CLIP = 10.0
_EPSILON = 1e-8
_LARGEST = 1e15


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

    def forward(self, observations: Tensor) -> Tensor:
        """[B, D] of any number type -> [B, D] float32."""
        scale = torch.rsqrt(self.variance + _EPSILON)
        return ((observations - self.mean) * scale).clamp_(-_CLIP, _CLIP)

    @torch.no_grad()
    def update(self, observations: Tensor, valid: Tensor | None = None) -> None:
        """Takes in a batch [N, D], or those of its rows that are `valid` [N] (bool).

        Left out are rows with numbers that are not finite, or so large that their squares might not be: what stands for
        "no reading" would spoil the statistics for good.

        Chan's merge of the batch's moments into the running ones: stable in float32, where sums of squares are not.
        """
        batch = observations.to(torch.float32)
        usable = (batch.abs() < _LARGEST).all(-1)  # false for NaN
        batch = batch[usable if valid is None else usable & valid]
        if not len(batch):
            return
        added = float(len(batch))
        batch_variance, batch_mean = torch.var_mean(batch, 0, correction=0)
        total = self.count + added
        share = added / total
        delta = batch_mean - self.mean
        # The running variance of nothing is 1 so that unseen observations pass unchanged; weight 0 takes it out here.
        self.variance.mul_(1.0 - share).add_(batch_variance * share + delta.square() * (share * (1.0 - share)))
        self.mean.add_(delta * share)
        self.count.copy_(total)
