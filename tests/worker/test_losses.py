"""The A2C loss and its gradient against a loop over transitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dummy_transitions import assert_dummies_do_not_matter
from gala_worker.algorithms.losses import A2CLoss, a2c_loss

VALUE, ENTROPY = 0.5, 0.01


def rollout(seed: int, steps: int, simulators: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(steps, simulators, generator=generator)

    return {
        "log_prob": normal().abs().neg().requires_grad_(),
        "entropy": normal().abs().requires_grad_(),
        "values": normal().requires_grad_(),
        "returns": normal(),
        "advantages": normal(),
        "valid": torch.rand(steps, simulators, generator=generator) < 0.7,
    }


def loss_of(arguments: dict[str, Tensor]) -> A2CLoss:
    return a2c_loss(**arguments, value_coefficient=VALUE, entropy_coefficient=ENTROPY)


@pytest.mark.parametrize(("steps", "simulators"), [(1, 1), (5, 16), (5, 1), (1, 8)])
@pytest.mark.parametrize("seed", range(4))
def test_loss_is_the_mean_over_valid_transitions(seed: int, steps: int, simulators: int) -> None:
    arguments = rollout(seed, steps, simulators)
    flat = {name: tensor.detach().flatten().tolist() for name, tensor in arguments.items()}
    chosen = [i for i, valid in enumerate(flat["valid"]) if valid]
    count = max(len(chosen), 1)
    policy = sum(-flat["log_prob"][i] * flat["advantages"][i] for i in chosen) / count
    value = sum((flat["returns"][i] - flat["values"][i]) ** 2 for i in chosen) / count
    entropy = sum(flat["entropy"][i] for i in chosen) / count
    loss = loss_of(arguments)
    assert float(loss.policy) == pytest.approx(policy, abs=1e-5)
    assert float(loss.value) == pytest.approx(value, abs=1e-5)
    assert float(loss.entropy) == pytest.approx(entropy, abs=1e-5)
    assert float(loss.total.detach()) == pytest.approx(policy + VALUE * value - ENTROPY * entropy, abs=1e-5)


def test_gradients_are_those_of_the_formula() -> None:
    arguments = rollout(2, 5, 6)
    loss_of(arguments).total.backward()
    valid, count = arguments["valid"], arguments["valid"].sum()
    error = arguments["values"].detach() - arguments["returns"]
    for name, expected in {
        "log_prob": -arguments["advantages"] / count,
        "values": VALUE * 2.0 * error / count,
        "entropy": torch.full((5, 6), -ENTROPY / int(count)),
    }.items():
        torch.testing.assert_close(arguments[name].grad, torch.where(valid, expected, torch.zeros(())))


def test_the_sum_is_the_mean_times_the_valid_transitions_and_its_parts_stay_means() -> None:
    arguments = rollout(3, 5, 6)
    mean = loss_of(arguments)
    total = a2c_loss(**arguments, value_coefficient=VALUE, entropy_coefficient=ENTROPY, reduction="sum")
    count = int(arguments["valid"].sum())
    assert count > 1
    assert float(total.total.detach()) == pytest.approx(float(mean.total.detach()) * count, rel=1e-5)
    assert [float(part) for part in total[1:]] == [float(part) for part in mean[1:]]


def test_targets_get_no_gradient() -> None:
    arguments = rollout(4, 5, 3)
    arguments["returns"].requires_grad_()
    arguments["advantages"].requires_grad_()
    loss_of(arguments).total.backward()
    assert arguments["returns"].grad is None
    assert arguments["advantages"].grad is None


@pytest.mark.parametrize("junk", [1e30, math.inf, math.nan])
def test_what_dummy_transitions_contain_does_not_matter(junk: float) -> None:
    assert_dummies_do_not_matter(rollout(5, 5, 4), loss_of, junk)


def test_a_rollout_without_a_valid_transition_changes_nothing() -> None:
    arguments = rollout(6, 5, 4)
    arguments["valid"].zero_()
    loss = loss_of(arguments)
    assert [part.item() for part in loss] == [0.0, 0.0, 0.0, 0.0]
    loss.total.backward()
    for name in ("log_prob", "values", "entropy"):
        assert torch.equal(arguments[name].grad, torch.zeros(5, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["entropy", "values", "returns", "advantages", "valid"])
def test_unequal_shapes_are_refused_even_where_they_would_broadcast(name: str) -> None:
    arguments = rollout(0, 5, 4)
    arguments[name] = arguments[name][:1]
    with pytest.raises(ValueError, match=rf"{name} must be \[T, B\]"):
        loss_of(arguments)


def test_flat_rollouts_and_weights_instead_of_flags_are_refused() -> None:
    with pytest.raises(ValueError, match="log_prob must be"):
        loss_of({name: tensor.flatten() for name, tensor in rollout(0, 5, 4).items()})
    arguments = rollout(0, 5, 4)
    with pytest.raises(ValueError, match="valid must be bool"):
        loss_of(arguments | {"valid": arguments["valid"].float()})
