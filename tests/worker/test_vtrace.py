"""V-trace against a slow oracle, written from the sum in the paper: O(T^3), on purpose."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from gala_worker.algorithms.returns import n_step_returns
from gala_worker.algorithms.vtrace import VTrace, vtrace

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

DISCOUNT = 0.9


class Case(NamedTuple):
    """A rollout with the log-probabilities of both policies."""

    target_log_prob: Floats
    behaviour_log_prob: Floats
    rewards: Floats
    values: Floats
    terminated: Flags
    truncated: Flags
    valid: Flags

    def tensors(self) -> list[Tensor]:
        return [torch.tensor(a, dtype=torch.bool if a.dtype == np.bool_ else torch.float32) for a in self]


def random_case(seed: int, steps: int = 8, simulators: int = 3, *, lag: float = 1.0, ends: float = 0.2) -> Case:
    """Ratios straddle the clips, or are 1 with `lag` 0. After an end comes a dummy step, as autoreset has it."""
    rng = np.random.default_rng(seed)
    shape = (steps, simulators)
    behaviour = -rng.exponential(size=shape)
    terminated, truncated = rng.random((2, *shape)) < ends / 2
    valid = np.ones(shape, np.bool_)
    valid[0] = rng.random(simulators) < 0.8  # an episode may have ended just before the rollout
    for t in range(1, steps):
        valid[t] = ~(valid[t - 1] & (terminated | truncated)[t - 1])
    terminated, truncated = terminated & valid, truncated & valid
    return Case(
        behaviour + lag * rng.normal(size=shape),
        behaviour,
        rng.normal(size=shape),
        rng.normal(size=(steps + 1, simulators)) * 3.0,
        terminated,
        truncated,
        valid,
    )


def oracle(case: Case, rho_clip: float, c_clip: float, trace_decay: float) -> tuple[Floats, Floats]:
    """Equation 1: v_s = V(x_s) + sum over t >= s of gamma^(t-s) * (product over i from s to t-1 of c_i) * delta_t V.

    delta_t V = rho_t * (r_t + gamma V(x_{t+1}) - V(x_t)), where gamma is 0 behind a terminated step. The sum is over
    the steps of s's episode. The advantage is rho_s * (r_s + gamma v_{s+1} - V(x_s)), with v = V behind the last step.
    """
    steps, simulators = case.rewards.shape
    ratio = np.exp(case.target_log_prob - case.behaviour_log_prob)
    rho = np.minimum(rho_clip, ratio)
    c = trace_decay * np.minimum(c_clip, ratio)
    targets, advantages = np.zeros_like(case.rewards), np.zeros_like(case.rewards)

    def discount(t: int, b: int) -> float:
        return 0.0 if case.terminated[t, b] else DISCOUNT

    def last_of_episode(t: int, b: int) -> bool:
        return bool(t == steps - 1 or case.terminated[t, b] or case.truncated[t, b] or not case.valid[t + 1, b])

    def target(s: int, b: int) -> float:
        total = float(case.values[s, b])
        for t in range(s, steps):
            error = case.rewards[t, b] + discount(t, b) * case.values[t + 1, b] - case.values[t, b]
            total += DISCOUNT ** (t - s) * float(np.prod(c[s:t, b])) * rho[t, b] * error
            if last_of_episode(t, b):
                break
        return total

    for b in range(simulators):
        for s in range(steps):
            if case.valid[s, b]:
                targets[s, b] = target(s, b)
                following = case.values[s + 1, b] if last_of_episode(s, b) else target(s + 1, b)
                advantages[s, b] = rho[s, b] * (case.rewards[s, b] + discount(s, b) * following - case.values[s, b])
    return targets, advantages


def run(case: Case, **options: float) -> VTrace:
    return vtrace(*case.tensors(), discount=DISCOUNT, **options)


@pytest.mark.parametrize(("steps", "simulators"), [(1, 1), (1, 4), (20, 1), (8, 16)])
@pytest.mark.parametrize(
    ("rho_clip", "c_clip", "trace_decay"),
    [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (1.0, 0.5, 1.0), (0.5, 2.0, 1.0), (math.inf, math.inf, 1.0), (1.0, 1.0, 0.9)],
)
@pytest.mark.parametrize("seed", range(3))
def test_targets_and_advantages_equal_the_sums_of_the_paper(
    seed: int, rho_clip: float, c_clip: float, trace_decay: float, steps: int, simulators: int
) -> None:
    case = random_case(seed, steps, simulators, lag=0.7)
    result = run(case, rho_clip=rho_clip, c_clip=c_clip, trace_decay=trace_decay)
    targets, advantages = oracle(case, rho_clip, c_clip, trace_decay)
    exactness = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(result.targets, torch.tensor(targets, dtype=torch.float32), **exactness)
    torch.testing.assert_close(result.advantages, torch.tensor(advantages, dtype=torch.float32), **exactness)


@pytest.mark.parametrize("clip", [1.0, 1.5, math.inf])
@pytest.mark.parametrize("seed", range(10))
def test_with_on_policy_data_the_targets_are_the_n_step_targets_of_a2c(seed: int, clip: float) -> None:
    case = random_case(seed, 12, 8, lag=0.0)
    _, _, rewards, values, terminated, truncated, valid = case.tensors()
    result = run(case, rho_clip=clip, c_clip=clip)
    returns = n_step_returns(rewards, values, terminated, truncated, DISCOUNT)
    torch.testing.assert_close(result.targets[valid], returns[valid], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.advantages[valid], (returns - values[:-1])[valid], rtol=1e-5, atol=1e-5)
    assert result.rhos[valid].eq(1.0).all()


def test_with_off_policy_data_they_are_not() -> None:
    case = random_case(0, 12, 8, lag=1.0)
    _, _, rewards, values, terminated, truncated, valid = case.tensors()
    returns = n_step_returns(rewards, values, terminated, truncated, DISCOUNT)
    assert (run(case).targets - returns)[valid].abs().max() > 0.5


def single(ratio: float, *, terminated: bool = False, truncated: bool = False, **clips: float) -> tuple[float, float]:
    """Target and advantage of one step with reward 1 from a state of value 5 to one of 10, discount 0.5."""
    number = torch.tensor([[math.log(ratio)]])
    result = vtrace(
        number,
        torch.zeros(1, 1),
        torch.tensor([[1.0]]),
        torch.tensor([[5.0], [10.0]]),
        torch.tensor([[terminated]]),
        torch.tensor([[truncated]]),
        torch.tensor([[True]]),
        discount=0.5,
        **clips,
    )
    return float(result.targets), float(result.advantages)


def test_a_likelier_action_counts_no_more_than_rho_clip() -> None:
    # The error is 1 + 0.5 * 10 - 5 = 1.
    assert single(8.0) == pytest.approx((6.0, 1.0))
    assert single(8.0, rho_clip=3.0) == pytest.approx((8.0, 3.0))
    assert single(8.0, rho_clip=math.inf) == pytest.approx((13.0, 8.0))


def test_an_action_that_would_not_be_taken_any_more_teaches_nothing() -> None:
    assert single(1e-30) == pytest.approx((5.0, 0.0))


def test_c_clip_shortens_what_reaches_back_and_leaves_the_fixed_point_alone() -> None:
    case = random_case(4, 6, 5, lag=0.5, ends=0.0)
    long, short, none = (run(case, c_clip=clip) for clip in (1.0, 0.1, 1e-30))
    # The last step's own target has no trace in it.
    assert torch.equal(long.targets[-1], short.targets[-1])
    assert not torch.isclose(long.targets[0], short.targets[0]).any()
    # Without a trace there is one-step temporal difference alone, weighted with rho.
    _, _, rewards, values, _, _, valid = case.tensors()
    one_step = values[:-1] + none.rhos * (rewards + DISCOUNT * values[1:] - values[:-1])
    torch.testing.assert_close(none.targets[valid], one_step[valid])


def test_a_terminated_step_has_nothing_after_it_and_a_truncated_one_the_critic_s_estimate() -> None:
    assert single(1.0, terminated=True) == pytest.approx((1.0, -4.0))
    assert single(1.0, truncated=True) == pytest.approx((6.0, 1.0))
    assert single(1.0, terminated=True, truncated=True) == pytest.approx((1.0, -4.0))


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_nothing_after_the_end_of_an_episode_reaches_the_targets_before_it(end: str) -> None:
    case = random_case(7, 6, 2, ends=0.0)
    case.valid[:] = True
    getattr(case, end)[2] = True
    case.valid[3] = False
    before = run(case)
    for array in (case.target_log_prob, case.behaviour_log_prob, case.rewards):
        array[3:] = 1e6
    case.values[4:] = -1e6
    after = run(case)
    assert torch.equal(before.targets[:3], after.targets[:3])
    assert torch.equal(before.advantages[:3], after.advantages[:3])


@pytest.mark.parametrize("junk", [1e30, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("seed", range(3))
def test_what_invalid_entries_contain_reaches_nothing(seed: int, junk: float) -> None:
    case = random_case(seed, 10, 6, ends=0.4)
    expected = run(case)
    assert not case.valid.all()
    for array in (case.target_log_prob, case.behaviour_log_prob, case.rewards):
        array[~case.valid] = junk
    case.terminated[~case.valid] = True
    # The critic's estimate at a dummy step is that of the old episode's last observation. A time limit needs it.
    terminated_before = np.zeros_like(case.valid)
    terminated_before[1:] = case.terminated[:-1]
    case.values[:-1][~case.valid & terminated_before] = junk
    spoiled = run(case)
    for old, new in zip(expected, spoiled, strict=True):
        assert torch.equal(old, new)
        assert new[~torch.tensor(case.valid)].eq(0).all()


def test_a_step_that_was_forced_amid_an_episode_cuts_the_trace() -> None:
    case = random_case(3, 6, 2, ends=0.0)
    case.valid[:] = True
    case.valid[3] = False
    result = run(case, rho_clip=2.0)
    targets, advantages = oracle(case, 2.0, 1.0, 1.0)
    torch.testing.assert_close(result.targets, torch.tensor(targets, dtype=torch.float32), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.advantages, torch.tensor(advantages, dtype=torch.float32), rtol=1e-5, atol=1e-5)


def test_targets_are_constants_although_their_sources_carry_a_graph() -> None:
    arguments = random_case(1).tensors()
    arguments[0].requires_grad_()
    arguments[3].requires_grad_()
    assert not any(tensor.requires_grad for tensor in vtrace(*arguments, discount=DISCOUNT))


@pytest.mark.parametrize(
    ("position", "replacement", "message"),
    [
        (0, torch.zeros(8), r"target_log_prob must be \[T, B\]"),
        (1, torch.zeros(8, 1), r"behaviour_log_prob must be \[T, B\]"),
        (2, torch.zeros(8), r"rewards must be \[T, B\]"),
        (2, torch.zeros(8, 3, dtype=torch.float64), "rewards must be float32"),
        (3, torch.zeros(8, 3), r"values must be \[T \+ 1, B\]"),
        (4, torch.zeros(8, 1, dtype=torch.bool), "terminated must be bool"),
        (5, torch.zeros(8, 3), "truncated must be bool"),
        (6, torch.ones(8, 3), "valid must be bool"),
    ],
)
def test_wrong_shapes_and_types_are_refused(position: int, replacement: Tensor, message: str) -> None:
    arguments = random_case(0).tensors()
    arguments[position] = replacement
    with pytest.raises(ValueError, match=message):
        vtrace(*arguments, discount=DISCOUNT)


@pytest.mark.parametrize("clips", [{"rho_clip": 0.0}, {"c_clip": -1.0}, {"rho_clip": math.nan}])
def test_clips_that_are_none_are_refused(clips: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="clips must be"):
        run(random_case(0), **clips)
