"""One update of IMPALA's learner: A2C's where the data is the policy's own, bounded where it is not."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from gala.spec import Environment, Hyperparameters, Policy
from gala_worker.algorithms.a2c import A2C
from gala_worker.algorithms.impala_rollouts import Batch
from gala_worker.algorithms.impala_update import Impala
from gala_worker.environments import Simulators, Transition, make_simulators
from gala_worker.flat import FlatState
from gala_worker.model import ActorCritic, make_policy
from gala_worker.rollout import Collector

T, B = 12, 4
HYPER: dict[str, Any] = {
    "learning_rate": 1e-3,
    "learning_rate_schedule": "linear",
    "rollout_length": T,
    "max_gradient_norm": 40.0,
    "rms_prop_epsilon": 0.01,
}


class Kinds:
    """Random observations, of any space, with every kind of end."""

    def __init__(self, observation_space: gymnasium.spaces.Box, action_space: gymnasium.Space[Any]) -> None:
        self.num_simulators = B
        self.max_episode_steps = None
        self.observation_space = observation_space
        self.action_space = action_space
        self._random = np.random.default_rng(1)
        self._ended = np.zeros(B, np.bool_)

    def reset(self, seed: int) -> np.ndarray:
        return self._observe()

    def step(self, actions: np.ndarray) -> Transition:
        dummy = self._ended
        terminated, truncated = (self._random.random((2, B)) < 0.15) & ~dummy
        self._ended = terminated | truncated
        rewards = self._random.normal(size=B).astype(np.float32)
        return Transition(self._observe(), rewards, terminated, truncated & ~terminated, ~dummy, dummy)

    def pop_episodes(self) -> list[Any]:
        return []

    def close(self) -> None:
        pass

    def _observe(self) -> np.ndarray:
        space = self.observation_space
        if space.dtype == np.uint8:
            return self._random.integers(0, 256, (B, *space.shape), np.uint8)
        return self._random.normal(size=(B, *space.shape)).astype(np.float32)


VECTOR = gymnasium.spaces.Box(-math.inf, math.inf, (5,), np.float32)
ATARI = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
KINDS = {
    "vectors, choices": (VECTOR, gymnasium.spaces.Discrete(3), False),
    "vectors, choices, recurrent": (VECTOR, gymnasium.spaces.Discrete(3), True),
    "vectors, forces": (VECTOR, gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32), False),
    "vectors, switches": (VECTOR, gymnasium.spaces.MultiBinary(2), False),
    "images, choices": (ATARI, gymnasium.spaces.Discrete(6), False),
}


def learner(simulators: Simulators, *, recurrent: bool = False) -> tuple[ActorCritic, FlatState]:
    spec = Policy(recurrent=recurrent)
    policy = make_policy(simulators.observation_space, simulators.action_space, spec, seed=3)
    return policy, FlatState(policy, policy.gossiped_buffers())


def collector(simulators: Simulators, policy: ActorCritic) -> Collector:
    return Collector(
        simulators,
        policy,
        rollout_length=T,
        clip_rewards=False,
        compute_type=torch.float32,
        device=torch.device("cpu"),
        seed=1,
        record=True,
        observe=False,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_on_data_of_the_policy_itself_it_is_the_update_of_a2c(kind: str, reduction: str) -> None:
    observations, actions, recurrent = KINDS[kind]
    simulators = Kinds(observations, actions)
    policy, flat = learner(simulators, recurrent=recurrent)
    collect = collector(simulators, policy)
    collect.collect()  # so that the next one begins amid episodes
    rollout = collect.collect()
    assert not rollout.valid.all()
    hyper = Hyperparameters(**HYPER, loss_reduction=reduction)
    start = flat.vector.clone()
    expected = A2C(policy, flat, hyper).update(rollout, 0.25)
    a2c = flat.trainable.clone()
    gradient = flat.gradient.clone()
    flat.vector.copy_(start)
    update = Impala(policy, flat, hyper).update(Batch.of(rollout), 0.25)
    scale = float(gradient.abs().max())
    torch.testing.assert_close(flat.gradient, gradient, rtol=1e-3, atol=1e-4 * scale)
    torch.testing.assert_close(flat.trainable, a2c, rtol=1e-3, atol=1e-5)
    assert update.learning_rate == expected.learning_rate == pytest.approx(7.5e-4)
    assert float(update.loss.value) == pytest.approx(float(expected.loss.value), rel=1e-4)
    assert not torch.equal(flat.trainable, start[: len(flat.trainable)])


def gradient_of(policy: ActorCritic, flat: FlatState, batch: Batch, **hyper: Any) -> Tensor:
    start = flat.vector.clone()
    Impala(policy, flat, Hyperparameters(**HYPER | hyper)).update(batch, 0.0)
    flat.vector.copy_(start)
    return flat.gradient.clone()


def pole() -> tuple[ActorCritic, FlatState, Batch]:
    simulators = make_simulators(Environment(id="CartPole-v1"), B)
    policy, flat = learner(simulators)
    return policy, flat, Batch.of(collector(simulators, policy).collect())


def behaved(policy: ActorCritic, batch: Batch, log_ratio: float) -> Batch:
    """The batch as if the actor had given each of its actions another probability: pi / mu = exp(log_ratio)."""
    wanted = policy.actions.log_prob(batch.parameters, batch.actions) - log_ratio
    taken = torch.nn.functional.one_hot(batch.actions, 2).to(torch.float32)
    others = torch.log1p(-wanted.exp())
    return batch._replace(parameters=torch.where(taken == 1, wanted.unsqueeze(-1), others.unsqueeze(-1)))


def test_what_the_policy_would_do_less_often_now_counts_less() -> None:
    policy, flat, batch = pole()
    # Without a discount every transition stands alone, weighted with its ratio.
    plain = {"value_coefficient": 0.0, "entropy_coefficient": 0.0, "discount": 0.0}
    same, less = (gradient_of(policy, flat, behaved(policy, batch, ratio), **plain) for ratio in (0.0, -0.4))
    assert float(less.norm() / same.norm()) == pytest.approx(math.exp(-0.4), rel=0.01)
    assert torch.cosine_similarity(less, same, dim=0) > 0.999


def test_what_it_would_do_more_often_counts_up_to_the_clip() -> None:
    policy, flat, batch = pole()
    often = behaved(policy, batch, 1.5)
    once = gradient_of(policy, flat, batch)
    torch.testing.assert_close(gradient_of(policy, flat, often), once, rtol=1e-3, atol=1e-4)
    more = gradient_of(policy, flat, often, vtrace_rho_clip=2.0)
    assert float(more.norm()) > 1.5 * float(once.norm())


def test_a_decay_of_traces_is_the_lambda_of_the_generalised_advantage_estimation() -> None:
    policy, flat, batch = pole()
    long, short = (gradient_of(policy, flat, batch, gae_lambda=decay) for decay in (1.0, 0.5))
    assert torch.equal(long, gradient_of(policy, flat, batch))
    assert not torch.allclose(long, short, rtol=0.1)


def test_the_statistics_take_in_what_was_acted_on_and_nothing_else() -> None:
    policy, flat, batch = pole()
    valid = torch.rand(T, B) < 0.5
    chosen = batch.observations[:T][valid]
    Impala(policy, flat, Hyperparameters(**HYPER)).update(batch._replace(valid=valid), 0.0)
    assert policy.normalisation is not None
    assert float(policy.normalisation.count) == len(chosen)
    torch.testing.assert_close(policy.normalisation.mean, chosen.mean(0), rtol=1e-4, atol=1e-6)


def test_an_actor_leaves_them_as_they_came() -> None:
    simulators = make_simulators(Environment(id="CartPole-v1"), B)
    policy, flat = learner(simulators)
    collect = collector(simulators, policy)
    before = flat.vector.clone()
    collect.collect()
    assert torch.equal(flat.vector, before)


def test_images_are_learned_from_in_bfloat16_in_about_the_same_direction() -> None:
    observations, actions, _ = KINDS["images, choices"]
    simulators = Kinds(observations, actions)
    policy, flat = learner(simulators)
    batch = Batch.of(collector(simulators, policy).collect())
    gradients = []
    for compute_type in (torch.float32, torch.bfloat16):
        start = flat.vector.clone()
        Impala(policy, flat, Hyperparameters(**HYPER), compute_type).update(batch, 0.0)
        flat.vector.copy_(start)
        gradients.append(flat.gradient.clone())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
    assert not torch.equal(*gradients)


def test_a_rollout_that_was_not_recorded_is_no_batch() -> None:
    simulators = make_simulators(Environment(id="CartPole-v1"), B)
    policy, _ = learner(simulators)
    collect = collector(simulators, policy)
    collect._seen = None
    with pytest.raises(ValueError, match="no recording"):
        Batch.of(collect.collect())
