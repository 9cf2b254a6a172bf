"""Observation statistics of several processes, merged after every rollout as if one process had seen everything.

All start a rollout with equal statistics (the base) and let them take in what they see; what they have then is summed
up over all of them as moments about the base's mean, which keeps the numbers small where sums of squares would cancel:

    W = sum of counts,  A = sum of count * (mean - base mean),  Q = sum of count * (variance + (mean - base mean)^2)

The base is in every process's moments, so it is taken out n - 1 times: its A is zero and its Q is count * variance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gala_worker.model import ActorCritic


class SharedStatistics:
    """Of one policy; without effect where it does not normalise its observations."""

    def __init__(self, policy: ActorCritic) -> None:
        self._normalisation = policy.normalisation
        self._features = 0 if self._normalisation is None else self._normalisation.mean.numel()
        self.num_elements = 0 if self._normalisation is None else 1 + 2 * self._features
        """Numbers that are to be summed over all processes."""

    @torch.no_grad()
    def begin(self) -> None:
        """Remembers the base, before the rollout."""
        if self._normalisation is not None:
            own = self._normalisation
            self._base = own.count.clone(), own.mean.clone(), own.variance.clone()

    @torch.no_grad()
    def write(self, into: Tensor) -> None:
        """This process's moments, into [num_elements]."""
        if self._normalisation is not None:
            own, features = self._normalisation, self._features
            moved = own.mean - self._base[1]
            into[0] = own.count
            into[1 : 1 + features] = own.count * moved
            into[1 + features :] = own.count * (own.variance + moved.square())

    @torch.no_grad()
    def merge(self, summed: Tensor, num_processes: int) -> None:
        """Sets the statistics to what all have seen; `summed` [num_elements] is equal everywhere, so the result is."""
        if self._normalisation is None:
            return
        own, features = self._normalisation, self._features
        count, mean, variance = self._base
        spare = num_processes - 1
        total = summed[0] - spare * count
        if float(total) <= 0:  # nobody has seen anything
            return
        moved = summed[1 : 1 + features] / total
        square = (summed[1 + features :] - spare * count * variance) / total
        own.count.copy_(total)
        own.mean.copy_(mean + moved)
        own.variance.copy_((square - moved.square()).clamp_(min=0.0))
