"""What V-trace is for: learning from actors whose policy is k updates old, with the correction and without.

    python benchmarks/paper/policy_lag.py [--lags 0 60] [--seeds 5] [--steps 100000] [--output policy-lag.json]

One process, no network, nothing asynchronous: the learner of IMPALA (`impala_update`) learns CartPole from rollouts
that are acted with its own parameters of exactly k updates ago. The two arms differ in nothing but the probabilities
that the learner is told for the actors' actions: the true ones, or its own of now. The latter makes every ratio 1, and
V-trace's targets those of n-step A2C: no correction. Equal seeds give equal numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from gala.spec import Environment, Hyperparameters, Policy
from gala_worker.algorithms.impala_rollouts import Batch
from gala_worker.algorithms.impala_update import Impala
from gala_worker.environments import make_simulators
from gala_worker.flat import FlatState
from gala_worker.model import ActorCritic, make_policy
from gala_worker.model.batch import forward_batch
from gala_worker.rollout import Collector

SIMULATORS = 32
ROLLOUT = 20
ARMS = ("V-trace", "uncorrected")
# Gymnasium's own vectorised CartPole: the same physics, several times faster than single ones.
ENVIRONMENT = Environment(id="CartPole-v1", simulators=SIMULATORS, kwargs={"vectorization_mode": "vector_entry_point"})
HYPER = Hyperparameters(
    learning_rate=1e-2,
    learning_rate_schedule="linear",
    rollout_length=ROLLOUT,
    discount=0.98,
    entropy_coefficient=0.0,
    max_gradient_norm=0.5,
    rms_prop_epsilon=1e-5,
    loss_reduction="mean",
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run."""

    arm: str
    lag: int
    seed: int
    steps: int
    mean_return: float
    """Of all training episodes: the area under the curve."""
    last_return: float
    """Of the episodes in the last tenth of the decisions."""


def train(arm: str, lag: int, seed: int, steps: int) -> Result:
    """Trains for so many decisions with actors `lag` updates behind."""
    simulators = make_simulators(ENVIRONMENT, SIMULATORS)

    def build() -> tuple[ActorCritic, FlatState]:
        policy = make_policy(simulators.observation_space, simulators.action_space, Policy(), seed=seed)
        return policy, FlatState(policy, policy.gossiped_buffers())

    (policy, flat), (acting, lagging) = build(), build()
    learner = Impala(policy, flat, HYPER)
    collector = Collector(
        simulators,
        acting,
        rollout_length=ROLLOUT,
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
            each = ", ".join(f"{score:.0f}" for score in last)
            overall = statistics.fmean(result.mean_return for result in chosen)
            lines.append(f"| {lag} | {arm} | {statistics.fmean(last):.0f} | {each} | {overall:.0f} |")
    return "\n".join(lines)


def main(show: Callable[[str], object] = print) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 60])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for seed in range(1, options.seeds + 1):
        for lag in options.lags:
            for arm in ARMS:
                results.append(train(arm, lag, seed, options.steps))
                if options.output is not None:
                    options.output.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
        show(table(results))


if __name__ == "__main__":
    main()
