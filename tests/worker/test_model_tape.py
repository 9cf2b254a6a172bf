"""A tape's replay against what it stands for: running the policy on every step with autograd."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from gala.spec import Policy
from gala_worker.flat import FlatState
from gala_worker.model import ActorCritic, Tape, convolution_tape, make_policy

ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)
VECTOR = spaces.Box(-math.inf, math.inf, (5,), np.float32)
STEPS, BATCH = 4, 3

POLICIES = pytest.mark.parametrize(
    ("space", "recurrent"),
    [(ATARI, False), (ATARI, True), (VECTOR, False), (VECTOR, True)],
    ids=["images", "images, recurrent", "vectors", "vectors, recurrent"],
)


def build(space: spaces.Box, **settings: Any) -> tuple[ActorCritic, FlatState]:
    policy = make_policy(space, spaces.Discrete(6), Policy(**settings), seed=1)
    with torch.no_grad():
        # Heads of equal size, so that no gradient hides in the noise of another one.
        torch.nn.init.orthogonal_(policy.policy_head.weight)
    return policy, FlatState(policy, policy.gossiped_buffers())


def rollout(space: spaces.Box, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Observations of T + 1 steps, and the flags of those that start an episode."""
    generator = torch.Generator().manual_seed(seed)

    def observe() -> Tensor:
        if space is ATARI:
            return torch.randint(0, 256, (BATCH, 4, 84, 84), dtype=torch.uint8, generator=generator)
        return torch.randn(BATCH, 5, generator=generator)

    starts = [torch.rand(BATCH, generator=generator) < 0.3 for _ in range(STEPS + 1)]
    return [observe() for _ in range(STEPS + 1)], starts


def act(tape: Tape, observations: list[Tensor], starts: list[Tensor]) -> tuple[Tensor, Tensor]:
    tape.begin()
    outputs = [tape.act(o, s) for o, s in zip(observations[:STEPS], starts[:STEPS], strict=True)]
    values = [*(output.value for output in outputs), tape.bootstrap(observations[STEPS], starts[STEPS])]
    return torch.stack([output.parameters for output in outputs]), torch.stack(values)


def loss_of(parameters: Tensor, values: Tensor) -> Tensor:
    weights = torch.linspace(-1.0, 1.0, STEPS * BATCH).view(STEPS, BATCH)
    return (parameters.log_softmax(-1)[..., 2] * weights).sum() + (values[:STEPS] - 1.0).square().sum()


def by_autograd(policy: ActorCritic, observations: list[Tensor], starts: list[Tensor]) -> tuple[Tensor, Tensor]:
    state = policy.initial_state(BATCH)
    parameters, values = [], []
    for observation, start in zip(observations, starts, strict=True):
        output = policy(observation, state, start)
        state = output.state
        parameters.append(output.parameters)
        values.append(output.value)
    return torch.stack(parameters[:STEPS]), torch.stack(values)


def named_gradients(flat: FlatState) -> dict[str, Tensor]:
    return flat.tensors(torch.cat([flat.gradient, torch.zeros(len(flat.vector) - len(flat.gradient))]))


@POLICIES
def test_acting_and_replay_equal_the_policy(space: spaces.Box, recurrent: bool) -> None:
    policy, _ = build(space, recurrent=recurrent)
    observations, starts = rollout(space)
    tape = Tape(policy, STEPS, BATCH)
    parameters, values = act(tape, observations, starts)
    expected_parameters, expected_values = by_autograd(policy, observations, starts)
    torch.testing.assert_close(parameters, expected_parameters, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values, expected_values, rtol=1e-4, atol=1e-5)
    replay = tape.replay()
    torch.testing.assert_close(replay.parameters, parameters, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(replay.values, values[:STEPS], rtol=1e-4, atol=1e-5)


@POLICIES
def test_gradients_equal_autograd(space: spaces.Box, recurrent: bool) -> None:
    policy, flat = build(space, recurrent=recurrent)
    observations, starts = rollout(space)
    flat.differentiate(loss_of(*by_autograd(policy, observations, starts)))
    expected = named_gradients(flat)
    tape = Tape(policy, STEPS, BATCH)
    act(tape, observations, starts)
    flat.differentiate(loss_of(*tape.replay()))
    found = named_gradients(flat)
    for name, _ in policy.named_parameters():
        scale = float(expected[name].abs().max())
        assert scale > 0, name
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_backward_pass_in_pieces_equals_one_over_all(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, flat = build(ATARI)
    observations, starts = rollout(ATARI)
    gradients = []
    for images in (STEPS * BATCH, 5, 1):  # of 12
        monkeypatch.setitem(convolution_tape.PIECE_BYTES, dtype, images * 21 * 21 * 64 * dtype.itemsize)
        tape = Tape(policy, STEPS, BATCH, dtype)
        act(tape, observations, starts)
        flat.differentiate(loss_of(*tape.replay()))
        gradients.append(flat.gradient.clone())
    whole, *others = gradients
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    for other in others:
        assert (other - whole).norm() < tolerance * whole.norm()
        assert not torch.equal(other, whole)


@pytest.mark.parametrize("recurrent", [False, True])
def test_bfloat16_gradients_point_where_float32_ones_do(recurrent: bool) -> None:
    policy, flat = build(ATARI, recurrent=recurrent)
    observations, starts = rollout(ATARI)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        tape = Tape(policy, STEPS, BATCH, dtype)
        act(tape, observations, starts)
        flat.differentiate(loss_of(*tape.replay()))
        gradients.append(flat.gradient.clone())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.995
    assert not torch.equal(*gradients)


@POLICIES
def test_the_next_rollout_uses_the_parameters_as_they_are_then(space: spaces.Box, recurrent: bool) -> None:
    policy, flat = build(space, recurrent=recurrent)
    observations, starts = rollout(space)
    starts[0][:] = True
    tape = Tape(policy, STEPS, BATCH)
    first = act(tape, observations, starts)
    flat.differentiate(loss_of(*tape.replay()))
    flat.trainable.add_(flat.gradient, alpha=-1e-3)
    second = act(tape, observations, starts)
    fresh = act(Tape(policy, STEPS, BATCH), observations, starts)
    for before, after, expected in zip(first, second, fresh, strict=True):
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, expected)


def test_memory_goes_on_into_the_next_rollout_but_gradients_do_not() -> None:
    policy, flat = build(VECTOR, recurrent=True)
    observations, starts = rollout(VECTOR)
    starts = [torch.zeros(BATCH, dtype=torch.bool)] * (STEPS + 1)
    tape = Tape(policy, STEPS, BATCH)
    first = act(tape, observations, starts)[1]
    flat.differentiate(loss_of(*tape.replay()))
    second = act(tape, observations, starts)[1]
    assert not torch.isclose(first, second).any()
    replay = tape.replay()
    torch.testing.assert_close(replay.values, second[:STEPS], rtol=1e-4, atol=1e-5)
    flat.differentiate(loss_of(*replay))


@POLICIES
@pytest.mark.parametrize("normalises", [True, False])
def test_observation_arrays_may_be_reused_after_each_step(space: spaces.Box, recurrent: bool, normalises: bool) -> None:
    policy, flat = build(space, recurrent=recurrent, normalize_observations=normalises and space is VECTOR)
    observations, starts = rollout(space)
    gradients = []
    for reuse in (False, True):
        tape = Tape(policy, STEPS, BATCH)
        tape.begin()
        shared = observations[0].clone()
        for observation, start in zip(observations[:STEPS], starts[:STEPS], strict=True):
            tape.act(shared.copy_(observation) if reuse else observation, start)
        shared.zero_()
        flat.differentiate(loss_of(*tape.replay()))
        gradients.append(flat.gradient.clone())
    assert torch.equal(*gradients)


def test_a_replay_that_the_next_rollout_has_overwritten_is_refused() -> None:
    policy, _ = build(ATARI)
    observations, starts = rollout(ATARI)
    tape = Tape(policy, STEPS, BATCH)
    act(tape, observations, starts)
    loss = loss_of(*tape.replay())
    act(tape, observations, starts)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_statistics_may_change_within_a_rollout_as_acting_saw_them() -> None:
    policy, _ = build(VECTOR)
    observations, starts = rollout(VECTOR)
    tape = Tape(policy, STEPS, BATCH)
    tape.begin()
    values = []
    for observation, start in zip(observations[:STEPS], starts[:STEPS], strict=True):
        values.append(tape.act(observation, start).value)
        policy.observe(10.0 * observation)
    torch.testing.assert_close(tape.replay().values, torch.stack(values), rtol=1e-4, atol=1e-5)
