"""The mathematics of mixing: the average of neighbours, and how far apart they were.

Shapes: x and every message m_j are [N].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

BLOCK: Final = 1 << 18
"""Elements that a distance looks at in one go on a CPU, so that it needs no temporary of the model's size."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a learner is from its neighbours."""

    disagreement: float
    """||x - m||; over several neighbours the root mean square."""
    relative: float
    """disagreement / ||x||; 0 when both are 0."""


@torch.no_grad()
def mix_(x: Tensor, messages: Sequence[Tensor]) -> None:
    """x <- (x + sum of m_j) / (1 + number of messages), in place: one pass for one message of x's type.

    Args:
        x: float32 [N], on any device.
        messages: at least one, float32 or bfloat16 [N], on the CPU.
    """
    share = 1.0 / (1 + len(messages))
    if len(messages) == 1 and messages[0].dtype is x.dtype:
        torch.lerp(x, _near(messages[0], x), share, out=x)
        return
    for message in messages:
        x.add_(_near(message, x))
    x.mul_(share)


@torch.no_grad()
def distance(x: Tensor, messages: Sequence[Tensor]) -> Distance:
    """How far x is from what it is to be mixed with; costs several times as much as mixing. Arguments as of `mix_`."""
    block = BLOCK if x.device.type == "cpu" else max(1, x.numel())
    apart = norm = 0.0
    for start in range(0, x.numel(), block):
        part = x[start : start + block]
        norm += float(torch.dot(part, part))
        for message in messages:
            step = _near(message[start : start + block], x) - part
            apart += float(torch.dot(step, step))
    apart, norm = (apart / len(messages)) ** 0.5, norm**0.5
    return Distance(apart, apart / norm if norm else 0.0)


def _near(message: Tensor, x: Tensor) -> Tensor:
    return message.to(x.device, non_blocking=True)
