"""The flat optimiser is torch.optim.Adam with torch.nn.utils.clip_grad_norm_."""

from __future__ import annotations

import math

import pytest
import torch

from gala_worker.algorithms.adam import STEPS, Adam

SIZE = 1000
EPSILON = 1e-5


def start(seed: int = 0) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("max_norm", [0.5, 3.0, 1e9])
@pytest.mark.parametrize("measure", [False, True])
def test_a_hundred_steps_equal_torch_adam_with_norm_clipping(max_norm: float, measure: bool) -> None:
    ours, theirs = start(), torch.nn.Parameter(start())
    reference = torch.optim.Adam([theirs], lr=2.5e-4, eps=EPSILON)
    optimizer = Adam(ours, epsilon=EPSILON)
    generator = torch.Generator().manual_seed(1)
    for k in range(100):
        # Lengths from 0.03 to 30: some are clipped, some are not.
        gradient = torch.randn(SIZE, generator=generator) * 10.0 ** (-3 + 3 * (k % 4) / 3)
        rate = 2.5e-4 * (1.0 - k / 100)
        theirs.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_([theirs], max_norm)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        step = optimizer.step(gradient, learning_rate=rate, max_gradient_norm=max_norm, measure_update=measure)
        assert step.gradient_norm == pytest.approx(float(norm), rel=1e-5)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    expected = reference.state[theirs]
    torch.testing.assert_close(optimizer.state["optimizer.average"], expected["exp_avg"], rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(optimizer.state["optimizer.square_average"], expected["exp_avg_sq"], rtol=1e-4, atol=0)
    assert int(optimizer.state[STEPS]) == int(expected["step"]) == 100


def test_epsilon_is_added_after_the_correction_of_the_bias() -> None:
    parameters = torch.zeros(1)
    # In the first step both corrected moments are the gradient's own: the step is rate * g / (|g| + epsilon).
    Adam(parameters, epsilon=1.0).step(torch.ones(1), learning_rate=1.0, max_gradient_norm=10.0)
    assert float(parameters) == pytest.approx(-0.5)


def test_update_norm_is_the_length_of_the_change() -> None:
    parameters = start()
    before = parameters.clone()
    optimizer = Adam(parameters, epsilon=EPSILON)
    step = optimizer.step(start(2), learning_rate=0.1, max_gradient_norm=0.5, measure_update=True)
    assert step.update_norm == pytest.approx(float((parameters - before).norm()), rel=1e-4)
    assert optimizer.step(start(3), learning_rate=0.1, max_gradient_norm=0.5).update_norm is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_shows(bad: float) -> None:
    parameters = start()
    optimizer = Adam(parameters, epsilon=EPSILON)
    optimizer.step(start(1), learning_rate=1e-3, max_gradient_norm=0.5)
    before, state = parameters.clone(), {name: tensor.clone() for name, tensor in optimizer.state.items()}
    gradient = start(2)
    gradient[17] = bad
    step = optimizer.step(gradient, learning_rate=1e-3, max_gradient_norm=0.5, measure_update=True)
    assert not math.isfinite(step.gradient_norm)
    assert step.update_norm == 0.0
    assert torch.equal(parameters, before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in optimizer.state.items())


def test_restoring_the_state_resumes_exactly() -> None:
    first = start()
    optimizer = Adam(first, epsilon=EPSILON)
    for seed in (1, 2, 3):
        optimizer.step(start(seed), learning_rate=1e-3, max_gradient_norm=0.5)
    second = first.clone()
    resumed = Adam(second, epsilon=EPSILON)
    for name, tensor in resumed.state.items():
        tensor.copy_(optimizer.state[name])
    for each in (optimizer, resumed):
        each.step(start(4), learning_rate=1e-3, max_gradient_norm=0.5)
    assert torch.equal(first, second)


def test_wrong_shapes_and_types_are_refused() -> None:
    with pytest.raises(ValueError, match="flat float32"):
        Adam(torch.zeros(2, 2), epsilon=EPSILON)
    with pytest.raises(ValueError, match="flat float32"):
        Adam(torch.zeros(4, dtype=torch.float64), epsilon=EPSILON)
    with pytest.raises(ValueError, match=r"gradient must be \[4\]"):
        Adam(torch.zeros(4), epsilon=EPSILON).step(torch.zeros(1), learning_rate=1.0, max_gradient_norm=1.0)
