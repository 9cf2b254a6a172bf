"""The mathematics of mixing: the average of neighbours, and how far apart they were.

Shapes: x and every message m_j are [N].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

BLOCK: Final = 1 << 18
"""Elements that a CPU works on in one go, so that no conversion or difference needs a temporary of the model's size."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a learner is from its neighbours."""

    disagreement: float
    """||x - m||; over several neighbours the root mean square."""
    relative: float
    """disagreement / ||x||; 0 when both are 0."""


@torch.no_grad()
def mix_(x: Tensor, messages: Sequence[Tensor]) -> None:
    """x <- (x + sum of m_j) / (1 + number of messages), in place.

    Args:
        x: float32 [N], on any device.
        messages: at least one, float32 or bfloat16 [N], on the CPU.
    """
    share = 1.0 / (1 + len(messages))
    for part, others in blocks(x, messages):
        if len(others) == 1:
            torch.lerp(part, others[0], share, out=part)
            continue
        for other in others:
            part.add_(other)
        part.mul_(share)


@torch.no_grad()
def distance(x: Tensor, messages: Sequence[Tensor]) -> Distance:
    """How far x is from what it is to be mixed with; costs several times as much as mixing. Arguments as of `mix_`."""
    apart = norm = 0.0
    for part, others in blocks(x, messages):
        norm += float(torch.dot(part, part))
        for other in others:
            step = other - part
            apart += float(torch.dot(step, step))
    apart, norm = (apart / len(messages)) ** 0.5, norm**0.5
    return Distance(apart, apart / norm if norm else 0.0)


def blocks(x: Tensor, messages: Sequence[Tensor]) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """x in consecutive windows, each with the same elements of the messages in x's type and on its device.

    What goes to a GPU is there before this goes on: the messages' memory is given back, and filled again, right after.
    """
    size = BLOCK if x.device.type == "cpu" else max(1, x.numel())
    for start in range(0, x.numel(), size):
        span = slice(start, start + size)
        yield x[span], [message[span].to(x.device).to(x.dtype) for message in messages]
