"""Proximal policy optimisation: several epochs over one recorded rollout (Schulman et al. 2017, arXiv 1707.06347).

Place in the flow: between `rollout` and the gossip, where `a2c` is too; gossip does not care how parameters changed.
Unlike A2C it looks at its rollout again after the parameters have changed, so it needs a recorded one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gala.spec import Hyperparameters
from gala_worker.algorithms.a2c import Update, scheduled_learning_rate
from gala_worker.algorithms.adam import Adam
from gala_worker.algorithms.losses import A2CLoss
from gala_worker.algorithms.returns import Targets, targets
from gala_worker.algorithms.rmsprop import Step
from gala_worker.flat import FlatState
from gala_worker.model import ActorCritic
from gala_worker.model.batch import forward_batch
from gala_worker.rollout import Rollout

_NORMALISATION_EPSILON = 1e-8


class _Minibatch(NamedTuple):
    """Part of a rollout, [T, b] or [1, b]: whole sequences, or transitions in any order."""

    observations: Tensor
    actions: Tensor
    behaviour: Tensor
    """Parameters of the action distributions that acted."""
    returns: Tensor
    advantages: Tensor
    valid: Tensor
    starts: Tensor | None
    state: Tensor | None


def ppo_loss(
    log_prob: Tensor,
    behaviour_log_prob: Tensor,
    entropy: Tensor,
    values: Tensor,
    returns: Tensor,
    advantages: Tensor,
    valid: Tensor,
    *,
    clip_range: float,
    value_coefficient: float,
    entropy_coefficient: float,
    reduction: Literal["mean", "sum"] = "mean",
) -> A2CLoss:
    """total = policy + value_coefficient * value - entropy_coefficient * entropy, means over the valid transitions.

    policy = -mean(min(ratio * A, clip(ratio, 1 - clip_range, 1 + clip_range) * A)), ratio = exp(log_prob - behaviour's)
    (equation 7); value and entropy as in `a2c_loss`, without clipping of the values. Advantages are used as given.
    With reduction "sum", `total` is that many times larger; the parts stay means.

    Only log_prob, entropy and values are differentiated. Transitions that are not valid count nowhere, whatever they
    contain; with none valid the loss and its gradient are zero.

    Shapes: all alike; valid is bool.
    Raises: ValueError on unequal shapes.
    """
    tensors = (log_prob, behaviour_log_prob, entropy, values, returns, advantages)
    if any(tensor.shape != valid.shape for tensor in tensors) or valid.dtype != torch.bool:
        raise ValueError(
            f"all must have one shape and valid be bool, got {[list(tensor.shape) for tensor in tensors]} and "
            f"{valid.dtype} {list(valid.shape)}"
        )
    # Invalid entries are taken out before any arithmetic: what they hold, even NaN, then reaches no sum or gradient.
    zero = values.new_zeros(())
    log_prob, behaviour_log_prob, entropy, values, returns, advantages = (
        torch.where(valid, tensor, zero)
        for tensor in (
            *(log_prob, behaviour_log_prob.detach(), entropy, values),
            *(returns.detach(), advantages.detach()),
        )
    )
    count = valid.sum().clamp(min=1)
    ratio = torch.exp(log_prob - behaviour_log_prob)
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    policy = -torch.minimum(ratio * advantages, clipped * advantages).sum() / count
    value = (returns - values).square().sum() / count
    spread = entropy.sum() / count
    total = policy + value_coefficient * value - entropy_coefficient * spread
    if reduction == "sum":
        total = total * count
    return A2CLoss(total, policy.detach(), value.detach(), spread.detach())


def normalise(advantages: Tensor, valid: Tensor) -> Tensor:
    """Advantages less their mean, over their standard deviation, both over the valid entries; any one shape.

    One alone has no deviation: fewer than two valid entries are returned as they are.
    """
    chosen = advantages[valid]
    if chosen.numel() < 2:
        return advantages
    deviation, mean = torch.std_mean(chosen)
    return (advantages - mean) / (deviation + _NORMALISATION_EPSILON)


class PPO:
    """Owns the optimiser of one learner."""

    def __init__(
        self,
        policy: ActorCritic,
        flat: FlatState,
        hyperparameters: Hyperparameters,
        *,
        compute_type: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        """`compute_type` is what the trunks compute in; `seed` is of the order of the minibatches."""
        self._policy = policy
        self._flat = flat
        self._hyper = hyperparameters
        self._compute_type = compute_type
        self._shuffle = torch.Generator().manual_seed(seed)
        self.optimizer = Adam(flat.trainable, epsilon=hyperparameters.adam_epsilon)

    def update(self, rollout: Rollout, progress: float, *, measure_update: bool = False) -> Update:
        """`epochs` times over the rollout, one step of gradient descent per minibatch; changes `flat.trainable`.

        `progress` in [0, 1] of the run's total steps drives the learning-rate schedule. In what it returns, the losses
        and the gradient norm are means over all steps; the update's norm is that of the whole change.
        Raises: ValueError for a rollout that was not recorded.
        """
        hyper = self._hyper
        wanted = targets(
            rollout.rewards,
            rollout.values,
            rollout.terminated,
            rollout.truncated,
            discount=hyper.discount,
            gae_lambda=hyper.gae_lambda,
        )
        before = self._flat.trainable.clone() if measure_update else None
        learning_rate = scheduled_learning_rate(hyper, progress)
        losses, norms = [], []
        for batch in self._minibatches(rollout, wanted):
            loss = self._loss(batch)
            self._flat.differentiate(loss.total)
            step = self.optimizer.step(
                self._flat.gradient, learning_rate=learning_rate, max_gradient_norm=hyper.max_gradient_norm
            )
            losses.append(torch.stack([part.detach() for part in loss]))
            norms.append(step.gradient_norm)
        change = None if before is None else float(torch.linalg.vector_norm(self._flat.trainable - before))
        mean = A2CLoss(*torch.stack(losses).mean(0).unbind())
        return Update(mean, Step(sum(norms) / len(norms), change), learning_rate)

    def _loss(self, batch: _Minibatch) -> A2CLoss:
        hyper, family = self._hyper, self._policy.actions
        parameters, values = forward_batch(
            self._policy, batch.observations, batch.starts, batch.state, compute_type=self._compute_type
        )
        return ppo_loss(
            family.log_prob(parameters, batch.actions),
            family.log_prob(batch.behaviour, batch.actions),
            family.entropy(parameters),
            values,
            batch.returns,
            normalise(batch.advantages, batch.valid) if hyper.normalize_advantages else batch.advantages,
            batch.valid,
            clip_range=hyper.clip_range,
            value_coefficient=hyper.value_coefficient,
            entropy_coefficient=hyper.entropy_coefficient,
            reduction=hyper.loss_reduction,
        )

    def _minibatches(self, rollout: Rollout, wanted: Targets) -> Iterator[_Minibatch]:
        """Of every epoch: each transition once, in random order.

        Where the policy remembers, a minibatch is some simulators' whole sequences [T, b]; else any transitions [1, b].
        """
        recording = rollout.recording
        if recording is None:
            raise ValueError("PPO learns from recorded rollouts: Collector(record=True)")
        steps, simulators = rollout.rewards.shape
        sequences = [recording.observations[:-1], rollout.actions, recording.parameters, *wanted, rollout.valid]
        recurrent = self._policy.memory is not None
        if not recurrent:
            sequences = [tensor.flatten(0, 1).unsqueeze(0) for tensor in sequences]
        count = simulators if recurrent else steps * simulators
        for _ in range(self._hyper.epochs):
            order = torch.randperm(count, generator=self._shuffle).to(rollout.rewards.device)
            for chosen in order.tensor_split(min(self._hyper.minibatches, count)):
                starts = recording.starts[:-1, chosen] if recurrent else None
                state = None if recording.state is None else recording.state[chosen]
                yield _Minibatch._make([*(tensor[:, chosen] for tensor in sequences), starts, state])
