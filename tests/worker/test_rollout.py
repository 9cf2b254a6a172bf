"""Rollouts hold what the simulators said, and what the policy computed to act."""

import gymnasium
import numpy as np
import pytest
import torch

from gala.spec import Hyperparameters, Policy
from gala_worker.algorithms.a2c import A2C
from gala_worker.environments import Transition
from gala_worker.flat import FlatState
from gala_worker.model import ActorCritic, make_policy
from gala_worker.rollout import Collector

T, B, D = 4, 3, 5


class ScriptedSimulators:
    """Says what it was told to say, in arrays that it uses again, and remembers the actions."""

    def __init__(self) -> None:
        self.num_simulators = B
        self.max_episode_steps = None
        self.observation_space = gymnasium.spaces.Box(-10, 10, (D,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(3)
        self.random = np.random.default_rng(3)
        self.actions: list[np.ndarray] = []
        self.said: list[Transition] = []
        self.seeds: list[int] = []
        self.reused = np.empty((B, D), np.float32)

    def reset(self, seed: int) -> np.ndarray:
        self.seeds.append(seed)
        self.reused[:] = self.random.normal(size=(B, D))
        return self.reused

    def step(self, actions: np.ndarray) -> Transition:
        self.actions.append(actions.copy())
        self.reused[:] = self.random.normal(size=(B, D))
        flags = self.random.random((4, B)) < 0.3
        rewards = self.random.normal(scale=3, size=B).astype(np.float32)
        self.said.append(Transition(self.reused.copy(), rewards, flags[0], flags[1], ~flags[2], flags[3]))
        return Transition(self.reused, rewards, flags[0], flags[1], ~flags[2], flags[3])

    def pop_episodes(self) -> list:  # type: ignore[type-arg]
        return []

    def close(self) -> None:
        pass


def make(
    *, clip: bool = False, seed: int = 1, recurrent: bool = False, normalise: bool = False, record: bool = False
) -> tuple[Collector, ScriptedSimulators, ActorCritic]:
    simulators = ScriptedSimulators()
    spec = Policy(normalize_observations=normalise, recurrent=recurrent)
    policy = make_policy(simulators.observation_space, simulators.action_space, spec, seed=1)
    collector = Collector(
        simulators,
        policy,
        rollout_length=T,
        clip_rewards=clip,
        compute_type=torch.float32,
        device=torch.device("cpu"),
        seed=seed,
        record=record,
    )
    return collector, simulators, policy


def test_a_rollout_holds_what_the_simulators_said() -> None:
    collector, simulators, _ = make()
    rollout = collector.collect()
    np.testing.assert_array_equal(rollout.rewards, np.stack([s.rewards for s in simulators.said]))
    np.testing.assert_array_equal(rollout.terminated, np.stack([s.terminated for s in simulators.said]))
    np.testing.assert_array_equal(rollout.truncated, np.stack([s.truncated for s in simulators.said]))
    np.testing.assert_array_equal(rollout.valid, np.stack([s.valid for s in simulators.said]))
    np.testing.assert_array_equal(rollout.actions, np.stack(simulators.actions))
    assert rollout.num_steps == rollout.valid.sum()
    assert simulators.seeds == [1]


def test_a_rollout_is_not_changed_by_the_next_one() -> None:
    collector, _, _ = make()
    first = collector.collect()
    kept = [t.clone() for t in (first.actions, first.values, first.rewards, first.terminated, first.valid)]
    collector.collect()
    now = (first.actions, first.values, first.rewards, first.terminated, first.valid)
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))


def test_rewards_are_clipped_only_where_the_run_asks_for_it() -> None:
    raw, clipped = make()[0].collect(), make(clip=True)[0].collect()
    assert raw.rewards.abs().max() > 1
    torch.testing.assert_close(clipped.rewards, raw.rewards.clamp(-1, 1))


@pytest.mark.parametrize("recurrent", [False, True])
def test_replayed_values_are_those_of_acting_and_the_last_is_the_bootstrap(recurrent: bool) -> None:
    collector, simulators, policy = make(recurrent=recurrent)
    for _ in range(3):
        first_state = collector._tape._state
        rollout = collector.collect()
        replayed = rollout.tape.replay()
        torch.testing.assert_close(replayed.values, rollout.values[:-1])
        assert replayed.values.requires_grad
    if not recurrent:
        last = torch.from_numpy(simulators.said[-1].observations)
        torch.testing.assert_close(rollout.values[-1], policy(last).value)
    else:
        assert first_state is not None


def test_observation_statistics_follow_the_first_rollout_and_then_stand_still_while_acting() -> None:
    """Else nothing would be normalised at first, and later who looks at a rollout again would see it otherwise."""
    collector, simulators, policy = make(normalise=True, record=True)
    statistics = policy.normalisation
    assert statistics is not None
    collector.collect()
    assert statistics.count == T * B
    collector.collect()
    assert statistics.count == T * B

    recording = collector.collect().recording
    shown = torch.from_numpy(np.concatenate([step.observations for step in simulators.said[: 2 * T]]))
    assert statistics.count == 2 * T * B
    torch.testing.assert_close(statistics.mean, shown.mean(0))
    torch.testing.assert_close(statistics.variance, shown.var(0, correction=0))
    assert recording is not None
    again = policy(recording.observations[:-1].flatten(0, 1)).parameters
    torch.testing.assert_close(again.reshape(recording.parameters.shape), recording.parameters)


def test_equal_seeds_give_equal_actions_and_others_do_not() -> None:
    same = [make(seed=5)[0].collect().actions for _ in range(2)]
    assert torch.equal(*same)
    collectors = [make(seed=seed)[0] for seed in (5, 6)]
    actions = [torch.cat([c.collect().actions for _ in range(8)]) for c in collectors]
    assert not torch.equal(*actions)


def test_an_update_lowers_the_value_error_on_its_own_rollout() -> None:
    collector, _, policy = make()
    flat = FlatState(policy, policy.gossiped_buffers())
    algorithm = A2C(policy, flat, Hyperparameters(discount=0.0, learning_rate=1e-3))
    rollout = collector.collect()
    losses = [float(algorithm.update(rollout, 0.0).loss.value) for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]


def test_the_learning_rate_falls_in_a_line_to_zero_when_asked() -> None:
    collector, _, policy = make()
    flat = FlatState(policy)
    rollout = collector.collect()
    linear = A2C(policy, flat, Hyperparameters(learning_rate=1e-3, learning_rate_schedule="linear"))
    assert [linear.update(rollout, p).learning_rate for p in (0.0, 0.25, 1.0, 1.1)] == [1e-3, 7.5e-4, 0.0, 0.0]
    constant = A2C(policy, flat, Hyperparameters(learning_rate=1e-3))
    assert constant.update(rollout, 0.9).learning_rate == 1e-3
