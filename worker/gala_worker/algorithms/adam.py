"""Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) on one flat vector, with clipping by the gradient norm.

As in `rmsprop`, parameters, gradient and moments are one contiguous tensor each. The arithmetic is torch's: epsilon is
added to the square root after its bias has been corrected, there is no weight decay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gala_worker.algorithms.rmsprop import SQUARE_AVERAGE, Step, square_root

AVERAGE = "optimizer.average"
STEPS = "optimizer.steps"

AVERAGE_DECAY = 0.9
SQUARE_AVERAGE_DECAY = 0.999
# torch.nn.utils.clip_grad_norm_ adds this to the norm.
_NORM_EPSILON = 1e-6


class Adam:
    """Optimiser of `parameters` [P], a flat float32 tensor that is changed in place.

    `state` is everything that a checkpoint has to keep, by the names it has there; `copy_` into it to resume.
    """

    def __init__(self, parameters: Tensor, *, epsilon: float) -> None:
        if parameters.ndim != 1 or parameters.dtype != torch.float32:
            raise ValueError(
                f"parameters must be a flat float32 tensor, got {parameters.dtype} {list(parameters.shape)}"
            )
        self._parameters = parameters.detach()
        self._epsilon = epsilon
        self._scratch = torch.empty_like(self._parameters)
        self._average = torch.zeros_like(self._parameters)
        self._square_average = torch.zeros_like(self._parameters)
        # On the CPU, where it is used: reading it from a GPU would wait for all that the GPU has to do.
        self._steps = torch.zeros((), dtype=torch.int64)
        self.state: dict[str, Tensor] = {
            AVERAGE: self._average,
            SQUARE_AVERAGE: self._square_average,
            STEPS: self._steps,
        }

    @torch.no_grad()
    def step(
        self, gradient: Tensor, *, learning_rate: float, max_gradient_norm: float, measure_update: bool = False
    ) -> Step:
        """One update with `gradient` [P], scaled down to `max_gradient_norm` where it is longer; it is left as it is.

        A gradient that is not finite changes nothing, as in `RMSprop.step`; the caller sees it in the norm returned.
        Raises: ValueError on another shape.
        """
        if gradient.shape != self._parameters.shape:
            raise ValueError(f"gradient must be {list(self._parameters.shape)}, got {list(gradient.shape)}")
        norm = float(torch.linalg.vector_norm(gradient))
        if not norm < float("inf"):
            return Step(norm, 0.0 if measure_update else None)
        clip = min(1.0, max_gradient_norm / (norm + _NORM_EPSILON))
        self._steps.add_(1)
        steps = int(self._steps)
        self._average.mul_(AVERAGE_DECAY).add_(gradient, alpha=(1.0 - AVERAGE_DECAY) * clip)
        self._square_average.mul_(SQUARE_AVERAGE_DECAY).addcmul_(
            gradient, gradient, value=(1.0 - SQUARE_AVERAGE_DECAY) * clip * clip
        )
        correction = (1.0 - SQUARE_AVERAGE_DECAY**steps) ** 0.5
        rate = learning_rate / (1.0 - AVERAGE_DECAY**steps)
        update = square_root(self._square_average, out=self._scratch).div_(correction).add_(self._epsilon)
        if not measure_update:
            self._parameters.addcdiv_(self._average, update, value=-rate)
            return Step(norm, None)
        torch.div(self._average, update, out=update)
        self._parameters.add_(update, alpha=-rate)
        return Step(norm, rate * float(torch.linalg.vector_norm(update)))
