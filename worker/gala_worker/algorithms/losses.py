"""The advantage actor-critic loss: a pure function of one rollout. Shapes as in `returns`: [T, B], time first."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class A2CLoss(NamedTuple):
    """Scalars: `total` carries the gradient, the other three are its parts (before their coefficients), detached."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor


def a2c_loss(
    log_prob: Tensor,
    entropy: Tensor,
    values: Tensor,
    returns: Tensor,
    advantages: Tensor,
    valid: Tensor,
    *,
    value_coefficient: float,
    entropy_coefficient: float,
    reduction: Literal["mean", "sum"] = "mean",
) -> A2CLoss:
    """total = policy + value_coefficient * value - entropy_coefficient * entropy, means over the valid transitions.

    policy = mean(-log_prob * advantage), value = mean((return - value)^2), entropy = mean(entropy).
    With reduction "sum", `total` is that many times larger (A3C and IMPALA were published so); the parts stay means.

    Only log_prob, entropy and values are differentiated; targets are constants. Transitions that are not valid
    (autoreset's dummy steps) count nowhere, whatever they contain; with none valid the loss and its gradient are zero.

    Shapes: all [T, B]; valid is bool.
    Raises: ValueError on unequal shapes.
    """
    _check(log_prob, entropy, values, returns, advantages, valid)
    # Invalid entries are taken out before any arithmetic: what they hold, even NaN, then reaches no sum or gradient.
    zero = values.new_zeros(())
    log_prob, entropy, values, returns, advantages = (
        torch.where(valid, tensor, zero)
        for tensor in (log_prob, entropy, values, returns.detach(), advantages.detach())
    )
    count = valid.sum().clamp(min=1)
    policy = -(log_prob * advantages).sum() / count
    value = (returns - values).square().sum() / count
    spread = entropy.sum() / count
    total = policy + value_coefficient * value - entropy_coefficient * spread
    if reduction == "sum":
        total = total * count
    return A2CLoss(total, policy.detach(), value.detach(), spread.detach())


def _check(log_prob: Tensor, *others: Tensor) -> None:
    if log_prob.ndim != 2:
        raise ValueError(f"log_prob must be [T, B], got {list(log_prob.shape)}")
    names = ("entropy", "values", "returns", "advantages", "valid")
    for name, tensor in zip(names, others, strict=True):
        if tensor.shape != log_prob.shape:
            raise ValueError(f"{name} must be [T, B] = {list(log_prob.shape)}, got {list(tensor.shape)}")
    if others[-1].dtype != torch.bool:
        raise ValueError(f"valid must be bool, got {others[-1].dtype}")
