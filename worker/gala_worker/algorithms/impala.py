"""IMPALA: actors stream rollouts to a learner, which corrects for their age by V-trace (arXiv 1802.01561).

    actor:   take the newest parameters -> act one rollout -> push it -> ...                  section 3
    learner: gather rollouts -> one update by V-trace -> publish the parameters -> ...        section 4

Actors never wait for an update, only, when they are ahead, for the learner to take what they have sent. So rollouts are
made with parameters some updates old; how many is measured for every one. The learner, rank 0, has no simulators and is
the only one that keeps state: while it is away the actors wait, and when it is back, at its checkpoint, they follow.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from gala.errors import MessageError
from gala_worker.algorithms.a2c import Update
from gala_worker.algorithms.algorithm import WAIT_SECONDS, Setup
from gala_worker.algorithms.hub import Contribution
from gala_worker.algorithms.impala_rollouts import Arrays, Batch, RolloutLayout
from gala_worker.algorithms.impala_update import Impala
from gala_worker.algorithms.star import Centre, Member
from gala_worker.state import Counters


def _layout(setup: Setup) -> RolloutLayout:
    spec, memory = setup.plan.spec, setup.policy.memory
    return RolloutLayout(
        spec.hyperparameters.rollout_length,
        spec.environment.simulators,
        setup.observation_space,
        setup.policy.actions,
        state_size=None if memory is None else memory.hidden_size,
    )


class Learner(Centre):
    """Rank 0: holds the parameters, learns from what the actors send."""

    def __init__(self, setup: Setup) -> None:
        self._layout = _layout(setup)
        super().__init__(setup, contribution_bytes=self._layout.num_bytes, inspect=self._layout.inspect)
        self._learner = Impala(setup.policy, setup.flat, setup.plan.spec.hyperparameters, setup.compute_type)
        self._gathered: list[tuple[Contribution, Arrays]] = []
        """Whole contributions; together still too few for an update, or just enough."""

    @property
    def optimizer_state(self) -> Mapping[str, Tensor]:
        return self._learner.optimizer.state

    def step(self, counters: Counters, *, measure: bool) -> Update | None:
        if not self._gather(counters):
            return None
        batch = self._layout.join([arrays for _, arrays in self._gathered], self.setup.device)
        contributions = [contribution for contribution, _ in self._gathered]
        self._gathered = []
        update = self._learner.update(batch, self.done(counters), measure_update=measure)
        for contribution in contributions:
            contribution.release()
        if update.is_skipped:
            for contribution in contributions:
                self.refuse(contribution, f"the gradient of its batch has the norm {update.step.gradient_norm}")
            return None
        self.learned(contributions, counters)
        self.publish(counters)
        return update

    def _gather(self, counters: Counters) -> bool:
        """Takes contributions until there are rollouts enough for an update; False when they have not come in time."""
        spec = self.plan.spec
        deadline = time.monotonic() + WAIT_SECONDS
        while len(self._gathered) * spec.environment.simulators < spec.hyperparameters.batch_rollouts:
            contribution = self.take(max(0.0, deadline - time.monotonic()))
            if contribution is None:
                return False
            self._admit(contribution, counters)
        return True

    def _admit(self, contribution: Contribution, counters: Counters) -> None:
        """The last checks, of what only this thread knows."""
        try:
            if contribution.version > counters.updates:
                raise MessageError(f"parameters {contribution.version} are not known here")
            arrays = self._layout.decode(contribution.payload, num_steps=contribution.steps)
        except MessageError as error:
            self.refuse(contribution, str(error))
            contribution.release()
            return
        self._gathered.append((contribution, arrays))


class Actor(Member):
    """Every other rank: acts with the learner's newest parameters, and learns nothing itself."""

    observes = False
    """The learner's observation statistics come with its parameters."""

    def __init__(self, setup: Setup) -> None:
        self._layout = _layout(setup)
        super().__init__(setup, contribution_bytes=self._layout.num_bytes)
        self._unsent: tuple[list[memoryview], int] | None = None
        """A rollout that there was no credit for, and its decisions."""

    @property
    def records(self) -> bool:
        return True

    def step(self, counters: Counters, *, measure: bool) -> Update | None:
        if self._hub.finished:
            self._unsent = None  # nobody learns from it any more, and the last parameters are still to be taken
        if self._unsent is None and self._take(counters):
            self._act(counters)
        if self._unsent is not None and self.push(*self._unsent):
            self._unsent = None
        counters.progress = self._hub.progress() or counters.progress
        return None

    def _take(self, counters: Counters) -> bool:
        """Adopts the newest parameters that are here. False: the learner is away, or has its steps.

        Without the learner there is no acting ahead: what would come of it is of no use to its successor.
        """
        wait = WAIT_SECONDS if self._version is None or not self._hub.connected else 0.0
        return (self.adopt(counters, wait) or wait == 0.0) and not self.is_over

    def _act(self, counters: Counters) -> None:
        with torch.no_grad():
            rollout = self._collector.collect()
        self._hub.request()  # newer parameters travel while the rollout is packed and handed over
        counters.updates += 1
        counters.steps += rollout.num_steps
        self._unsent = self._layout.encode(Batch.of(rollout)), rollout.num_steps
