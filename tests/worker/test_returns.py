"""Targets of a rollout against slow oracles, written as in the formulas: O(T^2), on purpose."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gala_worker.algorithms.returns import gae, n_step_returns, targets

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

DISCOUNT = 0.9


def n_step_oracle(rewards: Floats, values: Floats, terminated: Flags, truncated: Flags, discount: float) -> Floats:
    """R[t] = sum of discount^k r[t + k] up to the end of the episode or rollout, and then the critic's estimate."""
    steps, simulators = rewards.shape
    returns = np.zeros_like(rewards)
    for b in range(simulators):
        for t in range(steps):
            for last in range(t, steps):
                returns[t, b] += discount ** (last - t) * rewards[last, b]
                if terminated[last, b]:
                    break
                if truncated[last, b] or last == steps - 1:
                    returns[t, b] += discount ** (last - t + 1) * values[last + 1, b]
                    break
    return returns


def gae_oracle(
    rewards: Floats, values: Floats, terminated: Flags, truncated: Flags, discount: float, gae_lambda: float
) -> Floats:
    """A[t] = mean of the k-step advantages within the episode, k = 1, 2, ..., weighted (1 - lambda) lambda^(k-1).

    The last one gets the weight of all longer ones that do not exist (arXiv 1506.02438, equation 16, first form).
    """
    steps, simulators = rewards.shape
    advantages = np.zeros_like(rewards)
    for b in range(simulators):
        for t in range(steps):
            total = 0.0
            for last in range(t, steps):
                total += discount ** (last - t) * rewards[last, b]
                bootstrap = 0.0 if terminated[last, b] else discount ** (last - t + 1) * values[last + 1, b]
                advantage = total + bootstrap - values[t, b]
                ends = terminated[last, b] or truncated[last, b] or last == steps - 1
                advantages[t, b] += gae_lambda ** (last - t) * advantage * (1.0 if ends else 1.0 - gae_lambda)
                if ends:
                    break
    return advantages


def random_rollout(seed: int, steps: int, simulators: int) -> tuple[Floats, Floats, Flags, Flags]:
    rng = np.random.default_rng(seed)
    shape = (steps, simulators)
    return (
        rng.normal(size=shape),
        rng.normal(size=(steps + 1, simulators)) * 10.0,
        rng.random(shape) < 0.2,
        rng.random(shape) < 0.2,
    )


def tensors(rollout: tuple[Floats, Floats, Flags, Flags]) -> list[torch.Tensor]:
    return [torch.tensor(a, dtype=torch.bool if a.dtype == np.bool_ else torch.float32) for a in rollout]


SHAPES = [(1, 1), (1, 4), (5, 1), (5, 16), (12, 3)]


@pytest.mark.parametrize(("steps", "simulators"), SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_n_step_returns_equal_the_sum_over_rewards(seed: int, steps: int, simulators: int) -> None:
    rollout = random_rollout(seed, steps, simulators)
    torch.testing.assert_close(
        n_step_returns(*tensors(rollout), DISCOUNT),
        torch.tensor(n_step_oracle(*rollout, DISCOUNT), dtype=torch.float32),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(("steps", "simulators"), SHAPES)
@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_gae_equals_the_weighted_mean_of_k_step_advantages(
    seed: int, gae_lambda: float, steps: int, simulators: int
) -> None:
    rollout = random_rollout(seed, steps, simulators)
    torch.testing.assert_close(
        gae(*tensors(rollout), DISCOUNT, gae_lambda),
        torch.tensor(gae_oracle(*rollout, DISCOUNT, gae_lambda), dtype=torch.float32),
        rtol=1e-4,
        atol=1e-4,
    )


def test_gae_with_lambda_one_is_the_n_step_advantage() -> None:
    rewards, values, terminated, truncated = tensors(random_rollout(3, 8, 6))
    plain = targets(rewards, values, terminated, truncated, discount=DISCOUNT)
    weighted = targets(rewards, values, terminated, truncated, discount=DISCOUNT, gae_lambda=1.0)
    torch.testing.assert_close(weighted.advantages, plain.advantages, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weighted.returns, plain.returns, rtol=1e-4, atol=1e-4)


def one_step(*, terminated: bool, truncated: bool) -> float:
    flags = torch.tensor([[terminated]]), torch.tensor([[truncated]])
    return float(n_step_returns(torch.tensor([[1.0]]), torch.tensor([[5.0], [10.0]]), *flags, 0.5))


def test_a_terminated_step_returns_its_reward_alone() -> None:
    assert one_step(terminated=True, truncated=False) == 1.0


def test_a_truncated_step_goes_on_with_the_value_of_the_last_observation() -> None:
    assert one_step(terminated=False, truncated=True) == 6.0


def test_an_episode_that_terminates_at_its_time_limit_has_terminated() -> None:
    assert one_step(terminated=True, truncated=True) == 1.0


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_nothing_after_the_end_of_an_episode_reaches_the_targets_before_it(end: str) -> None:
    rewards, values, _, _ = tensors(random_rollout(7, 6, 2))
    never, flags = torch.zeros(6, 2, dtype=torch.bool), torch.zeros(6, 2, dtype=torch.bool)
    flags[2] = True
    ends = {"terminated": never, "truncated": never} | {end: flags}
    before = (
        targets(rewards, values, **ends, discount=DISCOUNT),
        targets(rewards, values, **ends, discount=DISCOUNT, gae_lambda=0.9),
    )
    # Step 3 is the dummy step of the autoreset: its reward and all that follows may be anything.
    rewards[3:], values[4:] = 1e6, -1e6
    after = (
        targets(rewards, values, **ends, discount=DISCOUNT),
        targets(rewards, values, **ends, discount=DISCOUNT, gae_lambda=0.9),
    )
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old.returns[:3], new.returns[:3])
        assert torch.equal(old.advantages[:3], new.advantages[:3])


def test_targets_are_constants_although_values_carry_a_graph() -> None:
    rewards, values, terminated, truncated = tensors(random_rollout(1, 5, 4))
    values.requires_grad_()
    for gae_lambda in (None, 0.95):
        result = targets(rewards, values, terminated, truncated, discount=DISCOUNT, gae_lambda=gae_lambda)
        assert not result.returns.requires_grad
        assert not result.advantages.requires_grad


@pytest.mark.parametrize(
    ("position", "replacement", "message"),
    [
        (0, torch.zeros(5), r"rewards must be \[T, B\]"),
        (0, torch.zeros(0, 4), "T >= 1"),
        (0, torch.zeros(5, 4, dtype=torch.float64), "rewards must be float32"),
        (1, torch.zeros(5, 4), r"values must be \[T \+ 1, B\]"),
        (1, torch.zeros(6, 1), r"values must be \[T \+ 1, B\]"),
        (2, torch.zeros(5, 1, dtype=torch.bool), r"terminated must be \[T, B\]"),
        (3, torch.zeros(5, 4), "truncated must be bool"),
    ],
)
def test_wrong_shapes_and_types_are_refused(position: int, replacement: torch.Tensor, message: str) -> None:
    arguments = tensors(random_rollout(0, 5, 4))
    arguments[position] = replacement
    if message == "T >= 1":
        arguments = [torch.zeros(0, 4), torch.zeros(1, 4), *[torch.zeros(0, 4, dtype=torch.bool)] * 2]
    with pytest.raises(ValueError, match=message):
        n_step_returns(*arguments, DISCOUNT)
    with pytest.raises(ValueError, match=message):
        gae(*arguments, DISCOUNT, 0.9)


@pytest.mark.parametrize("gae_lambda", [None, 0.9])
def test_not_even_nan_behind_an_end_reaches_the_targets_before_it(gae_lambda: float | None) -> None:
    rewards, values, never, _ = tensors(random_rollout(7, 6, 2))
    never = torch.zeros_like(never)
    terminated = never.clone()
    terminated[2] = True
    before = targets(rewards, values, terminated, never, discount=DISCOUNT, gae_lambda=gae_lambda)
    rewards[3:] = values[3:] = torch.nan
    after = targets(rewards, values, terminated, never, discount=DISCOUNT, gae_lambda=gae_lambda)
    assert torch.equal(after.returns[:3], before.returns[:3])
    assert torch.equal(after.advantages[:3], before.advantages[:3])
