"""Which network an environment gets, how it starts, and what it computes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn import functional

from gala.errors import SimulatorError, SpecError
from gala.spec import Policy
from gala_worker.flat import FlatState
from gala_worker.model import ActorCritic, make_policy
from gala_worker.model.network import Mlp, Nature32, patches

ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)
VECTOR = spaces.Box(-math.inf, math.inf, (5,), np.float32)
ACTIONS = spaces.Discrete(6)
BATCH = 3


def build(observations: spaces.Space = ATARI, actions: spaces.Space = ACTIONS, **policy: Any) -> ActorCritic:
    return make_policy(observations, actions, Policy(**policy), seed=1)


def batch_of(space: spaces.Box, seed: int = 0) -> torch.Tensor:
    space.seed(seed)
    return torch.from_numpy(np.stack([space.sample() for _ in range(BATCH)]))


def plain_nature(policy: ActorCritic, images: torch.Tensor) -> torch.Tensor:
    """The trunk as everybody writes it: divided pixels, 8x8 convolution; the last picture in the order H, W, C."""
    trunk = policy.trunk
    assert isinstance(trunk, Nature32)
    hidden = images.double() / 255.0
    for layer, stride in ((trunk.conv1, 4), (trunk.conv2, 2), (trunk.conv3, 1)):
        assert layer.bias is not None
        hidden = functional.conv2d(hidden, layer.weight.double(), layer.bias.double(), stride).relu()
    hidden = hidden.permute(0, 2, 3, 1).flatten(1)
    return functional.linear(hidden, trunk.full.weight.double(), trunk.full.bias.double()).relu()


def test_nature_equals_the_textbook_network() -> None:
    policy = build()
    images = batch_of(ATARI)
    with torch.no_grad():
        for bias in (layer.bias for layer in policy.trunk.children()):
            bias.uniform_(-0.1, 0.1)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(policy.trunk(images), plain_nature(policy, images).float(), rtol=1e-4, atol=1e-5)


def test_nature_gradients_equal_those_of_the_textbook_network() -> None:
    policy = build()
    images = batch_of(ATARI)
    weights = torch.randn(BATCH, 512)
    names, parameters = zip(*policy.trunk.named_parameters(), strict=True)
    ours = torch.autograd.grad((policy.trunk(images) * weights).sum(), parameters)
    theirs = torch.autograd.grad((plain_nature(policy, images) * weights).sum(), parameters)
    for name, mine, other in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()), msg=name)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_patches_hold_four_by_four_pixels_of_every_channel(channels: int, dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (2, channels, 84, 84), dtype=torch.uint8).to(dtype)
    result = patches(images)
    assert result.shape == (2, 21, 21, 16 * channels)
    assert result.dtype == dtype
    expected = images[1, :, 12:16, 40:44].reshape(-1)
    assert torch.equal(result[1, 3, 10], expected)


def test_patches_take_images_that_are_windows_into_a_larger_tensor() -> None:
    images = torch.randint(0, 256, (2, 5, 84, 84), dtype=torch.uint8)
    assert torch.equal(patches(images[:, 1:]), patches(images[:, 1:].clone()))


def test_nature_has_the_size_of_the_papers_network() -> None:
    count = sum(parameter.numel() for parameter in build().parameters())
    assert count == 4 * 32 * 64 + 32 + 32 * 64 * 16 + 64 + 64 * 32 * 9 + 32 + 1568 * 512 + 512 + 7 * 512 + 7


@pytest.mark.parametrize("space", [ATARI, VECTOR], ids=["images", "vectors"])
def test_weights_start_orthogonal_with_their_gains_and_biases_at_zero(space: spaces.Box) -> None:
    policy = build(space)
    for name, layer in policy.named_modules():
        if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            continue
        gain = {"policy_head": 0.01, "value_head": 1.0}.get(name, math.sqrt(2.0))
        weight = layer.weight.detach().flatten(1)
        gram = weight @ weight.t() if len(weight) <= weight.shape[1] else weight.t() @ weight
        torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram)), rtol=0.0, atol=1e-4, msg=name)
        assert layer.bias is not None
        assert layer.bias.eq(0).all(), name


def test_equal_seeds_give_equal_parameters_and_leave_other_random_numbers_alone() -> None:
    torch.manual_seed(99)
    undisturbed = torch.rand(3)
    torch.manual_seed(99)
    first = build(VECTOR)
    assert torch.equal(torch.rand(3), undisturbed)
    second, other = build(VECTOR), make_policy(VECTOR, ACTIONS, Policy(), seed=2)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not all(map(torch.equal, first.parameters(), other.parameters()))


def test_auto_is_the_convolutions_for_images_and_the_mlp_for_vectors() -> None:
    assert isinstance(build(ATARI).trunk, Nature32)
    assert isinstance(build(spaces.Box(0, 255, (1, 84, 84), np.uint8)).trunk, Nature32)
    assert isinstance(build(VECTOR).trunk, Mlp)
    assert isinstance(build(spaces.Box(0, 255, (128,), np.uint8)).trunk, Mlp)
    assert isinstance(build(ATARI, network="mlp").trunk, Mlp)


def test_mlp_has_the_widths_asked_for_and_a_trunk_for_each_head() -> None:
    policy = build(VECTOR, hidden_sizes=(7, 9, 11))
    for trunk in (policy.trunk, policy.critic_trunk):
        assert isinstance(trunk, Mlp)
        assert [layer.out_features for layer in trunk.layers] == [7, 9, 11]  # type: ignore[union-attr]
    assert not any(a is b for a in policy.trunk.parameters() for b in policy.critic_trunk.parameters())  # type: ignore[union-attr]


def test_images_that_are_floats_are_not_scaled() -> None:
    bytes_, floats = build(ATARI), build(spaces.Box(0.0, 1.0, (4, 84, 84), np.float32))
    images = batch_of(ATARI)
    torch.testing.assert_close(floats(images.float() / 255.0).value, bytes_(images).value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", [ATARI, VECTOR], ids=["images", "vectors"])
@pytest.mark.parametrize("actions", [ACTIONS, spaces.Box(-1, 1, (2,)), spaces.MultiBinary(3)], ids=str)
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_outputs_are_float32_of_the_promised_shapes_and_every_parameter_learns(
    space: spaces.Box, actions: spaces.Space, recurrent: bool, bfloat16: bool
) -> None:
    policy = build(space, actions, recurrent=recurrent)
    state = policy.initial_state(BATCH)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        output = policy(batch_of(space), state, torch.zeros(BATCH, dtype=torch.bool))
        output = policy(batch_of(space, seed=1), output.state, torch.zeros(BATCH, dtype=torch.bool))
    assert output.parameters.shape == (BATCH, policy.actions.num_parameters)
    assert output.value.shape == (BATCH,)
    assert output.parameters.dtype == output.value.dtype == torch.float32
    assert (output.state is not None) == recurrent
    chosen = policy.actions.sample(output.parameters)
    loss = policy.actions.log_prob(output.parameters, chosen).sum() + output.value.square().sum()
    loss.backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_values_are_not_rounded_to_bfloat16() -> None:
    policy = build(VECTOR)
    with torch.no_grad():
        policy.value_head.bias.fill_(100.125)
        policy.value_head.weight.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        assert policy(batch_of(VECTOR)).value.tolist() == [100.125] * BATCH


@pytest.mark.parametrize("space", [ATARI, VECTOR], ids=["images", "vectors"])
def test_memory_is_forgotten_where_an_episode_starts_and_nowhere_else(space: spaces.Box) -> None:
    policy = build(space, recurrent=True)
    observations = batch_of(space)
    state = torch.randn(BATCH, policy.initial_state(1).shape[1])  # type: ignore[union-attr]
    kept = policy(observations, state, torch.tensor([False, True, False]))
    fresh = policy(observations, policy.initial_state(BATCH), torch.zeros(BATCH, dtype=torch.bool))
    assert torch.equal(kept.value[1], fresh.value[1])
    assert not torch.isclose(kept.value[[0, 2]], fresh.value[[0, 2]]).any()


def test_a_state_that_is_not_finite_is_forgotten_too() -> None:
    policy = build(VECTOR, recurrent=True)
    state = torch.full((BATCH, 64), math.nan)
    assert policy(batch_of(VECTOR), state, torch.ones(BATCH, dtype=torch.bool)).value.isfinite().all()


def test_vectors_are_normalised_unless_told_otherwise_and_images_never() -> None:
    assert build(VECTOR).gossiped_buffers() == [
        "normalisation.mean",
        "normalisation.variance",
        "normalisation.count",
    ]
    assert build(VECTOR, normalize_observations=False).gossiped_buffers() == []
    assert build(ATARI).gossiped_buffers() == []
    images = build(ATARI)
    images.observe(batch_of(ATARI))


def test_statistics_live_in_the_flat_vector_and_change_the_outputs() -> None:
    policy = build(VECTOR)
    flat = FlatState(policy, policy.gossiped_buffers())
    assert len(flat.vector) == len(flat.trainable) + 5 + 5 + 1
    observations = 100.0 * torch.randn(BATCH, 5)
    before, trained = policy(observations).value, flat.trainable.clone()
    policy.observe(observations)
    assert flat.vector[-1] == BATCH
    assert not torch.isclose(policy(observations).value, before).any()
    assert torch.equal(flat.trainable, trained)
    # What neighbours mix in arrives in the policy.
    flat.vector[len(flat.trainable) : len(flat.trainable) + 5] = 7.0
    assert policy.normalisation is not None
    assert policy.normalisation.mean.tolist() == [7.0] * 5


@pytest.mark.parametrize(
    ("space", "settings", "path"),
    [
        (VECTOR, {"network": "nature-32"}, "spec.policy.network"),
        (spaces.Box(0, 255, (210, 160, 3), np.uint8), {"network": "nature-32"}, "spec.policy.network"),
        (ATARI, {"normalize_observations": True}, "spec.policy.normalizeObservations"),
    ],
    ids=["vector", "large image", "normalised image"],
)
def test_a_network_that_does_not_suit_is_the_specs_problem(
    space: spaces.Space, settings: dict[str, Any], path: str
) -> None:
    with pytest.raises(SpecError) as caught:
        build(space, **settings)
    assert [problem.path for problem in caught.value.problems] == [path]


def test_images_of_another_size_are_refused_with_the_ways_out() -> None:
    with pytest.raises(SimulatorError, match=r"\(210, 160, 3\).*resizes.*spec.policy.network: mlp"):
        build(spaces.Box(0, 255, (210, 160, 3), np.uint8))


@pytest.mark.parametrize("space", [spaces.Discrete(16), spaces.Dict({"a": VECTOR})], ids=["discrete", "dict"])
def test_observations_that_are_no_boxes_are_refused_with_the_way_out(space: spaces.Space) -> None:
    with pytest.raises(SimulatorError, match="FlattenObservation"):
        build(space)
