"""A forward pass over recorded observations against acting, step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from gala.spec import Policy
from gala_worker.flat import FlatState
from gala_worker.model import ActorCritic, Tape, make_policy
from gala_worker.model.batch import forward_batch

ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)
VECTOR = spaces.Box(-math.inf, math.inf, (5,), np.float32)
ACTIONS = {
    "discrete": spaces.Discrete(6),
    "box": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "switches": spaces.MultiBinary(3),
}
STEPS, BATCH = 4, 3

POLICIES = pytest.mark.parametrize(
    ("space", "recurrent"),
    [(ATARI, False), (ATARI, True), (VECTOR, False), (VECTOR, True)],
    ids=["images", "images, recurrent", "vectors", "vectors, recurrent"],
)
TYPES = pytest.mark.parametrize("compute_type", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def build(space: spaces.Box, *, recurrent: bool, actions: str = "discrete") -> tuple[ActorCritic, FlatState]:
    policy = make_policy(space, ACTIONS[actions], Policy(recurrent=recurrent), seed=1)
    with torch.no_grad():
        torch.nn.init.orthogonal_(policy.policy_head.weight, generator=torch.Generator().manual_seed(2))
    return policy, FlatState(policy, policy.gossiped_buffers())


def recorded(space: spaces.Box) -> tuple[Tensor, Tensor]:
    """Observations [T + 1, B, ...] and the flags [T + 1, B] of those that start an episode."""
    generator = torch.Generator().manual_seed(0)
    shape = (STEPS + 1, BATCH, *space.shape)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    observations = images if space is ATARI else torch.randn(shape, generator=generator)
    return observations, torch.rand(STEPS + 1, BATCH, generator=generator) < 0.3


@TYPES
@POLICIES
@pytest.mark.parametrize("actions", list(ACTIONS))
def test_it_gives_what_acting_gave(space: spaces.Box, recurrent: bool, actions: str, compute_type: torch.dtype) -> None:
    policy, _ = build(space, recurrent=recurrent, actions=actions)
    policy.observe(torch.randn(100, 5, generator=torch.Generator().manual_seed(3)) * 3.0 + 1.0)
    observations, starts = recorded(space)
    tape = Tape(policy, STEPS, BATCH, compute_type)
    for _ in range(2):  # the second rollout begins with a state of the first
        state = tape._state
        tape.begin()
        acted = [tape.act(o, s) for o, s in zip(observations[:STEPS], starts[:STEPS], strict=True)]
        bootstrap = tape.bootstrap(observations[STEPS], starts[STEPS])
    replay = forward_batch(policy, observations, starts, state, compute_type=compute_type)
    assert replay.parameters.dtype == replay.values.dtype == torch.float32
    # bfloat16 rounds to 3 digits, and a batch adds up in another order than a step.
    exactness = {"rtol": 1e-4, "atol": 1e-5} if compute_type == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(replay.parameters[:STEPS], torch.stack([a.parameters for a in acted]), **exactness)
    torch.testing.assert_close(replay.values, torch.stack([*(a.value for a in acted), bootstrap]), **exactness)
    assert not torch.is_autocast_enabled("cpu")


@POLICIES
def test_its_gradients_are_those_of_the_tape(space: spaces.Box, recurrent: bool) -> None:
    policy, flat = build(space, recurrent=recurrent)
    observations, starts = recorded(space)
    tape = Tape(policy, STEPS, BATCH)
    tape.begin()
    for observation, start in zip(observations[:STEPS], starts[:STEPS], strict=True):
        tape.act(observation, start)
    gradients = []
    for parameters, values in (tape.replay(), forward_batch(policy, observations[:STEPS], starts[:STEPS])):
        flat.differentiate(parameters.log_softmax(-1)[..., 2].sum() + (values - 1.0).square().sum())
        gradients.append(flat.gradient.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4 * float(gradients[0].abs().max()))


def test_the_state_matters_only_until_an_episode_starts() -> None:
    policy, _ = build(VECTOR, recurrent=True)
    observations, starts = recorded(VECTOR)
    starts[:] = False
    starts[2] = True
    states = [torch.zeros(BATCH, 64), torch.ones(BATCH, 64)]
    zero, one = (forward_batch(policy, observations, starts, state).values for state in states)
    assert not torch.isclose(zero[:2], one[:2]).any()
    assert torch.equal(zero[2:], one[2:])


def test_the_observation_statistics_are_left_alone() -> None:
    policy, flat = build(VECTOR, recurrent=False)
    before = flat.vector.clone()
    forward_batch(policy, *recorded(VECTOR))
    assert torch.equal(flat.vector, before)


def test_shapes_that_do_not_fit_are_refused() -> None:
    policy, _ = build(VECTOR, recurrent=True)
    observations, starts = recorded(VECTOR)
    with pytest.raises(ValueError, match="observations must be"):
        forward_batch(policy, observations[0])
    with pytest.raises(ValueError, match="observations must be"):
        forward_batch(policy, observations[:0])
    with pytest.raises(ValueError, match="starts must be bool"):
        forward_batch(policy, observations, starts[:1])
    with pytest.raises(ValueError, match="starts must be bool"):
        forward_batch(policy, observations, starts.float())
    with pytest.raises(ValueError, match="state must be"):
        forward_batch(policy, observations, starts, torch.zeros(1, 64))
