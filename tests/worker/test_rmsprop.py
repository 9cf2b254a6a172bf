"""The flat optimiser is torch.optim.RMSprop with torch.nn.utils.clip_grad_norm_."""

from __future__ import annotations

import math

import pytest
import torch

from gala_worker.algorithms.rmsprop import BLOCK, RMSprop, square_root

SIZE = 1000
DECAY, EPSILON = 0.99, 1e-5


def start(seed: int = 0) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("max_norm", [0.5, 3.0, 1e9])
@pytest.mark.parametrize("measure", [False, True])
def test_a_hundred_steps_equal_torch_rmsprop_with_norm_clipping(max_norm: float, measure: bool) -> None:
    ours, theirs = start(), torch.nn.Parameter(start())
    reference = torch.optim.RMSprop([theirs], lr=7e-4, alpha=DECAY, eps=EPSILON)
    optimizer = RMSprop(ours, decay=DECAY, epsilon=EPSILON)
    generator = torch.Generator().manual_seed(1)
    for k in range(100):
        # Lengths from 0.03 to 30: some are clipped, some are not.
        gradient = torch.randn(SIZE, generator=generator) * 10.0 ** (-3 + 3 * (k % 4) / 3)
        rate = 7e-4 * (1.0 - k / 100)
        theirs.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_([theirs], max_norm)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        step = optimizer.step(gradient, learning_rate=rate, max_gradient_norm=max_norm, measure_update=measure)
        assert step.gradient_norm == pytest.approx(float(norm), rel=1e-5)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(optimizer.square_average, reference.state[theirs]["square_avg"], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_blocks_cover_every_parameter_once(size: int) -> None:
    parameters, gradient = torch.zeros(size), torch.ones(size)
    step = RMSprop(parameters, decay=0.0, epsilon=1.0).step(
        gradient, learning_rate=1.0, max_gradient_norm=1e9, measure_update=True
    )
    assert torch.equal(parameters, torch.full((size,), -0.5))
    assert step.update_norm == pytest.approx(0.5 * math.sqrt(size), rel=1e-5)


def test_square_roots_are_those_of_torch_also_of_zeros_and_tiny_numbers() -> None:
    squares = torch.tensor([0.0, 1e-38, 1e-12, 0.25, 1.0, 3e38] * 100)
    out = torch.empty_like(squares)
    assert square_root(squares, out=out) is out
    torch.testing.assert_close(out, squares.sqrt(), rtol=1e-6, atol=0.0)


def test_epsilon_is_outside_of_the_square_root() -> None:
    parameters = torch.zeros(1)
    # With decay 0 the average is the gradient's square: the step is rate * g / (|g| + epsilon).
    RMSprop(parameters, decay=0.0, epsilon=1.0).step(torch.ones(1), learning_rate=1.0, max_gradient_norm=10.0)
    assert float(parameters) == pytest.approx(-0.5)


def test_update_norm_is_the_length_of_the_change() -> None:
    parameters = start()
    before = parameters.clone()
    optimizer = RMSprop(parameters, decay=DECAY, epsilon=EPSILON)
    step = optimizer.step(start(2), learning_rate=0.1, max_gradient_norm=0.5, measure_update=True)
    assert step.update_norm == pytest.approx(float((parameters - before).norm()), rel=1e-4)
    assert optimizer.step(start(3), learning_rate=0.1, max_gradient_norm=0.5).update_norm is None


def test_the_parameters_given_change_in_place_and_the_gradient_does_not() -> None:
    vector = torch.randn(SIZE + 10)
    beyond = vector[SIZE:].clone()
    gradient = start(4)
    kept, before = gradient.clone(), vector[:SIZE].clone()
    RMSprop(vector[:SIZE], decay=DECAY, epsilon=EPSILON).step(gradient, learning_rate=1e-2, max_gradient_norm=0.5)
    assert not torch.equal(vector[:SIZE], before)
    assert torch.equal(vector[SIZE:], beyond)
    assert torch.equal(gradient, kept)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_shows(bad: float) -> None:
    parameters = start()
    optimizer = RMSprop(parameters, decay=DECAY, epsilon=EPSILON)
    optimizer.step(start(1), learning_rate=1e-3, max_gradient_norm=0.5)
    before, average = parameters.clone(), optimizer.square_average.clone()
    gradient = start(2)
    gradient[17] = bad
    step = optimizer.step(gradient, learning_rate=1e-3, max_gradient_norm=0.5, measure_update=True)
    assert not math.isfinite(step.gradient_norm)
    assert step.update_norm == 0.0
    assert torch.equal(parameters, before)
    assert torch.equal(optimizer.square_average, average)


def test_a_zero_gradient_moves_nothing() -> None:
    parameters = start()
    before = parameters.clone()
    step = RMSprop(parameters, decay=DECAY, epsilon=EPSILON).step(
        torch.zeros(SIZE), learning_rate=1e-3, max_gradient_norm=0.5, measure_update=True
    )
    assert step == (0.0, 0.0)
    assert torch.equal(parameters, before)


def test_restoring_the_average_resumes_exactly() -> None:
    first = start()
    optimizer = RMSprop(first, decay=DECAY, epsilon=EPSILON)
    optimizer.step(start(1), learning_rate=1e-3, max_gradient_norm=0.5)
    second = first.clone()
    resumed = RMSprop(second, decay=DECAY, epsilon=EPSILON)
    resumed.square_average.copy_(optimizer.square_average)
    for each in (optimizer, resumed):
        each.step(start(2), learning_rate=1e-3, max_gradient_norm=0.5)
    assert torch.equal(first, second)


def test_wrong_shapes_and_types_are_refused() -> None:
    with pytest.raises(ValueError, match="flat float32"):
        RMSprop(torch.zeros(2, 2), decay=DECAY, epsilon=EPSILON)
    with pytest.raises(ValueError, match="flat float32"):
        RMSprop(torch.zeros(4, dtype=torch.bfloat16), decay=DECAY, epsilon=EPSILON)
    with pytest.raises(ValueError, match=r"gradient must be \[4\]"):
        RMSprop(torch.zeros(4), decay=DECAY, epsilon=EPSILON).step(
            torch.zeros(1), learning_rate=1.0, max_gradient_norm=1.0
        )
