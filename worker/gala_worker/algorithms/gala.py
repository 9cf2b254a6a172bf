"""GALA: a local learner that gossips its parameters (Assran et al. 2019, arXiv 1906.04585, Algorithm 1).

    act in the simulators -> one update by the local learner -> offer the parameters -> mix what the neighbours sent

The local learner is advantage actor-critic (GALA-A2C) or PPO (GALA-PPO); gossip does not care which.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from torch import Tensor

from gala.algorithms import GALA_PPO
from gala.plan import RunPlan
from gala_worker.algorithms.a2c import A2C, Update
from gala_worker.algorithms.algorithm import WAIT_SECONDS, Algorithm, Setup
from gala_worker.algorithms.ppo import PPO
from gala_worker.diagnostics import open_diagnostics
from gala_worker.gossip.grpc_transport import GrpcTransport
from gala_worker.gossip.peer import GossipPeer
from gala_worker.gossip.stats import GossipStats
from gala_worker.rollout import Collector, Rollout
from gala_worker.state import Counters

GATHER_SECONDS: Final = 120.0
"""How long a synchronous learner waits at its start for the others, whose processes may start much later."""
LATE_SECONDS: Final = 60.0
"""How long a learner that is new to a run which others have begun looks for one of them that has a state to give."""


class Optimizer(Protocol):
    """What is kept of an optimiser."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Its tensors by the names that checkpoints have."""


class LocalLearner(Protocol):
    """Learns from one rollout at a time, alone."""

    @property
    def optimizer(self) -> Optimizer:
        """Its state is what a checkpoint keeps."""

    def update(self, rollout: Rollout, progress: float, *, measure_update: bool = False) -> Update:
        """Changes the parameters in place; `progress` in [0, 1] of the run drives the schedules."""


class Gala(Algorithm):
    """One actor-learner of the ring."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._resumes = False
        spec, flat = setup.plan.spec, setup.flat
        self._learner = _local_learner(setup)
        self._gossip = GossipPeer(
            setup.me.rank,
            setup.plan,
            flat.schema.hash,
            flat.schema.num_elements,
            transport=GrpcTransport(setup.loop),
            incarnation=setup.incarnation,
            num_parameters=len(flat.trainable),
            pinned=setup.device.type == "cuda",
        )
        self._diagnostics = open_diagnostics(
            spec,
            setup.learner_dir,
            rank=setup.me.rank,
            incarnation=setup.incarnation,
            num_parameters=len(flat.trainable),
        )

    @property
    def records(self) -> bool:
        return self.plan.spec.algorithm == GALA_PPO

    @property
    def optimizer_state(self) -> Mapping[str, Tensor]:
        return self._learner.optimizer.state

    @property
    def is_waiting(self) -> bool:
        return self._gossip.is_waiting

    def open(self, *, resumes: bool = False) -> None:
        self._resumes = resumes
        self._gossip.start(resumes=resumes)

    def fetch_state(self, seconds: float) -> bytes | None:
        # A learner without a past in a run that has one would draw the others back to the seed.
        is_late = self.plan.epoch > 0 and not self._resumes
        return self._gossip.fetch_state(LATE_SECONDS if is_late else seconds, give_up=self.setup.stopping)

    def begin(self, collector: Collector | None, counters: Counters) -> None:
        assert collector is not None
        self._collector = collector
        if self._diagnostics is not None:
            self._diagnostics.start(counters.updates, self.setup.flat.trainable)
        self._gossip.merge_progress({self.setup.me.rank: counters.steps, **counters.progress})
        self._gossip.join(version=counters.updates)
        gossip = self.plan.spec.gossip
        if gossip.max_staleness is not None and gossip.max_staleness < gossip.every_updates:
            self._gather(is_first=counters.updates == 0)

    def step(self, counters: Counters, *, measure: bool) -> Update | None:
        gossip, flat, diagnostics = self._gossip, self.setup.flat, self._diagnostics
        rollout = self._collector.collect()
        update = self._learner.update(rollout, self.done(counters), measure_update=measure or diagnostics is not None)
        counters.updates += 1
        counters.steps += rollout.num_steps
        mixing = None
        if counters.updates % self.plan.spec.gossip.every_updates == 0:
            gossip.offer(flat.vector, version=counters.updates, steps=counters.steps)
            mixing = gossip.mix(flat.vector, self.setup.stopping)
        counters.progress = {**gossip.progress(), self.setup.me.rank: counters.steps}
        if diagnostics is not None:
            diagnostics.update(counters.updates, update.step.update_norm, mixing)
            if diagnostics.is_due(counters.updates):
                diagnostics.snapshot(counters.updates, flat.trainable, flat.gradient)
        return update

    def _gather(self, *, is_first: bool) -> None:
        """Waits at the start of a run until all learners have begun and the planned neighbours are connected.

        Otherwise whoever starts first would make its first updates alone, and stay ahead by that many for good. That a
        learner has begun spreads with the progress; who has heard of all makes an update, and tells of all with it.
        A learner that comes back waits for the ring as it is then, which has closed without those who are away.
        """
        me = self.plan.learner(self.setup.me.rank)
        until = time.monotonic() + (GATHER_SECONDS if is_first else self.plan.spec.gossip.peer_timeout_seconds)

        def all_there(stats: GossipStats) -> bool:
            if not is_first:
                return bool(stats.in_peers and stats.out_peers)
            has_all_begun = self._gossip.progress().keys() >= set(self.plan.ranks)
            return has_all_begun and stats.in_peers == me.in_peers and stats.out_peers == me.out_peers

        while time.monotonic() < until and not self.setup.stopping():
            if self._gossip.wait(all_there, WAIT_SECONDS):
                return

    def set_plan(self, plan: RunPlan) -> None:
        super().set_plan(plan)
        self._gossip.set_plan(plan)

    def answer_joiners(self, make_state: Callable[[], bytes]) -> None:
        self._gossip.answer_state_requests(make_state)

    def stats(self) -> GossipStats:
        return self._gossip.stats()

    def events(self) -> list[dict[str, Any]]:
        return self._gossip.events()

    def close(self) -> None:
        self._gossip.close()
        if self._diagnostics is not None:
            self._diagnostics.close()


def _local_learner(setup: Setup) -> LocalLearner:
    spec = setup.plan.spec
    if spec.algorithm == GALA_PPO:
        return PPO(setup.policy, setup.flat, spec.hyperparameters, compute_type=setup.compute_type, seed=setup.me.seed)
    return A2C(setup.policy, setup.flat, spec.hyperparameters)
