"""V-trace: targets for learning from rollouts that an older policy acted (Espeholt et al. 2018, arXiv 1802.01561).

Shapes and the index t as in `returns`: [T, B], time first; transition t leads from `values[t]` to `values[t + 1]`.
pi is the policy that learns, mu the one that acted: ratio[t] = pi(a[t] | x[t]) / mu(a[t] | x[t]).

Equation 1, in the recursive form of remark 1:
    v[t] = V[t] + rho[t] * (r[t] + discount * V[t + 1] - V[t]) + discount * c[t] * (v[t + 1] - V[t + 1])
    rho[t] = min(rho_clip, ratio[t]),  c[t] = trace_decay * min(c_clip, ratio[t])
and the policy's gradient is weighted with rho[t] * (r[t] + discount * v[t + 1] - V[t]) (section 4.2).
`trace_decay` is remark 2's lambda. With pi = mu, both clips at least 1 and no decay, v are the n-step returns.

Ends of episodes, as in `returns`: a terminated step has nothing after it; a truncated one goes on with `values[t + 1]`,
the critic's estimate of the episode's true last observation, and with nothing that comes later.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class VTrace(NamedTuple):
    """What the critic and the actor learn from; all [T, B] float32, without gradient, 0 where not valid."""

    targets: Tensor
    """v, for the critic."""
    advantages: Tensor
    """Weights of the policy's gradient, with rho in them."""
    rhos: Tensor
    """The clipped ratios rho: 1 where both policies agree."""


@torch.no_grad()
def vtrace(
    target_log_prob: Tensor,
    behaviour_log_prob: Tensor,
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    *,
    discount: float,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    trace_decay: float = 1.0,
) -> VTrace:
    """V-trace targets and advantages of a rollout, see above.

    Entries that are not valid (autoreset's dummy steps) reach nothing, whatever they contain: their action was not the
    policy's, so a trace that came to one would stop there, with `values[t]`.

    Shapes: target_log_prob (pi's), behaviour_log_prob (mu's), rewards float32 [T, B]; terminated, truncated, valid bool
    [T, B]; values float32 [T + 1, B]. Clips are > 0, `math.inf` = none.
    Raises: ValueError on shapes, types or clips that are not so.
    """
    _check(target_log_prob, behaviour_log_prob, rewards, values, terminated, truncated, valid)
    if not (rho_clip > 0 and c_clip > 0):
        raise ValueError(f"clips must be greater than 0, got {rho_clip} and {c_clip}")
    zero = rewards.new_zeros(())
    # Where it is not valid, a ratio of 0 makes rho = c = 0; the logarithm of 0 also swallows any NaN.
    ratios = torch.where(valid, target_log_prob - behaviour_log_prob, -torch.inf).exp()
    rhos = ratios.clamp(max=rho_clip)
    traces = ratios.clamp(max=c_clip) * trace_decay
    rewards = torch.where(valid, rewards, zero)
    ended = terminated | truncated
    targets = torch.empty_like(rewards)
    advantages = torch.empty_like(rewards)
    following = values[-1]  # v[t + 1], and so V[t + 1] where the trace is cut
    for t in range(len(rewards) - 1, -1, -1):
        following = torch.where(ended[t], values[t + 1], following)
        # Not by a factor 0: what lies behind an end may be anything.
        bootstrap = torch.where(terminated[t] | ~valid[t], zero, discount * values[t + 1])
        ahead = torch.where(terminated[t] | ~valid[t], zero, discount * (following - values[t + 1]))
        error = rewards[t] + bootstrap - values[t]
        # r + discount * v[t + 1] - V[t] is the error plus what lies ahead.
        torch.mul(rhos[t], error + ahead, out=advantages[t])
        following = values[t] + rhos[t] * error + traces[t] * ahead
        targets[t] = following
    return VTrace(torch.where(valid, targets, zero), torch.where(valid, advantages, zero), rhos)


def _check(
    target_log_prob: Tensor, behaviour_log_prob: Tensor, rewards: Tensor, values: Tensor, *flags: Tensor
) -> None:
    if rewards.ndim != 2 or len(rewards) < 1:
        raise ValueError(f"rewards must be [T, B] with T >= 1, got {list(rewards.shape)}")
    steps, simulators = rewards.shape
    numbers = {
        "target_log_prob": (target_log_prob, steps),
        "behaviour_log_prob": (behaviour_log_prob, steps),
        "rewards": (rewards, steps),
        "values": (values, steps + 1),
    }
    for name, (tensor, rows) in numbers.items():
        if tensor.shape != (rows, simulators):
            rule = "[T, B]" if rows == steps else "[T + 1, B]"
            raise ValueError(f"{name} must be {rule} = {[rows, simulators]}, got {list(tensor.shape)}")
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be float32, got {tensor.dtype}")
    for name, tensor in zip(("terminated", "truncated", "valid"), flags, strict=True):
        if tensor.shape != rewards.shape or tensor.dtype != torch.bool:
            raise ValueError(
                f"{name} must be bool [T, B] = {[steps, simulators]}, got {tensor.dtype} {list(tensor.shape)}"
            )
