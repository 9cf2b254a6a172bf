"""One differentiable forward pass over observations that were recorded while acting.

Place in the flow: what `tape` is for a learner that acts itself, this is for one that learns from recorded rollouts,
be it that others acted (IMPALA) or that it looks at its own several times (PPO).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gala_worker.model.network import Nature32
from gala_worker.model.policy import ActorCritic
from gala_worker.model.tape import Replay


def forward_batch(
    policy: ActorCritic,
    observations: Tensor,
    starts: Tensor | None = None,
    state: Tensor | None = None,
    *,
    compute_type: torch.dtype = torch.float32,
) -> Replay:
    """What `policy` says, with its parameters of now, to each of the observations; float32, with a graph.

    Recurrent policies go through the T steps one after another, from `state`, which is a constant; a zero state takes
    its place where `starts`. Other policies read neither, and take all steps as one batch. The observation statistics
    are used as they are and not changed.

    Shapes: observations [T, B, ...], T being whatever was recorded (with the row for the bootstrap it is one more than
    the actions); starts bool [T, B]; state [B, H], None = zeros. Returns parameters [T, B, A'] and values [T, B].
    `compute_type` is float32 or bfloat16: what the trunks compute in, as while acting.
    Raises: ValueError on shapes that do not fit each other.
    """
    _check(policy, observations, starts, state)
    steps, batch = observations.shape[:2]
    flat = observations.flatten(0, 1)
    images = isinstance(policy.trunk, Nature32)
    reduces = compute_type != torch.float32
    with torch.autocast(flat.device.type, compute_type, enabled=reduces):
        inputs = policy.prepare(flat)
        features = policy.trunk(inputs)
        judged = None if policy.critic_trunk is None else policy.critic_trunk(inputs)
        if images:
            features = features.to(torch.float32)
        if policy.memory is None:
            output = policy.decide(features, judged, None, None)
            parameters, values = output.parameters, output.value
        else:
            # As `Tape` does it: behind a convolutional trunk the memory is too small to gain from the shorter type.
            with torch.autocast(flat.device.type, compute_type, enabled=reduces and not images):
                parameters, values = _through_memory(policy, features.unflatten(0, (steps, batch)), starts, state)
    return Replay(parameters.reshape(steps, batch, -1), values.reshape(steps, batch))


def _through_memory(
    policy: ActorCritic, features: Tensor, starts: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    parameters, values = [], []
    for t, step in enumerate(features):
        output = policy.decide(step, None, state, None if starts is None else starts[t])
        state = output.state
        parameters.append(output.parameters)
        values.append(output.value)
    return torch.stack(parameters), torch.stack(values)


def _check(policy: ActorCritic, observations: Tensor, starts: Tensor | None, state: Tensor | None) -> None:
    if observations.ndim < 3 or min(observations.shape) < 1:
        raise ValueError(f"observations must be [T, B, ...] with none empty, got {list(observations.shape)}")
    steps, batch = observations.shape[:2]
    if starts is not None and (starts.shape != (steps, batch) or starts.dtype != torch.bool):
        raise ValueError(f"starts must be bool [T, B] = {[steps, batch]}, got {starts.dtype} {list(starts.shape)}")
    if state is not None and policy.memory is not None and state.shape != (batch, policy.memory.hidden_size):
        raise ValueError(f"state must be [B, H] = {[batch, policy.memory.hidden_size]}, got {list(state.shape)}")
