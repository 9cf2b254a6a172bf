"""The mathematics of mixing: one pass over the vector that averages and measures.

Shapes: x and every message m_j are [N].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

BLOCK: Final = 1 << 16
"""Elements that are mixed at a time on a CPU: the block, the messages' and the scratch space stay in the cache, and no
temporary of the model's size is needed."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far x was from what it was mixed with."""

    disagreement: float
    """||x - m||, before mixing; over several neighbours the root mean square."""
    relative: float
    """disagreement / ||x||; 0 when both are 0."""


class Mixer:
    """Averages in place; keeps the scratch space for it."""

    def __init__(self) -> None:
        self._scratch = torch.empty(0)

    @torch.no_grad()
    def mix_(self, x: Tensor, messages: Sequence[Tensor]) -> Distance:
        """x <- (x + sum of m_j) / (1 + number of messages), in place.

        Args:
            x: float32 [N], on any device.
            messages: at least one, float32 or bfloat16 [N], on the CPU.
        """
        share = 1.0 / (1 + len(messages))
        block = BLOCK if x.device.type == "cpu" else x.numel()
        if self._scratch.numel() < min(block, x.numel()) or self._scratch.device != x.device:
            self._scratch = torch.empty(min(block, x.numel()), device=x.device)
        squares = torch.zeros(2, dtype=torch.float64, device=x.device)
        for start in range(0, x.numel(), block):
            part = x[start : start + block]
            squares[1] += torch.dot(part, part)
            if len(messages) == 1:
                step = torch.sub(self._arrived(messages[0], start, part), part, out=self._scratch[: part.numel()])
                squares[0] += torch.dot(step, step)
                part.add_(step, alpha=share)
                continue
            pull = torch.zeros_like(part)
            for message in messages:
                step = torch.sub(self._arrived(message, start, part), part, out=self._scratch[: part.numel()])
                squares[0] += torch.dot(step, step)
                pull += step
            part.add_(pull, alpha=share)
        distance, norm = (squares / torch.tensor([len(messages), 1], device=x.device)).sqrt().tolist()
        return Distance(distance, distance / norm if norm else 0.0)

    @staticmethod
    def _arrived(message: Tensor, start: int, part: Tensor) -> Tensor:
        return message[start : start + part.numel()].to(part.device, non_blocking=True)
