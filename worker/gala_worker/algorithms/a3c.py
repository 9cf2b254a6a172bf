"""A3C: actor-learners push gradients to a server that holds the parameters (Mnih et al. 2016, arXiv 1602.01783).

    actor-learner: take the newest parameters -> collect a rollout -> its gradient -> push it -> ...     Algorithm S3
    server:        the next gradient -> one step of RMSProp with shared statistics -> publish -> ...     section 4

Nothing serialises the actor-learners: gradients of all of them travel at the same time, and each goes on while its last
one travels. The price is staleness: the server applies a gradient to parameters that have moved on since it was
computed. It is measured for every one. The published program shares memory between threads and updates it without any
lock, so that updates may tear; here the server applies whole gradients one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from gala import names
from gala_worker.algorithms.a2c import A2C, Update, scheduled_learning_rate
from gala_worker.algorithms.a3c_payload import PayloadLayout
from gala_worker.algorithms.algorithm import WAIT_SECONDS, Setup
from gala_worker.algorithms.hub import Contribution
from gala_worker.algorithms.rmsprop import Step
from gala_worker.algorithms.star import Centre, Member
from gala_worker.model.normalisation import Moments
from gala_worker.rollout import Collector
from gala_worker.state import Counters

FIRST_SECONDS: Final = 5.0
"""How long an actor-learner waits for its first parameters before it says that it is waiting."""


class Server(Centre):
    """Rank 0: the parameters and the shared statistics of RMSProp."""

    def __init__(self, setup: Setup) -> None:
        self._layout = PayloadLayout(setup.policy)
        super().__init__(setup, contribution_bytes=self._layout.num_bytes, inspect=self._layout.inspect)
        self._learner = A2C(setup.policy, setup.flat, setup.plan.spec.hyperparameters)

    @property
    def optimizer_state(self) -> Mapping[str, Tensor]:
        return self._learner.optimizer.state

    def step(self, counters: Counters, *, measure: bool) -> Update | None:
        contribution = self.take(WAIT_SECONDS)
        if contribution is None:
            return None
        update = self._apply(contribution, counters, measure=measure)
        contribution.release()
        if update is not None:
            self.publish(counters)
        return update

    def _apply(self, contribution: Contribution, counters: Counters, *, measure: bool) -> Update | None:
        flat = self.setup.flat
        if contribution.version > counters.updates:
            self.refuse(contribution, f"made with parameters {contribution.version}, which are not known here")
            return None
        most = names.MAX_ROLLOUT_LENGTH * self.plan.spec.environment.simulators
        pushed = self._layout.decode(contribution.payload)
        claimed = max(contribution.steps, 0 if pushed.seen is None else int(pushed.seen.weight))
        if claimed > most:
            self.refuse(contribution, f"{claimed:,} decisions, where the longest rollout has {most:,}")
            return None
        flat.gradient.copy_(pushed.gradient)
        update = self._learner.apply(pushed.loss, self.done(counters), measure_update=measure)
        if update.is_skipped:  # even where every number is finite
            self.refuse(contribution, f"a gradient of norm {update.step.gradient_norm}")
            return None
        if pushed.seen is not None and pushed.seen.weight > 0:
            assert self.setup.policy.normalisation is not None
            self.setup.policy.normalisation.merge(Moments(*(part.to(self.setup.device) for part in pushed.seen)))
        self.learned([contribution], counters)
        return update


class ActorLearner(Member):
    """Every other rank: acts, and computes gradients for the server."""

    def __init__(self, setup: Setup) -> None:
        self._layout = PayloadLayout(setup.policy)
        super().__init__(setup, contribution_bytes=self._layout.num_bytes)
        self._learner = A2C(setup.policy, setup.flat, setup.plan.spec.hyperparameters)
        if setup.policy.normalisation is not None:
            setup.policy.normalisation.collect_fresh()
        self._unsent: tuple[list[memoryview], int] | None = None
        """A gradient that there was no credit for, with what goes with it, and its decisions."""

    def begin(self, collector: Collector | None, counters: Counters) -> None:
        super().begin(collector, counters)
        # What this rank has done in earlier lives is known before it counts on: no jump that looks like speed.
        self._take(counters, FIRST_SECONDS)

    def step(self, counters: Counters, *, measure: bool) -> Update | None:
        if self._hub.finished:
            self._unsent = None  # nobody applies it any more, and the last parameters are still to be taken
        if self._unsent is not None:
            self._push(*self._unsent)
        elif self._take(counters, WAIT_SECONDS if self._version is None else 0.0):
            return self._learn(counters)
        counters.progress = self._hub.progress() or counters.progress
        return None

    def _take(self, counters: Counters, seconds: float) -> bool:
        """Adopts the newest parameters, if they come within so many seconds. False: there are none to act with."""
        self.adopt(counters, seconds)
        return self._version is not None and not self.is_over

    def _learn(self, counters: Counters) -> Update:
        rollout = self._collector.collect()
        self._hub.request()  # newer parameters travel during the backward pass
        loss = self._learner.gradient(rollout)
        counters.updates += 1
        counters.steps += rollout.num_steps
        step = Step(float(torch.linalg.vector_norm(self.setup.flat.gradient)), None)
        update = Update(loss, step, scheduled_learning_rate(self.plan.spec.hyperparameters, self.done(counters)))
        normalisation = self.setup.policy.normalisation
        seen = None if normalisation is None else normalisation.pop_fresh()
        self._push(self._layout.encode(self.setup.flat.gradient, seen, loss), rollout.num_steps)
        return update

    def _push(self, payload: list[memoryview], num_steps: int) -> None:
        """Hands a gradient over; without credit it is kept, and nothing else is done before it."""
        self._unsent = None if self.push(payload, num_steps) else (payload, num_steps)
