"""What V-trace is for: learning from actors whose policy is k updates old, with the correction and without.

    python benchmarks/paper/policy_lag.py [--task fork] [--lags 0 100] [--seeds 5] [--output policy-lag.json]

One process, no network, nothing asynchronous: the learner of IMPALA (`impala_update`) learns from rollouts that are
acted with its own parameters of exactly k updates ago. The two arms differ in nothing but the probabilities that the
learner is told for the actors' actions: the true ones, or its own of now. The latter makes every ratio 1, and V-trace's
targets those of n-step A2C: no correction. Equal seeds give equal numbers.

Tasks: CartPole, and a fork that punishes haste. At the fork one action ends the episode with 0.5, the other leads down
a path of three more forks, where the right action must be taken each time to end with 1. A policy at random does better
to stop at once, and while it does so less and less of the path is seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from pydantic import JsonValue

from gala.spec import Environment, Hyperparameters, Policy
from gala_worker.algorithms.impala_rollouts import Batch
from gala_worker.algorithms.impala_update import Impala
from gala_worker.environments import Episode, Simulators, Transition, make_simulators
from gala_worker.flat import FlatState
from gala_worker.model import ActorCritic, make_policy
from gala_worker.model.batch import forward_batch
from gala_worker.rollout import Collector

SIMULATORS = 32
ARMS = ("V-trace", "uncorrected")
NEAR, FAR = 0.5, 1.0
PATH = 3


class Fork:
    """`Simulators` of the fork; without chance."""

    def __init__(self) -> None:
        self.num_simulators = SIMULATORS
        self.max_episode_steps: int | None = None
        self.observation_space: gymnasium.Space[Any] = gymnasium.spaces.Box(0.0, 1.0, (PATH + 1,), np.float32)
        self.action_space: gymnasium.Space[Any] = gymnasium.spaces.Discrete(2)
        self._place = np.zeros(SIMULATORS, np.int64)
        self._ended = np.zeros(SIMULATORS, np.bool_)
        self._episodes: list[Episode] = []

    def reset(self, seed: int) -> npt.NDArray[Any]:
        """Everybody at the fork."""
        self._place[:] = 0
        return self._observe()

    def step(self, actions: npt.NDArray[Any]) -> Transition:
        """0 = stop, 1 = go on."""
        dummy, at = self._ended, self._place
        goes = (actions == 1) & ~dummy
        arrives = goes & (at == PATH)
        stops = (actions == 0) & ~dummy
        rewards = np.where(arrives, FAR, np.where(stops & (at == 0), NEAR, 0.0)).astype(np.float32)
        self._ended = arrives | stops
        self._episodes += [Episode(float(rewards[i]), int(at[i]) + 1) for i in np.flatnonzero(self._ended)]
        self._place = np.where(dummy, 0, np.minimum(at + goes, PATH))
        return Transition(self._observe(), rewards, self._ended, np.zeros_like(dummy), ~dummy, dummy)

    def pop_episodes(self) -> list[Episode]:
        """Since the last call."""
        episodes, self._episodes = self._episodes, []
        return episodes

    def close(self) -> None:
        """Nothing to release."""

    def _observe(self) -> npt.NDArray[Any]:
        return np.eye(PATH + 1, dtype=np.float32)[self._place]


def make(task: str) -> Simulators:
    """A task's simulators."""
    if task == "fork":
        return Fork()
    # Gymnasium's own vectorised CartPole: the same physics, several times faster than single ones.
    kwargs: dict[str, JsonValue] = {"vectorization_mode": "vector_entry_point"}
    return make_simulators(Environment(id="CartPole-v1", simulators=SIMULATORS, kwargs=kwargs), SIMULATORS)


@dataclass(frozen=True, kw_only=True)
class Task:
    """How a task is learned."""

    steps: int
    rollout_length: int
    learning_rate: float


TASKS = {
    "fork": Task(steps=120_000, rollout_length=8, learning_rate=5e-3),
    "cartpole": Task(steps=100_000, rollout_length=20, learning_rate=1e-2),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run."""

    task: str
    arm: str
    lag: int
    seed: int
    steps: int
    mean_return: float
    """Of all training episodes: the area under the curve."""
    last_return: float
    """Of the episodes in the last tenth of the decisions."""


def train(task: str, arm: str, lag: int, seed: int, steps: int | None = None) -> Result:
    """Trains for so many decisions (None = the task's own number) with actors `lag` updates behind."""
    settings, simulators = TASKS[task], make(task)
    steps = steps or settings.steps
    hyper = Hyperparameters(
        learning_rate=settings.learning_rate,
        learning_rate_schedule="linear",
        rollout_length=settings.rollout_length,
        discount=0.98,
        entropy_coefficient=0.0,
        max_gradient_norm=0.5,
        rms_prop_epsilon=1e-5,
        loss_reduction="mean",
    )

    def build() -> tuple[ActorCritic, FlatState]:
        policy = make_policy(simulators.observation_space, simulators.action_space, Policy(), seed=seed)
        return policy, FlatState(policy, policy.gossiped_buffers())

    (policy, flat), (acting, lagging) = build(), build()
    learner = Impala(policy, flat, hyper)
    collector = Collector(
        simulators,
        acting,
        rollout_length=settings.rollout_length,
        clip_rewards=False,
        compute_type=torch.float32,
        device=torch.device("cpu"),
        seed=seed * 1000,
        record=True,
        observe=False,
    )
    versions = deque([flat.vector.clone()], maxlen=lag + 1)
    done, episodes = 0, []
    while done < steps:
        lagging.vector.copy_(versions[0])
        rollout = collector.collect()
        batch = Batch.of(rollout)
        if arm == "uncorrected":
            batch = batch._replace(parameters=_own_parameters(policy, batch))
        learner.update(batch, done / steps)
        versions.append(flat.vector.clone())
        done += rollout.num_steps
        episodes += [(done, episode.return_) for episode in collector.pop_episodes()]
    simulators.close()
    late = [score for when, score in episodes if when > 0.9 * steps]
    return Result(
        task=task,
        arm=arm,
        lag=lag,
        seed=seed,
        steps=steps,
        mean_return=statistics.fmean(score for _, score in episodes),
        last_return=statistics.fmean(late) if late else 0.0,
    )


@torch.no_grad()
def _own_parameters(policy: ActorCritic, batch: Batch) -> torch.Tensor:
    return forward_batch(policy, batch.observations, batch.starts, batch.state).parameters[: len(batch.rewards)]


def table(results: list[Result]) -> str:
    """Markdown: mean over the seeds, and each seed's."""
    lines = [
        "| lag, updates | targets | return in the last tenth | each seed | return over all training |",
        "|---|---|---|---|---|",
    ]
    for lag in sorted({result.lag for result in results}):
        for arm in ARMS:
            chosen = [result for result in results if (result.lag, result.arm) == (lag, arm)]
            if not chosen:
                continue
            last = [result.last_return for result in chosen]
            each = ", ".join(f"{score:.2f}" for score in last)
            overall = statistics.fmean(result.mean_return for result in chosen)
            lines.append(f"| {lag} | {arm} | {statistics.fmean(last):.2f} | {each} | {overall:.2f} |")
    return "\n".join(lines)


def main(show: Callable[[str], object] = print) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 100])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--task", choices=list(TASKS), default="fork")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for seed in range(1, options.seeds + 1):
        for lag in options.lags:
            for arm in ARMS:
                results.append(train(options.task, arm, lag, seed))
                if options.output is not None:
                    options.output.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
        show(table(results))


if __name__ == "__main__":
    main()
