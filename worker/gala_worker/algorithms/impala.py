"""IMPALA: actors stream rollouts to a learner, which corrects for their age by V-trace (arXiv 1802.01561).

    actor:   take the newest parameters -> act one rollout -> push it -> ...                  section 3
    learner: gather rollouts -> one update by V-trace -> publish the parameters -> ...        section 4

Actors never wait for an update, only, when they are ahead, for the learner to take what they have sent. So rollouts are
made with parameters some updates old; how many is measured for every one. The learner, rank 0, has no simulators and is
the only one that keeps state: while it is away the actors wait, and when it is back, at its checkpoint, they follow.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from gala.errors import MessageError
from gala.plan import RunPlan
from gala_worker.algorithms.a2c import Update
from gala_worker.algorithms.algorithm import WAIT_SECONDS, Algorithm, Setup
from gala_worker.algorithms.hub import Contribution, HubClient, HubServer, Identity, Parameters
from gala_worker.algorithms.impala_rollouts import Arrays, Batch, RolloutLayout
from gala_worker.algorithms.impala_update import Impala
from gala_worker.gossip.stats import Complaints, GossipStats
from gala_worker.rollout import Collector
from gala_worker.state import Counters

log = logging.getLogger(__name__)

LAGS_KEPT: Final = 1000
"""Contributions that the mean and the maximum of the policy lag are over."""


def _identity(setup: Setup) -> Identity:
    schema = setup.flat.schema
    return Identity(setup.me.rank, setup.incarnation, schema.hash, schema.num_elements)


def _layout(setup: Setup) -> RolloutLayout:
    spec, memory = setup.plan.spec, setup.policy.memory
    return RolloutLayout(
        spec.hyperparameters.rollout_length,
        spec.environment.simulators,
        setup.observation_space,
        setup.policy.actions,
        state_size=None if memory is None else memory.hidden_size,
    )


class Learner(Algorithm):
    """Rank 0: holds the parameters, learns from what the actors send."""

    acts = False

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._layout = _layout(setup)
        self._learner = Impala(setup.policy, setup.flat, setup.plan.spec.hyperparameters, setup.compute_type)
        self._hub = HubServer(
            setup.plan,
            _identity(setup),
            loop=setup.loop,
            contribution_bytes=self._layout.num_bytes,
            is_acceptable=self._layout.is_acceptable,
            pinned=setup.device.type == "cuda",
        )
        self._complaints = Complaints(log)
        self._gathered: list[tuple[Contribution, Arrays]] = []
        """Whole contributions; together still too few for an update, or just enough."""
        self._lags: deque[int] = deque(maxlen=LAGS_KEPT)
        self._delays: deque[float] = deque(maxlen=LAGS_KEPT)
        self._updates = self._refused = 0
        self._waited_seconds = 0.0
        self._counters: Counters | None = None
        """The worker's, once it has begun."""

    @property
    def optimizer_state(self) -> Mapping[str, Tensor]:
        return self._learner.optimizer.state

    @property
    def is_waiting(self) -> bool:
        """Whether there is nobody to learn from."""
        return not self._hub.stats().connected

    def open(self) -> None:
        self._hub.start()

    def begin(self, collector: Collector | None, counters: Counters) -> None:
        self._counters = counters
        self._publish(counters)

    def step(self, counters: Counters, *, measure: bool) -> Update | None:
        if not self._gather(counters):
            return None
        batch = self._layout.join([arrays for _, arrays in self._gathered], self.setup.device)
        contributions = [contribution for contribution, _ in self._gathered]
        self._gathered = []
        update = self._learner.update(batch, self.done(counters), measure_update=measure)
        self._count(contributions, counters)
        self._publish(counters)
        return update

    def _gather(self, counters: Counters) -> bool:
        """Takes contributions until there are rollouts enough for an update; False when they have not come in time."""
        spec = self.plan.spec
        began = time.perf_counter()
        deadline = time.monotonic() + WAIT_SECONDS
        while len(self._gathered) * spec.environment.simulators < spec.hyperparameters.batch_rollouts:
            contribution = self._hub.take(max(0.0, deadline - time.monotonic()))
            if contribution is None:
                break
            self._admit(contribution, counters)
        else:
            self._waited_seconds += time.perf_counter() - began
            return True
        self._waited_seconds += time.perf_counter() - began
        return False

    def _admit(self, contribution: Contribution, counters: Counters) -> None:
        """The last checks, of what only this thread knows."""
        try:
            if contribution.version > counters.updates:
                raise MessageError(f"parameters {contribution.version} are not known here")
            arrays = self._layout.decode(contribution.payload, num_steps=contribution.steps)
        except MessageError as error:
            self._refused += 1
            text = f"a rollout of rank {contribution.rank} is not used: {error}"
            self._complaints.add("rollout", contribution.rank, text, time.monotonic())
            contribution.release()
            return
        self._gathered.append((contribution, arrays))

    def _count(self, contributions: list[Contribution], counters: Counters) -> None:
        """Notes the policy lag of each and whose decisions they were, and gives their memory back."""
        now = time.monotonic()
        progress = dict(counters.progress)
        for contribution in contributions:
            self._lags.append(counters.updates - contribution.version)
            self._delays.append(now - contribution.received_at)
            progress[contribution.rank] = progress.get(contribution.rank, 0) + contribution.steps
            contribution.release()
        counters.progress = progress
        counters.updates += 1
        self._updates += 1

    def _publish(self, counters: Counters, *, last: bool = False) -> None:
        """The last parameters wait for `close`: they are saved first, so that nobody leaves a run that may go back."""
        finished = counters.global_steps >= self.plan.spec.total_steps
        if finished == last:
            self._hub.publish(
                self.setup.flat.vector, version=counters.updates, progress=counters.progress, finished=finished
            )

    def set_plan(self, plan: RunPlan) -> None:
        super().set_plan(plan)
        self._hub.set_plan(plan)

    def stats(self) -> GossipStats:
        """The policy lag is over the last contributions that were learned from."""
        hub, lags = self._hub.stats(), self._lags
        return GossipStats(
            mixes=self._updates,
            skips=self._refused,
            seconds=self._waited_seconds,
            waited_seconds=self._waited_seconds,
            staleness_updates=round(sum(lags) / len(lags)) if lags else 0,
            staleness_max_updates=max(lags, default=0),
            staleness_seconds=sum(self._delays) / len(lags) if lags else 0.0,
            in_peers=hub.connected,
            out_peers=hub.connected,
            edges=hub.edges(),
            strangers=hub.strangers,
        )

    def events(self) -> list[dict[str, Any]]:
        return self._hub.events()

    def close(self) -> None:
        if self._counters is not None:
            self._publish(self._counters, last=True)
            self._counters = None
        self._hub.close()


class Actor(Algorithm):
    """Every other rank: acts with the learner's newest parameters, and learns nothing itself."""

    observes = False
    """The learner's observation statistics come with its parameters."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._layout = _layout(setup)
        self._hub = HubClient(
            setup.plan,
            _identity(setup),
            loop=setup.loop,
            contribution_bytes=self._layout.num_bytes,
            pinned=setup.device.type == "cuda",
        )
        self._version: int | None = None
        """Of the parameters in use; None before the first."""
        self._unsent: tuple[list[memoryview], int] | None = None
        """A rollout that there was no credit for, and its decisions."""

    @property
    def records(self) -> bool:
        return True

    @property
    def is_waiting(self) -> bool:
        """Whether the learner is away, or has not caught up."""
        return self._hub.is_waiting or not self._hub.connected

    def open(self) -> None:
        self._hub.start()

    def begin(self, collector: Collector | None, counters: Counters) -> None:
        assert collector is not None
        self._collector = collector

    def step(self, counters: Counters, *, measure: bool) -> Update | None:
        if self._unsent is None and self._take(counters):
            self._act(counters)
        if self._unsent is not None:
            self._push()
        counters.progress = self._hub.progress() or counters.progress
        return None

    def _take(self, counters: Counters) -> bool:
        """Adopts the newest parameters that are here. False: the learner is away, or has its steps.

        Without the learner there is no acting ahead: what would come of it is of no use to its successor.
        """
        wait = WAIT_SECONDS if self._version is None or not self._hub.connected else 0.0
        parameters = self._hub.latest(wait, give_up=self.setup.stopping)
        if parameters is not None:
            self._adopt(parameters, counters)
        return parameters is not None or (wait == 0.0 and not self._hub.finished)

    def _adopt(self, parameters: Parameters, counters: Counters) -> None:
        if self._version is None:
            counters.steps = parameters.progress.get(self.setup.me.rank, 0)
        self.setup.flat.vector.copy_(parameters.vector)
        self._version = parameters.version

    def _act(self, counters: Counters) -> None:
        with torch.no_grad():
            rollout = self._collector.collect()
        counters.updates += 1
        counters.steps += rollout.num_steps
        self._unsent = self._layout.encode(Batch.of(rollout)), rollout.num_steps

    def _push(self) -> None:
        """Hands the rollout over; without credit it is kept, and nothing else is done before it."""
        assert self._unsent is not None
        assert self._version is not None
        payload, num_steps = self._unsent
        if self._hub.push(
            payload,
            version=self._version,
            steps=num_steps,
            timeout=WAIT_SECONDS,
            give_up=self.setup.stopping,
        ):
            self._unsent = None

    def set_plan(self, plan: RunPlan) -> None:
        super().set_plan(plan)
        self._hub.set_plan(plan)

    def stats(self) -> GossipStats:
        hub = self._hub.stats()
        learner = (0,) if hub.connected else ()
        return GossipStats(
            seconds=hub.seconds,
            waited_seconds=hub.waited_seconds,
            in_peers=learner,
            out_peers=learner,
            edges=hub.edges(),
            strangers=hub.strangers,
        )

    def events(self) -> list[dict[str, Any]]:
        return self._hub.events()

    def close(self) -> None:
        self._hub.close()
