"""Action heads against torch.distributions, and samples against the distribution that they claim to come from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, distributions

from gala.errors import SimulatorError
from gala_worker.model.distributions import (
    ActionDistribution,
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    make_distribution,
)

DISCRETE = spaces.Discrete(5)
BOX = spaces.Box(np.float32([-1.0, -2.0, -math.inf]), np.float32([1.0, 0.5, math.inf]))
SWITCHES = spaces.MultiBinary(4)
SPACES = [DISCRETE, BOX, SWITCHES]


def parameters_of(distribution: ActionDistribution, *leading: int, seed: int = 0) -> Tensor:
    return torch.randn(*leading, distribution.num_parameters, generator=torch.Generator().manual_seed(seed))


def reference(distribution: ActionDistribution, parameters: Tensor) -> distributions.Distribution:
    if isinstance(distribution, Categorical):
        return distributions.Categorical(logits=parameters)
    if isinstance(distribution, Bernoulli):
        return distributions.Independent(distributions.Bernoulli(logits=parameters), 1)
    mean, log_std = parameters.chunk(2, -1)
    return distributions.Independent(distributions.Normal(mean, log_std.exp()), 1)


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("leading", [(1,), (7,), (5, 3)])
def test_log_prob_and_entropy_are_those_of_torch_distributions(space: spaces.Space, leading: tuple[int, ...]) -> None:
    distribution = make_distribution(space)
    parameters = parameters_of(distribution, *leading)
    actions = distribution.sample(parameters, torch.Generator().manual_seed(1))
    assert actions.shape == (*leading, *distribution.event_shape)
    assert actions.dtype == distribution.action_dtype
    expected = reference(distribution, parameters)
    torch.testing.assert_close(distribution.log_prob(parameters, actions), expected.log_prob(actions))
    torch.testing.assert_close(distribution.entropy(parameters), expected.entropy())


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_gradients_are_those_of_torch_distributions(space: spaces.Space) -> None:
    distribution = make_distribution(space)
    ours = parameters_of(distribution, 6).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    actions = distribution.sample(ours)
    (distribution.log_prob(ours, actions) + distribution.entropy(ours)).sum().backward()
    expected = reference(distribution, theirs)
    (expected.log_prob(actions) + expected.entropy()).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_categorical_samples_have_the_softmax_frequencies() -> None:
    distribution = Categorical(DISCRETE)
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -3.0])
    samples = distribution.sample(logits.expand(200_000, 5), torch.Generator().manual_seed(2))
    frequencies = torch.bincount(samples, minlength=5) / len(samples)
    torch.testing.assert_close(frequencies, logits.softmax(0), rtol=0.0, atol=0.005)


def test_gaussian_samples_have_the_mean_and_deviation() -> None:
    distribution = DiagonalGaussian(BOX)
    parameters = torch.tensor([1.0, -2.0, 0.0, math.log(0.5), math.log(2.0), 0.0])
    samples = distribution.sample(parameters.expand(100_000, 6), torch.Generator().manual_seed(3))
    torch.testing.assert_close(samples.mean(0), parameters[:3], rtol=0.0, atol=0.03)
    torch.testing.assert_close(samples.std(0), parameters[3:].exp(), rtol=0.02, atol=0.0)


def test_switches_are_on_as_often_as_their_logits_say() -> None:
    logits = torch.tensor([3.0, 0.0, -1.0, -4.0])
    samples = Bernoulli(SWITCHES).sample(logits.expand(100_000, 4), torch.Generator().manual_seed(4))
    torch.testing.assert_close(samples.mean(0), logits.sigmoid(), rtol=0.0, atol=0.01)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_equal_generators_give_equal_samples(space: spaces.Space) -> None:
    distribution = make_distribution(space)
    parameters = parameters_of(distribution, 32)
    first, second, other = (distribution.sample(parameters, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_mode_is_at_least_as_likely_as_any_sample(space: spaces.Space) -> None:
    distribution = make_distribution(space)
    parameters = parameters_of(distribution, 1)
    best = distribution.log_prob(parameters, distribution.mode(parameters))
    many = parameters.expand(500, -1)
    assert (distribution.log_prob(many, distribution.sample(many)) <= best + 1e-5).all()


@pytest.mark.parametrize(
    "space",
    [*SPACES, spaces.Discrete(3, start=-1), spaces.Box(-1, 1, (2, 3), np.float64), spaces.MultiBinary((2, 3))],
    ids=str,
)
def test_the_environment_gets_members_of_its_space(space: spaces.Space) -> None:
    distribution = make_distribution(space)
    batch = distribution.to_environment(distribution.sample(10.0 * parameters_of(distribution, 64)))
    assert len(batch) == 64
    assert all(space.contains(action) for action in batch)


def test_actions_beyond_the_bounds_are_clipped_for_the_environment_only() -> None:
    distribution = DiagonalGaussian(BOX)
    actions = torch.tensor([[5.0, -5.0, 5.0]])
    assert distribution.to_environment(actions).tolist() == [[1.0, -2.0, 5.0]]
    assert actions.tolist() == [[5.0, -5.0, 5.0]]
    parameters = torch.zeros(1, 6)
    inside = torch.tensor([[1.0, -2.0, 5.0]])
    assert distribution.log_prob(parameters, actions) < distribution.log_prob(parameters, inside)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_extreme_logits_stay_finite(logit: float) -> None:
    for distribution in (Categorical(DISCRETE), Bernoulli(SWITCHES)):
        parameters = torch.zeros(1, distribution.num_parameters)
        parameters[0, 0] = logit
        parameters.requires_grad_()
        total = distribution.log_prob(parameters, distribution.mode(parameters)) + distribution.entropy(parameters)
        total.backward()
        assert total.isfinite().all()
        assert parameters.grad is not None
        assert parameters.grad.isfinite().all()


@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([2, 3]), spaces.Box(0, 3, (2,), np.int64), spaces.Text(3)], ids=str
)
def test_unsupported_action_spaces_are_named(space: spaces.Space) -> None:
    with pytest.raises(SimulatorError, match="supported are Discrete, Box of floats and MultiBinary"):
        make_distribution(space)
