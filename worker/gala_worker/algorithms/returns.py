"""Targets of one rollout: n-step returns and generalised advantages.

Shapes, once for all: T steps, B simulators, time first. The index t runs over transitions: `observations[t]`, action,
`rewards[t]`, `observations[t + 1]`; so `values[t]` belongs to the state acted in, and `values` has T + 1 rows, the last
for the state after the rollout.

Two ways in which an episode stops at t:
- terminated: nothing can be earned any more, the return is the reward alone;
- truncated (a time limit): the episode only stopped being watched, so the return goes on with the critic's estimate of
  `observations[t + 1]`, which under next-step autoreset is the true last observation of that episode.
The transition after such an end (autoreset's dummy step) gets a meaningless target here and is masked out by the loss.
What lies behind an end may be anything, even NaN: it is left out by choice, not by a factor of 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Targets(NamedTuple):
    """What the critic and the actor learn from; both [T, B] float32, without gradient."""

    returns: Tensor
    advantages: Tensor


def targets(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    discount: float,
    gae_lambda: float | None = None,
) -> Targets:
    """Returns and advantages of a rollout: n-step when `gae_lambda` is None, else generalised advantage estimation.

    Shapes: rewards, terminated, truncated [T, B]; values [T + 1, B].
    """
    baseline = values.detach()[:-1]
    if gae_lambda is None:
        returns = n_step_returns(rewards, values, terminated, truncated, discount)
        return Targets(returns, returns - baseline)
    advantages = gae(rewards, values, terminated, truncated, discount, gae_lambda)
    return Targets(advantages + baseline, advantages)


@torch.no_grad()
def n_step_returns(rewards: Tensor, values: Tensor, terminated: Tensor, truncated: Tensor, discount: float) -> Tensor:
    """Discounted sum of the rewards up to the end of the rollout or of the episode, then the critic: [T, B] float32.

    R[t] = r[t]                               if terminated[t]
         = r[t] + discount * V[t + 1]         if truncated[t], or t is the last step
         = r[t] + discount * R[t + 1]         otherwise
    Raises: ValueError on shapes that do not fit each other.
    """
    _check(rewards, values, terminated, truncated)
    zero, factor = rewards.new_zeros(()), rewards.new_full((), discount)
    returns = torch.empty_like(rewards)
    following = values[-1]
    for t in range(len(rewards) - 1, -1, -1):
        following = torch.where(truncated[t], values[t + 1], following)
        following = torch.where(terminated[t], zero, following)
        following = torch.addcmul(rewards[t], factor, following, out=returns[t])
    return returns


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, terminated: Tensor, truncated: Tensor, discount: float, gae_lambda: float
) -> Tensor:
    """Generalised advantage estimation (arXiv 1506.02438, equation 16): [T, B] float32.

    A[t] = sum over l of (discount * lambda)^l * delta[t + l], where
    delta[t] = r[t] + discount * V[t + 1] * (not terminated[t]) - V[t];
    the sum stops with the episode, whichever way it ended. With lambda = 1 it is `n_step_returns - values`.
    Raises: ValueError on shapes that do not fit each other.
    """
    _check(rewards, values, terminated, truncated)
    zero, factor = rewards.new_zeros(()), rewards.new_full((), discount * gae_lambda)
    ended = terminated | truncated
    deltas = rewards - values[:-1] + torch.where(terminated, zero, discount * values[1:])
    advantages = torch.empty_like(rewards)
    following = torch.zeros_like(values[-1])
    for t in range(len(rewards) - 1, -1, -1):
        following = torch.where(ended[t], zero, following)
        following = torch.addcmul(deltas[t], factor, following, out=advantages[t])
    return advantages


def _check(rewards: Tensor, values: Tensor, terminated: Tensor, truncated: Tensor) -> None:
    if rewards.ndim != 2 or len(rewards) < 1:
        raise ValueError(f"rewards must be [T, B] with T >= 1, got {list(rewards.shape)}")
    steps, simulators = rewards.shape
    if values.shape != (steps + 1, simulators):
        raise ValueError(f"values must be [T + 1, B] = {[steps + 1, simulators]}, got {list(values.shape)}")
    for name, flags in (("terminated", terminated), ("truncated", truncated)):
        if flags.shape != rewards.shape:
            raise ValueError(f"{name} must be [T, B] = {list(rewards.shape)}, got {list(flags.shape)}")
        if flags.dtype != torch.bool:
            raise ValueError(f"{name} must be bool, got {flags.dtype}")
    for name, numbers in (("rewards", rewards), ("values", values)):
        if numbers.dtype != torch.float32:
            raise ValueError(f"{name} must be float32, got {numbers.dtype}")
