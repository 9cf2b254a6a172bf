"""One update of IMPALA's learner: V-trace on a batch of rollouts that older policies acted.

Place in the flow: `impala` assembles the batch and publishes what comes out. The mathematics is in `vtrace`, `losses`
and `rmsprop`; here it meets the policy and the flat vector.
"""

from __future__ import annotations

import torch

from gala.spec import Hyperparameters
from gala_worker.algorithms.a2c import Update, scheduled_learning_rate
from gala_worker.algorithms.impala_rollouts import Batch
from gala_worker.algorithms.losses import a2c_loss
from gala_worker.algorithms.rmsprop import RMSprop
from gala_worker.algorithms.vtrace import vtrace
from gala_worker.flat import FlatState
from gala_worker.model import ActorCritic
from gala_worker.model.batch import forward_batch


class Impala:
    """Owns the optimiser of the learner."""

    def __init__(
        self,
        policy: ActorCritic,
        flat: FlatState,
        hyperparameters: Hyperparameters,
        compute_type: torch.dtype = torch.float32,
    ) -> None:
        self._policy = policy
        self._flat = flat
        self._hyper = hyperparameters
        self._compute_type = compute_type
        self.optimizer = RMSprop(
            flat.trainable, decay=hyperparameters.rms_prop_decay, epsilon=hyperparameters.rms_prop_epsilon
        )

    def update(self, batch: Batch, progress: float, *, measure_update: bool = False) -> Update:
        """One step of gradient descent on `batch`; changes `flat.trainable` in place, then the observation statistics.

        Where the gradient's norm is not finite, nothing is changed.
        `progress` in [0, 1] of the run's total steps drives the learning-rate schedule.
        """
        hyper, policy = self._hyper, self._policy
        steps = len(batch.rewards)
        replay = forward_batch(policy, batch.observations, batch.starts, batch.state, compute_type=self._compute_type)
        parameters = replay.parameters[:steps]
        log_prob = policy.actions.log_prob(parameters, batch.actions)
        traced = vtrace(
            log_prob,
            policy.actions.log_prob(batch.parameters, batch.actions),
            batch.rewards,
            replay.values,
            batch.terminated,
            batch.truncated,
            batch.valid,
            discount=hyper.discount,
            rho_clip=hyper.vtrace_rho_clip,
            c_clip=hyper.vtrace_c_clip,
            trace_decay=1.0 if hyper.gae_lambda is None else hyper.gae_lambda,
        )
        loss = a2c_loss(
            log_prob,
            policy.actions.entropy(parameters),
            replay.values[:steps],
            traced.targets,
            traced.advantages,
            batch.valid,
            value_coefficient=hyper.value_coefficient,
            entropy_coefficient=hyper.entropy_coefficient,
            reduction=hyper.loss_reduction,
        )
        self._flat.differentiate(loss.total)
        learning_rate = scheduled_learning_rate(hyper, progress)
        step = self.optimizer.step(
            self._flat.gradient,
            learning_rate=learning_rate,
            max_gradient_norm=hyper.max_gradient_norm,
            measure_update=measure_update,
        )
        update = Update(loss, step, learning_rate)
        # After the update: with the statistics that the actors had, a batch of the newest policy is on-policy.
        if not update.is_skipped:
            policy.observe(batch.observations[:steps].flatten(0, 1), batch.valid.flatten())
        return update
