"""RMSprop on one flat vector, with clipping by the global gradient norm.

The learner's parameters, gradients and optimiser state are one contiguous tensor each, so a step is a handful of
in-place operations instead of a loop over layers; on a CPU they go over them block by block, so that each finds in the
cache what the one before has left there. The arithmetic is torch's: epsilon outside the square root (TensorFlow has it
inside), no momentum.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

SQUARE_AVERAGE = "optimizer.square_average"

BLOCK: Final = 1 << 17
"""Elements that a CPU works on in one go."""

# torch.nn.utils.clip_grad_norm_ adds this to the norm.
_NORM_EPSILON = 1e-6


class Step(NamedTuple):
    """What one step did."""

    gradient_norm: float
    """Euclidean norm of the gradient before clipping."""
    update_norm: float | None
    """Euclidean norm of the change of the parameters; None unless asked for."""


class RMSprop:
    """Optimiser of `parameters` [P], a flat float32 tensor that is changed in place.

    `square_average` [P] is its whole state: checkpoint it, and `copy_` into it to resume.
    """

    def __init__(self, parameters: Tensor, *, decay: float, epsilon: float) -> None:
        if parameters.ndim != 1 or parameters.dtype != torch.float32:
            raise ValueError(
                f"parameters must be a flat float32 tensor, got {parameters.dtype} {list(parameters.shape)}"
            )
        self._parameters = parameters.detach()
        self._decay = decay
        self._epsilon = epsilon
        size = BLOCK if parameters.device.type == "cpu" else max(1, len(parameters))
        self._blocks = [slice(start, start + size) for start in range(0, len(parameters), size)]
        self._scratch = torch.empty_like(self._parameters[:size])
        self.square_average = torch.zeros_like(self._parameters)
        self.state = {SQUARE_AVERAGE: self.square_average}
        """By the names that checkpoints have."""

    @torch.no_grad()
    def step(
        self, gradient: Tensor, *, learning_rate: float, max_gradient_norm: float, measure_update: bool = False
    ) -> Step:
        """One update with `gradient` [P], scaled down to `max_gradient_norm` where it is longer; it is left as it is.

        A gradient that is not finite changes nothing: one bad rollout must not destroy the parameters of the whole
        ring. The caller sees it in the norm returned.
        """
        if gradient.shape != self._parameters.shape:
            raise ValueError(f"gradient must be {list(self._parameters.shape)}, got {list(gradient.shape)}")
        norm = float(torch.linalg.vector_norm(gradient))
        if not norm < float("inf"):
            return Step(norm, 0.0 if measure_update else None)
        # Clipping is folded into the scalar factors below: it costs no pass over the gradient.
        clip = min(1.0, max_gradient_norm / (norm + _NORM_EPSILON))
        squared_length = 0.0
        for block in self._blocks:
            slope, average, parameters = gradient[block], self.square_average[block], self._parameters[block]
            average.mul_(self._decay).addcmul_(slope, slope, value=(1.0 - self._decay) * clip * clip)
            update = square_root(average, out=self._scratch[: len(average)]).add_(self._epsilon)
            if measure_update:
                torch.div(slope, update, out=update)
                parameters.add_(update, alpha=-learning_rate * clip)
                squared_length += float(torch.dot(update, update))
            else:
                parameters.addcdiv_(slope, update, value=-learning_rate * clip)
        return Step(norm, learning_rate * clip * math.sqrt(squared_length) if measure_update else None)


def square_root(squares: Tensor, *, out: Tensor) -> Tensor:
    """Into `out`, which is returned; both contiguous float32 of the same length.

    On a CPU by NumPy: torch leaves it to MKL, which took three times as long where there are zeros, and there are many,
    since the units of a network that nothing excites have gradients of zero.
    """
    if out.device.type != "cpu":
        return torch.sqrt(squares, out=out)
    np.sqrt(squares.numpy(), out=out.numpy())
    return out
