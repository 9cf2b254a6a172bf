"""Advantage actor-critic: one update of the parameters from one rollout (Mnih et al. 2016, in its synchronous form).

Place in the flow: between `rollout` and the gossip. The mathematics is in `returns`, `losses` and `rmsprop`; here
it meets the flat vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gala.spec import Hyperparameters
from gala_worker.algorithms.losses import A2CLoss, a2c_loss
from gala_worker.algorithms.returns import targets
from gala_worker.algorithms.rmsprop import RMSprop, Step
from gala_worker.flat import FlatState
from gala_worker.model import ActorCritic
from gala_worker.rollout import Rollout


@dataclass(frozen=True, slots=True)
class Update:
    """What one update did."""

    loss: A2CLoss
    step: Step
    learning_rate: float

    @property
    def is_skipped(self) -> bool:
        """Whether it changed nothing, since its gradient was not finite; of several steps, whether one of them did."""
        return not self.step.gradient_norm < math.inf


class A2C:
    """Owns the optimiser of one learner."""

    def __init__(self, policy: ActorCritic, flat: FlatState, hyperparameters: Hyperparameters) -> None:
        self._policy = policy
        self._flat = flat
        self._hyper = hyperparameters
        self.optimizer = RMSprop(
            flat.trainable, decay=hyperparameters.rms_prop_decay, epsilon=hyperparameters.rms_prop_epsilon
        )

    def update(self, rollout: Rollout, progress: float, *, measure_update: bool = False) -> Update:
        """One step of gradient descent on `rollout`; changes `flat.trainable` in place.

        `progress` in [0, 1] of the run's total steps drives the learning-rate schedule.
        """
        loss = self.gradient(rollout)
        return self.apply(loss, progress, measure_update=measure_update)

    def gradient(self, rollout: Rollout) -> A2CLoss:
        """The loss of `rollout`; its gradient is in `flat.gradient` [P] afterwards, the parameters are unchanged."""
        hyper = self._hyper
        returns, advantages = targets(
            rollout.rewards,
            rollout.values,
            rollout.terminated,
            rollout.truncated,
            discount=hyper.discount,
            gae_lambda=hyper.gae_lambda,
        )
        parameters, values = rollout.tape.replay()
        loss = a2c_loss(
            self._policy.actions.log_prob(parameters, rollout.actions),
            self._policy.actions.entropy(parameters),
            values,
            returns,
            advantages,
            rollout.valid,
            value_coefficient=hyper.value_coefficient,
            entropy_coefficient=hyper.entropy_coefficient,
            reduction=hyper.loss_reduction,
        )
        self._flat.differentiate(loss.total)
        return loss

    def apply(self, loss: A2CLoss, progress: float, *, measure_update: bool = False) -> Update:
        """One step with what is in `flat.gradient` [P]; `loss` is only told on."""
        learning_rate = scheduled_learning_rate(self._hyper, progress)
        step = self.optimizer.step(
            self._flat.gradient,
            learning_rate=learning_rate,
            max_gradient_norm=self._hyper.max_gradient_norm,
            measure_update=measure_update,
        )
        return Update(loss, step, learning_rate)


def scheduled_learning_rate(hyperparameters: Hyperparameters, progress: float) -> float:
    """The learning rate at `progress` in [0, 1] of the run's total steps."""
    if hyperparameters.learning_rate_schedule == "linear":
        return hyperparameters.learning_rate * max(0.0, 1.0 - progress)
    return hyperparameters.learning_rate
