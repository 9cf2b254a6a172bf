"""Numbers that are not finite: what of them is kept from learning, and that whatever cannot be learned from is told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from gala.errors import SimulatorError
from gala.plan import plan
from gala.spec import Environment, Hyperparameters, Policy, parse
from gala_worker.algorithms.a2c import A2C
from gala_worker.algorithms.impala_rollouts import Batch
from gala_worker.algorithms.impala_update import Impala
from gala_worker.algorithms.ppo import PPO
from gala_worker.environments import make_simulators
from gala_worker.flat import FlatState
from gala_worker.model import make_policy
from gala_worker.rollout import Collector
from gala_worker.skipped import HOPELESS, SkippedUpdates
from gala_worker.state import Counters
from small_games import LENGTH, Flawed

pytestmark = pytest.mark.usefixtures("one_compute_thread")

Learn = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register("GalaFlawed-v0", entry_point=Flawed, disable_env_checker=True)
    yield
    del gymnasium.registry["GalaFlawed-v0"]


class Learner:
    """A policy of an algorithm that acts in flawed simulators, and learns from what it has acted."""

    def __init__(self, algorithm: str = "GALA-A2C", *, simulators: int = 2, policy: Any = None, **flaws: Any) -> None:
        environment = Environment.model_validate({"id": "GalaFlawed-v0", "kwargs": flaws})
        self.simulators = make_simulators(environment, simulators)
        spaces = self.simulators.observation_space, self.simulators.action_space
        self.policy = make_policy(*spaces, policy or Policy(), seed=0)
        self.flat = FlatState(self.policy, self.policy.gossiped_buffers())
        self.collector = Collector(
            self.simulators,
            self.policy,
            rollout_length=2 * LENGTH + 2,
            clip_rewards=False,
            compute_type=torch.float32,
            device=torch.device("cpu"),
            seed=0,
            record=algorithm != "GALA-A2C",
        )
        hyperparameters = Hyperparameters(gae_lambda=0.95 if algorithm == "GALA-PPO" else None)
        kind = {"GALA-A2C": A2C, "GALA-PPO": PPO, "IMPALA": Impala}[algorithm]
        self.learner: Any = kind(self.policy, self.flat, hyperparameters)
        self.learns_from: Learn = Batch.of if algorithm == "IMPALA" else lambda rollout: rollout

    def step(self) -> Any:
        return self.learner.update(self.learns_from(self.collector.collect()), 0.0)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("algorithm", ["GALA-A2C", "GALA-PPO", "IMPALA"])
def test_an_observation_after_the_end_may_be_anything(algorithm: str, recurrent: bool) -> None:
    """Nothing is decided there. Nor does it reach the observation statistics."""
    policy = Policy(recurrent=recurrent)
    flawed = Learner(algorithm, policy=policy, at_the_end=np.nan)
    blank = Learner(algorithm, policy=policy.model_copy(), at_the_end=0.0)
    for learner in (flawed, blank):
        if learner.policy.normalisation is not None:
            learner.policy.normalisation.update = lambda *_: None  # type: ignore[method-assign]
    for _ in range(3):
        assert not flawed.step().is_skipped
        blank.step()
    assert torch.equal(flawed.flat.vector, blank.flat.vector)


def test_what_stands_for_no_observation_is_not_in_the_observation_statistics() -> None:
    learner = Learner(at_the_end=np.nan)
    learner.step()
    statistics = learner.policy.normalisation
    assert statistics is not None
    assert statistics.count == 2 * (2 * LENGTH + 2) - 2 * 2, "all that was shown, but for two ends of two episodes"


@pytest.mark.parametrize(
    ("flaw", "told"),
    [
        ({"reward": np.nan}, "a reward of simulator 0"),
        ({"reward": np.inf}, "a reward of simulator 0"),
        ({"on_the_way": np.nan}, "an observation of simulator 0"),
        ({"reward": np.nan, "only": 1}, "a reward of simulator 1"),
        ({"on_the_way": np.nan, "only": 1}, "an observation of simulator 1"),
    ],
)
@pytest.mark.parametrize("algorithm", ["GALA-A2C", "GALA-PPO", "IMPALA"])
def test_an_update_that_changes_nothing_is_one_and_has_a_cause(algorithm: str, flaw: dict[str, Any], told: str) -> None:
    learner = Learner(algorithm, **flaw)
    assert learner.step().is_skipped
    assert learner.collector.flaw() == told


def test_a_sound_rollout_has_no_flaw() -> None:
    learner = Learner()
    assert learner.collector.flaw() is None
    assert not learner.step().is_skipped
    assert learner.collector.flaw() is None


class Events:
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def event(self, event: str, **details: Any) -> None:
        self.seen.append({"event": event, **details})


def skipped_updates(algorithm: str, rank: int, events: Events, clock: Callable[[], float]) -> SkippedUpdates:
    document = {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"name": "test"},
        "spec": {"environment": {"id": "GalaFlawed-v0"}, "learners": 2, "algorithm": algorithm},
    }
    made = plan(parse(document))
    metrics: Any = events
    is_keeper = rank in made.keepers
    return SkippedUpdates("GalaFlawed-v0", made.learner(rank), metrics, is_keeper=is_keeper, clock=clock)


def test_skipped_updates_are_counted_and_told_once_a_minute_with_their_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    learner, counters, events = Learner(reward=np.nan), Counters(), Events()
    times = iter((0.0, 1.0, 59.0, 60.0))
    skipped = skipped_updates("GALA-A2C", 0, events, lambda: next(times))
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            update = learner.step()
            counters.updates += 1
            skipped.note(update, learner.collector, counters)
            skipped.note(None, learner.collector, counters)  # while it waits for others
    assert counters.skipped_updates == 4
    assert events.seen == [
        {"event": "skipped", "updates": number, "notFinite": "a reward of simulator 0"} for number in (1, 4)
    ]
    assert [record.message for record in caplog.records if record.name == "gala_worker.skipped"] == [
        "update 1 teaches nothing: a reward of simulator 0 is not finite; so it was with 1 updates so far",
        "update 4 teaches nothing: a reward of simulator 0 is not finite; so it was with 4 updates so far",
    ]


def test_an_update_without_a_flaw_that_can_be_seen_is_told_too() -> None:
    """Of a centre, which sees no rollouts; or numbers too large for their gradient."""
    learner, counters, events = Learner(reward=np.nan), Counters(updates=7), Events()
    skipped_updates("IMPALA", 0, events, lambda: 0.0).note(learner.step(), None, counters)
    assert events.seen == [{"event": "skipped", "updates": 1, "notFinite": "the gradient"}]


def acted(skipped: SkippedUpdates, learner: Learner, counters: Counters, times: int) -> None:
    for _ in range(times):
        learner.collector.collect()
        counters.updates += 1
        skipped.note(None, learner.collector, counters)


@pytest.mark.parametrize(
    ("reward", "observation", "told"), [(np.nan, 0.0, "a reward"), (0.0, np.inf, "an observation")]
)
def test_an_actor_of_whom_nothing_can_be_learned_fails_instead_of_acting_forever(
    reward: float, observation: float, told: str
) -> None:
    learner, counters = Learner("IMPALA", reward=reward, on_the_way=observation), Counters()
    skipped = skipped_updates("IMPALA", 1, Events(), lambda: 0.0)
    acted(skipped, learner, counters, HOPELESS - 1)
    assert counters.skipped_updates == HOPELESS - 1
    message = f"^spec.environment.id: GalaFlawed-v0 has given {told} of simulator 0 that is not finite"
    with pytest.raises(SimulatorError, match=message):
        acted(skipped, learner, counters, 1)


def test_one_sound_rollout_is_hope() -> None:
    flawed, sound, counters = Learner("IMPALA", reward=np.nan), Learner("IMPALA"), Counters()
    skipped = skipped_updates("IMPALA", 1, Events(), lambda: 0.0)
    acted(skipped, flawed, counters, HOPELESS - 1)
    acted(skipped, sound, counters, 1)
    acted(skipped, flawed, counters, HOPELESS - 1)
    assert counters.skipped_updates == 2 * (HOPELESS - 1)


def test_who_keeps_the_parameters_goes_on_since_its_decisions_count() -> None:
    learner, counters = Learner(reward=np.nan), Counters()
    skipped = skipped_updates("GALA-A2C", 0, Events(), lambda: 0.0)
    for _ in range(HOPELESS + 1):
        counters.updates += 1
        skipped.note(learner.step(), learner.collector, counters)
    assert counters.skipped_updates == HOPELESS + 1
