"""PPO's loss against a loop over transitions, and its update against the parts it is made of."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from dummy_transitions import assert_dummies_do_not_matter
from gala.spec import GalaRun, Hyperparameters, Policy, parse
from gala_worker.algorithms.losses import A2CLoss
from gala_worker.algorithms.ppo import PPO, normalise, ppo_loss
from gala_worker.environments import make_simulators
from gala_worker.flat import FlatState
from gala_worker.model import ActorCritic, make_policy
from gala_worker.rollout import Collector, Rollout

VALUE, ENTROPY, CLIP = 0.5, 0.01, 0.2


def arguments(seed: int, *shape: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(*shape, generator=generator)

    log_prob = normal().abs().neg()
    return {
        "log_prob": log_prob.clone().requires_grad_(),
        "behaviour_log_prob": log_prob + 0.3 * normal(),  # ratios on both sides of both clips
        "entropy": normal().abs().requires_grad_(),
        "values": normal().requires_grad_(),
        "returns": normal(),
        "advantages": normal(),
        "valid": torch.rand(*shape, generator=generator) < 0.7,
    }


def loss_of(given: dict[str, Tensor]) -> A2CLoss:
    return ppo_loss(**given, clip_range=CLIP, value_coefficient=VALUE, entropy_coefficient=ENTROPY)


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (5, 16)])
@pytest.mark.parametrize("seed", range(4))
def test_loss_is_that_of_equation_7_over_valid_transitions(seed: int, shape: tuple[int, int]) -> None:
    given = arguments(seed, *shape)
    flat = {name: tensor.detach().flatten().tolist() for name, tensor in given.items()}
    chosen = [i for i, valid in enumerate(flat["valid"]) if valid]
    count = max(len(chosen), 1)
    policy = 0.0
    for i in chosen:
        ratio = math.exp(flat["log_prob"][i] - flat["behaviour_log_prob"][i])
        advantage = flat["advantages"][i]
        policy -= min(ratio * advantage, min(max(ratio, 1 - CLIP), 1 + CLIP) * advantage) / count
    value = sum((flat["returns"][i] - flat["values"][i]) ** 2 for i in chosen) / count
    entropy = sum(flat["entropy"][i] for i in chosen) / count
    loss = loss_of(given)
    assert float(loss.policy) == pytest.approx(policy, abs=1e-5)
    assert float(loss.value) == pytest.approx(value, abs=1e-5)
    assert float(loss.entropy) == pytest.approx(entropy, abs=1e-5)
    assert float(loss.total.detach()) == pytest.approx(policy + VALUE * value - ENTROPY * entropy, abs=1e-5)


def test_a_ratio_beyond_the_clip_gives_no_gradient_where_the_advantage_asks_for_more_of_it() -> None:
    given = arguments(0, 1, 4)
    given["valid"].fill_(True)
    given["advantages"] = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    given["behaviour_log_prob"] = given["log_prob"].detach() - torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    loss_of(given).total.backward()
    moved = given["log_prob"].grad
    assert moved is not None
    # Too likely and good, or too unlikely and bad: left alone. The other two are on the wrong side and are pulled back.
    assert moved.ne(0).tolist() == [[False, True, True, False]]


def test_at_ratio_one_the_gradient_is_that_of_the_policy_gradient() -> None:
    given = arguments(1, 5, 6)
    given["behaviour_log_prob"] = given["log_prob"].detach().clone()
    loss_of(given).total.backward()
    valid = given["valid"]
    expected = torch.where(valid, -given["advantages"] / valid.sum(), torch.zeros(()))
    torch.testing.assert_close(given["log_prob"].grad, expected)


@pytest.mark.parametrize("junk", [1e30, math.inf, math.nan])
def test_what_dummy_transitions_contain_does_not_matter(junk: float) -> None:
    assert_dummies_do_not_matter(arguments(5, 5, 4), loss_of, junk)


def test_unequal_shapes_and_weights_instead_of_flags_are_refused() -> None:
    given = arguments(0, 5, 4)
    with pytest.raises(ValueError, match="one shape"):
        loss_of(given | {"entropy": given["entropy"][:1]})
    with pytest.raises(ValueError, match="valid be bool"):
        loss_of(given | {"valid": given["valid"].float()})


def test_normalised_advantages_have_mean_0_and_deviation_1_over_the_valid_ones() -> None:
    given = arguments(3, 5, 16)
    given["advantages"][~given["valid"]] = math.nan
    chosen = normalise(given["advantages"] * 7 + 3, given["valid"])[given["valid"]]
    assert float(chosen.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(chosen.std()) == pytest.approx(1.0, rel=1e-5)


def test_one_advantage_alone_is_left_as_it_is() -> None:
    lonely = torch.tensor([[2.0, 5.0]])
    assert torch.equal(normalise(lonely, torch.tensor([[True, False]])), lonely)


# ---------------------------------------------------------------- the update


def hyperparameters(**changes: Any) -> Hyperparameters:
    document: dict[str, Any] = {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"name": "test"},
        "spec": {
            "algorithm": "GALA-PPO",
            "environment": {"id": "CartPole-v1", "simulators": 4},
            "hyperparameters": {"rolloutLength": 8, "learningRate": 1e-3, **changes},
        },
    }
    run: GalaRun = parse(document)
    return run.spec.hyperparameters


class Learner:
    """A policy on the pole with one recorded rollout."""

    def __init__(self, *, recurrent: bool = False, simulators: int = 4, **changes: Any) -> None:
        from gala.spec import Environment

        self.hyper = hyperparameters(**changes)
        self.simulators = make_simulators(Environment(id="CartPole-v1"), simulators)
        self.policy: ActorCritic = make_policy(
            self.simulators.observation_space,
            self.simulators.action_space,
            Policy(recurrent=recurrent, normalizeObservations=False),
            seed=1,
        )
        self.flat = FlatState(self.policy, self.policy.gossiped_buffers())
        self.ppo = PPO(self.policy, self.flat, self.hyper)
        self.collector = Collector(
            self.simulators,
            self.policy,
            rollout_length=self.hyper.rollout_length,
            clip_rewards=False,
            compute_type=torch.float32,
            device=torch.device("cpu"),
            seed=1,
            record=True,
        )
        for _ in range(4):  # some episodes end within the fourth rollout
            self.rollout = self.collector.collect()
        self.simulators.close()


@pytest.mark.parametrize("recurrent", [False, True])
def test_each_epoch_sees_every_transition_once(recurrent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(recurrent=recurrent, epochs=3, minibatches=2)
    seen: list[Tensor] = []
    original = ppo_loss

    def watched(log_prob: Tensor, behaviour: Tensor, *rest: Tensor, **options: Any) -> A2CLoss:
        seen.append(rest[2])  # returns: of each transition, another number
        return original(log_prob, behaviour, *rest, **options)

    monkeypatch.setattr("gala_worker.algorithms.ppo.ppo_loss", watched)
    learner.ppo.update(learner.rollout, 0.0)
    assert len(seen) == 6
    epochs = [torch.cat([part.flatten() for part in seen[k : k + 2]]).sort().values for k in (0, 2, 4)]
    assert epochs[0].numel() == 32
    assert torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(seen[0], seen[2])
    if recurrent:
        assert all(part.shape == (8, 2) for part in seen)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("recurrent", [False, True])
def test_one_epoch_of_one_minibatch_is_one_step_of_torch_adam_on_the_policy_gradient(
    recurrent: bool, normalized: bool
) -> None:
    learner = Learner(recurrent=recurrent, epochs=1, minibatches=1, normalizeAdvantages=normalized)
    rollout, hyper = learner.rollout, learner.hyper
    twin = torch.nn.Parameter(learner.flat.trainable.clone())
    reference = torch.optim.Adam([twin], lr=hyper.learning_rate, eps=hyper.adam_epsilon)
    twin.grad = gradient_of_the_first_step(learner, rollout)
    torch.nn.utils.clip_grad_norm_([twin], hyper.max_gradient_norm)
    reference.step()
    update = learner.ppo.update(rollout, 0.0, measure_update=True)
    torch.testing.assert_close(learner.flat.trainable, twin.detach(), rtol=1e-4, atol=2e-5)
    assert update.step.update_norm is not None
    assert update.step.update_norm > 0


def gradient_of_the_first_step(learner: Learner, rollout: Rollout) -> Tensor:
    """By the tape's replay, which PPO does not use: the ratio is 1 throughout."""
    from gala_worker.algorithms.returns import targets

    hyper, family = learner.hyper, learner.policy.actions
    returns, advantages = targets(
        *(rollout.rewards, rollout.values, rollout.terminated, rollout.truncated),
        discount=hyper.discount,
        gae_lambda=hyper.gae_lambda,
    )
    parameters, values = rollout.tape.replay()
    log_prob = family.log_prob(parameters, rollout.actions)
    valid = rollout.valid
    chosen = advantages[valid]
    if hyper.normalize_advantages:
        advantages = (advantages - chosen.mean()) / chosen.std()
    loss = -(log_prob * advantages)[valid].mean() + hyper.value_coefficient * (returns - values)[valid].square().mean()
    learner.flat.differentiate(loss - hyper.entropy_coefficient * family.entropy(parameters)[valid].mean())
    return learner.flat.gradient.clone()


def test_equal_seeds_give_equal_updates_and_the_recorded_rollout_stays_as_it_is() -> None:
    first, second = Learner(minibatches=3), Learner(minibatches=3)
    assert first.rollout.recording is not None
    before = first.rollout.recording.observations.clone()
    assert first.ppo.update(first.rollout, 0.0).step == second.ppo.update(second.rollout, 0.0).step
    assert torch.equal(first.flat.vector, second.flat.vector)
    assert torch.equal(first.rollout.recording.observations, before)


def test_a_rollout_that_was_not_recorded_is_refused() -> None:
    learner = Learner()
    with pytest.raises(ValueError, match="recorded"):
        learner.ppo.update(dataclasses.replace(learner.rollout, recording=None), 0.0)


def test_more_minibatches_than_simulators_with_a_memory_are_as_many_as_simulators() -> None:
    learner = Learner(recurrent=True, simulators=2, epochs=1, minibatches=4)
    learner.ppo.update(learner.rollout, 0.0)
    assert int(learner.ppo.optimizer.state["optimizer.steps"]) == 2


def test_ppo_learns_which_action_pays() -> None:
    """A bandit: action 1 pays 1, action 0 nothing."""

    class Bandit(gymnasium.Env[np.ndarray, int]):
        observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
            super().reset(seed=seed)
            return np.zeros(1, np.float32), {}

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            return np.zeros(1, np.float32), float(action), True, False, {}

    gymnasium.register("PpoBandit-v0", Bandit)
    try:
        from gala.spec import Environment

        simulators = make_simulators(Environment(id="PpoBandit-v0"), 4)
        hyper = hyperparameters(learningRate=0.01, learningRateSchedule="constant", entropyCoefficient=0)
        policy = make_policy(simulators.observation_space, simulators.action_space, Policy(), seed=1)
        flat = FlatState(policy, policy.gossiped_buffers())
        ppo = PPO(policy, flat, hyper)
        collector = Collector(
            simulators,
            policy,
            rollout_length=8,
            clip_rewards=False,
            compute_type=torch.float32,
            device=torch.device("cpu"),
            seed=1,
            record=True,
        )
        for _ in range(30):
            rollout = collector.collect()
            ppo.update(rollout, 0.0)
        rollout = collector.collect()
        assert float(rollout.actions[rollout.valid].float().mean()) > 0.9
    finally:
        gymnasium.registry.pop("PpoBandit-v0", None)
