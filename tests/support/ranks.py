"""A rank's algorithm in the process of the tests, with what a worker has around it; its steps are called by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gala.plan import RunPlan
from gala_worker.algorithms.a2c import Update
from gala_worker.algorithms.algorithm import Setup
from gala_worker.algorithms.factory import make_algorithm
from gala_worker.environments import make_simulators
from gala_worker.flat import FlatState
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.model import ActorCritic, make_policy
from gala_worker.rollout import Collector
from gala_worker.state import Counters
from waiting import PATIENCE_SECONDS

CPU = torch.device("cpu")


class Agent:
    """A policy and simulators of a run, without any algorithm."""

    def __init__(self, run: RunPlan, *, simulators: int | None = None, seed: int | None = None) -> None:
        """`seed` of the policy: the run's, unless told."""
        environment = run.spec.environment
        self.run = run
        self.simulators = make_simulators(environment, simulators or environment.simulators, threads=1)
        self.policy: ActorCritic = make_policy(
            self.simulators.observation_space,
            self.simulators.action_space,
            run.spec.policy,
            seed=run.seed if seed is None else seed,
        )
        self.flat = FlatState(self.policy, self.policy.gossiped_buffers())

    def collector(self, seed: int, **options: Any) -> Collector:
        return Collector(
            self.simulators,
            self.policy,
            rollout_length=self.run.spec.hyperparameters.rollout_length,
            clip_rewards=False,
            compute_type=torch.float32,
            device=CPU,
            seed=seed,
            **options,
        )

    def close(self) -> None:
        self.simulators.close()


class Rank(Agent):
    """A rank that has not begun yet."""

    def __init__(
        self,
        run: RunPlan,
        rank: int,
        loop: LoopThread,
        *,
        incarnation: int = 1,
        folder: Path = Path(),
        seed: int | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(run, seed=seed)
        self.rank = rank
        self.counters = Counters()
        self.setup = Setup(
            plan=run,
            me=run.learner(rank),
            incarnation=incarnation,
            policy=self.policy,
            flat=self.flat,
            observation_space=self.simulators.observation_space,
            device=CPU,
            compute_type=torch.float32,
            loop=loop,
            learner_dir=folder / f"learner-{rank}",
            stopping=stopping,
        )
        # Of any algorithm: each test reads what its own one has beyond the seam.
        self.algorithm: Any = make_algorithm(self.setup)

    def begin(self, seed: int | None = None) -> None:
        """After the algorithm's `open`; `seed` of the simulators: the rank's own, unless told."""
        collector = None
        if self.algorithm.acts:
            collector = self.collector(
                self.setup.me.seed if seed is None else seed,
                record=self.algorithm.records,
                observe=self.algorithm.observes,
            )
        self.algorithm.begin(collector, self.counters)

    def step(self, *, measure: bool = False) -> Update | None:
        update: Update | None = self.algorithm.step(self.counters, measure=measure)
        return update

    def until(self, condition: Callable[[], object], *others: Rank) -> None:
        """Steps of this rank and of others until something is so."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"rank {self.rank}: not within {PATIENCE_SECONDS:g} s"
            for rank in (*others, self):
                rank.step()

    def until_step(self) -> Update:
        """Steps until there is an update."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (update := self.step()) is None:
            assert time.monotonic() < deadline, f"rank {self.rank}: no update within {PATIENCE_SECONDS:g} s"
        return update

    def close(self) -> None:
        self.algorithm.close()
        super().close()
