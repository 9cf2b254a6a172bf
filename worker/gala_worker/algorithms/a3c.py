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

from gala_worker.algorithms import a3c_payload
from gala_worker.algorithms.a2c import A2C, Update, scheduled_learning_rate
from gala_worker.algorithms.algorithm import WAIT_SECONDS, Setup
from gala_worker.algorithms.hub import Contribution
from gala_worker.algorithms.losses import A2CLoss
from gala_worker.algorithms.rmsprop import Step
from gala_worker.algorithms.star import Centre, Member
from gala_worker.rollout import Collector
from gala_worker.state import Counters

FIRST_SECONDS: Final = 5.0
"""How long an actor-learner waits for its first parameters before it says that it is waiting."""


class Server(Centre):
    """Rank 0: the parameters and the shared statistics of RMSProp."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(
            setup,
            contribution_bytes=a3c_payload.num_bytes(setup.flat),
            is_acceptable=a3c_payload.is_acceptable,
        )
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
        pushed = a3c_payload.decode(contribution.payload, len(flat.trainable))
        flat.gradient.copy_(pushed.gradient)
        update = self._learner.apply(pushed.loss, self.done(counters), measure_update=measure)
        if not update.step.gradient_norm < float("inf"):  # even where every number is finite
            self.refuse(contribution, f"a gradient of norm {update.step.gradient_norm}")
            return None
        tail = flat.vector[len(flat.trainable) :]
        tail.lerp_(pushed.statistics.to(tail.device), 1.0 / max(1, len(self.plan.ranks) - 1))
        self.learned([contribution], counters)
        return update


class ActorLearner(Member):
    """Every other rank: acts, and computes gradients for the server."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, contribution_bytes=a3c_payload.num_bytes(setup.flat))
        self._learner = A2C(setup.policy, setup.flat, setup.plan.spec.hyperparameters)
        self._unsent: tuple[A2CLoss, int] | None = None
        """A gradient that there was no credit for, and its decisions."""

    def begin(self, collector: Collector | None, counters: Counters) -> None:
        super().begin(collector, counters)
        # What this rank has done in earlier lives is known before it counts on: no jump that looks like speed.
        self._take(counters, FIRST_SECONDS)

    def step(self, counters: Counters, *, measure: bool) -> Update | None:
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
        self._push(loss, rollout.num_steps)
        return update

    def _push(self, loss: A2CLoss, num_steps: int) -> None:
        """Hands the gradient in `flat.gradient` over; without credit it is kept, and nothing else is done before it."""
        done = self.push(a3c_payload.encode(self.setup.flat, loss), num_steps)
        self._unsent = None if done else (loss, num_steps)
