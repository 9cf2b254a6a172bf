"""A2C over several processes: every update is made of everybody's gradient, and everybody has the same parameters.

    act -> gradient of the own rollout -> sum over all ranks -> one step of gradient descent, the same everywhere

It is the update of one worker that has all the simulators: gradients of sums are added up and divided by the number of
all valid decisions. With one rank there is nobody to ask, and no process group.

Parameters stay identical because all ranks start from one state and add the same numbers in the same order; a checksum
that travels with the gradient proves it again and again. Every rank is needed: when one goes, the others wait where
ranks meet (`meeting`) and go on with it in a new generation, from the state of the rank that is furthest.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from gala import names
from gala.errors import GossipError
from gala.plan import RunPlan
from gala_worker.algorithms.a2c import A2C, Update
from gala_worker.algorithms.algorithm import WAIT_SECONDS, Algorithm, Setup
from gala_worker.algorithms.assembly import Assembly
from gala_worker.algorithms.losses import A2CLoss
from gala_worker.algorithms.meeting import Hello
from gala_worker.algorithms.process_group import Exchange, Group, device_identity
from gala_worker.algorithms.shared_statistics import SharedStatistics
from gala_worker.diagnostics import open_diagnostics
from gala_worker.gossip.stats import GossipStats
from gala_worker.rollout import Collector
from gala_worker.state import Counters

log = logging.getLogger(__name__)

CHECK_EVERY_UPDATES: Final = 50
"""How often the ranks compare their parameters: it costs a pass over them."""
_CHECKSUM_RANGE: Final = 1 << 24
"""Whole numbers below it are exact in float32, and a sum with zeros leaves them as they are."""


@dataclass(slots=True)
class _Round:
    """One update under way."""

    loss: A2CLoss
    buffer: Tensor
    exchange: Exchange
    confirming: bool = False


class SynchronousA2C(Algorithm):
    """One of n equal ranks."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._learner = A2C(setup.policy, setup.flat, setup.plan.spec.hyperparameters)
        self._statistics = SharedStatistics(setup.policy)
        self._assembly: Assembly | None = None
        self._group: Group | None = None
        self._agreement: _Agreement | None = None
        self._round: _Round | None = None
        self._waiting = False
        self._traced: int | None = None
        self._exchanges = 0
        self._paces: deque[int] = deque(maxlen=3)
        """Milliseconds that the last rollouts and their gradients took."""
        self._seconds = self._waited = 0.0
        self._events: deque[dict[str, Any]] = deque(maxlen=1000)
        self._diagnostics = open_diagnostics(
            setup.plan.spec,
            setup.learner_dir,
            rank=setup.me.rank,
            incarnation=setup.incarnation,
            num_parameters=len(setup.flat.trainable),
        )

    # ---------------------------------------------------------------- what a worker asks

    @property
    def optimizer_state(self) -> Mapping[str, Tensor]:
        return self._learner.optimizer.state

    @property
    def is_waiting(self) -> bool:
        return self._waiting

    def open(self, *, resumes: bool = False) -> None:
        if len(self.plan.ranks) > 1:
            self._assembly = self._open_assembly()

    def begin(self, collector: Collector | None, counters: Counters) -> None:
        assert collector is not None
        self._collector = collector
        if len(self.plan.ranks) == 1:
            self._trace(counters)

    def step(self, counters: Counters, *, measure: bool) -> Update | None:
        if len(self.plan.ranks) == 1:
            return self._step_alone(counters, measure)
        try:
            update = self._step_together(counters, measure)
        except GossipError as error:
            self._part(str(error))
            return None
        self._waiting = update is None
        return update

    def set_plan(self, plan: RunPlan) -> None:
        super().set_plan(plan)
        self._part(f"plan epoch {plan.epoch}")
        if self._assembly is not None:
            self._assembly.set_plan(plan)
        elif len(plan.ranks) > 1:
            self._assembly = self._open_assembly()

    def stats(self) -> GossipStats:
        others = () if self._group is None else tuple(r for r in self._group.ranks if r != self.setup.me.rank)
        return GossipStats(
            mixes=self._exchanges,
            seconds=self._seconds,
            waited_seconds=self._waited,
            in_peers=others,
            out_peers=others,
        )

    def events(self) -> list[dict[str, Any]]:
        return [self._events.popleft() for _ in range(len(self._events))]

    def close(self) -> None:
        self._part("farewell")
        if self._assembly is not None:
            self._assembly.close()
            self._assembly = None
        if self._diagnostics is not None:
            self._diagnostics.close()
            self._diagnostics = None

    # ---------------------------------------------------------------- alone

    def _step_alone(self, counters: Counters, measure: bool) -> Update:
        self._waiting = False
        rollout = self._collector.collect()
        loss = self._learner.gradient(rollout)
        self._record_gradient(counters)
        update = self._learner.apply(loss, self.done(counters), measure_update=measure or self._diagnostics is not None)
        self._count(counters, update, {self.setup.me.rank: rollout.num_steps})
        return update

    # ---------------------------------------------------------------- together

    def _step_together(self, counters: Counters, measure: bool) -> Update | None:
        """Raises: GossipError when somebody has gone."""
        group = self._group or self._meet(counters)
        if group is None or not self._agree(group, counters):
            return None
        if self._round is None:
            self._round = self._begin_round(group, counters)
        round_ = self._round
        if not self._wait(round_.exchange):
            return None
        steps = self._shares(group, round_.buffer)
        if not round_.confirming:
            self._check(group, round_.buffer, counters)
            if counters.global_steps + sum(steps.values()) >= self.plan.spec.total_steps:
                # Who makes the last update leaves: only when everybody has what it takes to make it too.
                round_.confirming = True
                round_.exchange = group.all_reduce(round_.buffer.new_zeros(1))
                if not self._wait(round_.exchange):
                    return None
        self._round = None
        self._exchanges += 1
        return self._finish_round(group, round_, steps, counters, measure)

    def _meet(self, counters: Counters) -> Group | None:
        assert self._assembly is not None
        setup = self.setup
        group = self._assembly.result(
            Hello(
                run_uid=self.plan.run_uid,
                schema=setup.flat.schema.hash,
                rank=setup.me.rank,
                epoch=self.plan.epoch,
                incarnation=setup.incarnation,
                updates=counters.updates,
                global_steps=counters.global_steps,
                device=device_identity(setup.device),
                pace_ms=min(self._paces, default=0),  # one that was frozen for a while is not slow
            ),
            WAIT_SECONDS,
        )
        if group is not None:
            self._group = group
            self._agreement = _Agreement(group, setup, self.optimizer_state, counters)
        return group

    def _agree(self, group: Group, counters: Counters) -> bool:
        """Whether all have the same state, which the first calls after a meeting see to."""
        agreement = self._agreement
        if agreement is None:
            return True
        if not all(self._wait(exchange) for exchange in agreement.exchanges):
            return False
        agreement.adopt(counters)
        self._agreement = None
        self._trace(counters)
        self._events.append(
            {
                "event": "assembled",
                "generation": group.welcome.generation,
                "members": list(group.ranks),
                "stateFrom": agreement.source,
                "globalSteps": counters.global_steps,
            }
        )
        # What this step was asked to measure depends on counters that have changed just now. All ranks must measure the
        # same updates: the arithmetic of a measured one rounds differently.
        return False

    def _begin_round(self, group: Group, counters: Counters) -> _Round:
        flat, started = self.setup.flat, time.monotonic()
        self._statistics.begin()
        # Before the rollout, in which every rank's observation statistics go their own way.
        check = checksum(flat.vector) if self._is_checked(counters) else 0
        rollout = self._collector.collect()
        loss = self._learner.gradient(rollout)
        self._record_gradient(counters)
        self._paces.append(int(1000 * (time.monotonic() - started)))
        began = time.perf_counter()
        size, ranks = len(flat.trainable), len(group.ranks)
        buffer = torch.zeros(size + 2 * ranks + self._statistics.num_elements, device=self._exchange_device(group))
        # Means are weighted by how many decisions they are of, which differs: autoreset's dummy steps do not count.
        weight = rollout.num_steps if self.plan.spec.hyperparameters.loss_reduction == "mean" else 1
        torch.mul(flat.gradient, weight, out=flat.gradient)
        buffer[:size] = flat.gradient
        buffer[size + group.index] = rollout.num_steps
        buffer[size + ranks + group.index] = check
        tail = torch.zeros(self._statistics.num_elements, device=flat.vector.device)
        self._statistics.write(tail)
        buffer[size + 2 * ranks :] = tail
        round_ = _Round(loss, buffer, group.all_reduce(buffer))
        self._seconds += time.perf_counter() - began
        return round_

    def _finish_round(
        self, group: Group, round_: _Round, steps: dict[int, int], counters: Counters, measure: bool
    ) -> Update:
        began = time.perf_counter()
        flat, size, ranks = self.setup.flat, len(self.setup.flat.trainable), len(group.ranks)
        flat.gradient.copy_(round_.buffer[:size])
        if self.plan.spec.hyperparameters.loss_reduction == "mean":
            flat.gradient.div_(max(1, sum(steps.values())))
        self._statistics.merge(round_.buffer[size + 2 * ranks :].to(flat.vector.device), ranks)
        self._seconds += time.perf_counter() - began
        measure = measure or self._diagnostics is not None
        update = self._learner.apply(round_.loss, self.done(counters), measure_update=measure)
        self._count(counters, update, steps)
        return update

    def _wait(self, exchange: Exchange) -> bool:
        began = time.perf_counter()
        try:
            return exchange.wait(WAIT_SECONDS)
        finally:
            waited = time.perf_counter() - began
            self._seconds += waited
            self._waited += waited

    def _shares(self, group: Group, buffer: Tensor) -> dict[int, int]:
        """Decisions of every rank in this round."""
        size = len(self.setup.flat.trainable)
        shares = buffer[size : size + len(group.ranks)].tolist()
        return {rank: int(share) for rank, share in zip(group.ranks, shares, strict=True)}

    def _is_checked(self, counters: Counters) -> bool:
        return counters.updates % CHECK_EVERY_UPDATES == 0

    def _check(self, group: Group, buffer: Tensor, counters: Counters) -> None:
        """Raises: GossipError when the ranks' parameters are not the same; the next meeting makes them so."""
        if not self._is_checked(counters):
            return
        begin = len(self.setup.flat.trainable) + len(group.ranks)
        sums = buffer[begin : begin + len(group.ranks)].tolist()
        if len(set(sums)) > 1:
            # Processors of different kinds may round differently: nothing is wrong, but nothing may build up either.
            raise GossipError(f"the ranks' parameters differ after {counters.updates} updates")

    def _count(self, counters: Counters, update: Update, steps: Mapping[int, int]) -> None:
        counters.updates += 1
        self._traced = counters.updates
        for rank, number in steps.items():
            counters.progress[rank] = counters.progress.get(rank, 0) + number
        counters.steps = counters.progress[self.setup.me.rank]
        if self._diagnostics is not None:
            self._diagnostics.update(counters.updates, update.step.update_norm, None)
            if self._diagnostics.is_due(counters.updates):
                self._diagnostics.snapshot(counters.updates, self.setup.flat.trainable, self._shard_gradient)

    def _trace(self, counters: Counters) -> None:
        """Begins the diagnostics' trace at the first state that all have; a state from elsewhere later on ends it."""
        if self._diagnostics is None:
            return
        if self._traced is None:
            self._traced = counters.updates
            self._diagnostics.start(counters.updates, self.setup.flat.trainable)
        elif self._traced != counters.updates:
            log.warning(
                "the diagnostics' trace ends at update %s: the others are at %s", self._traced, counters.updates
            )
            self._diagnostics.close()
            self._diagnostics = None

    def _record_gradient(self, counters: Counters) -> None:
        """Keeps the gradient of this rank's own shard, which the all-reduce is about to replace."""
        if self._diagnostics is not None and self._diagnostics.is_due(counters.updates + 1):
            self._shard_gradient = self.setup.flat.gradient.clone()

    def _part(self, reason: str) -> None:
        """Leaves the group, and whatever was under way with it."""
        self._round = self._agreement = None
        if self._group is not None:
            self._group.leave()
            self._group = None
            self._events.append({"event": "parted", "reason": reason})
            log.info("parted from the others: %s", reason)
        if self._assembly is not None:
            self._assembly.reset()
        self._waiting = True

    def _open_assembly(self) -> Assembly:
        setup = self.setup
        return Assembly(setup.loop, self.plan, setup.me.rank, setup.flat.schema.hash, setup.device)

    def _exchange_device(self, group: Group) -> torch.device:
        return self.setup.device if group.on_gpu else torch.device("cpu")


class _Agreement:
    """Everybody takes the state of the rank that is furthest: its parameters, its optimiser, its counters."""

    def __init__(self, group: Group, setup: Setup, optimizer_state: Mapping[str, Tensor], counters: Counters) -> None:
        furthest = max(group.welcome.members, key=lambda member: (member.global_steps, member.updates, -member.rank))
        self.source = furthest.rank
        self._rank = setup.me.rank
        self._targets = [setup.flat.vector, *optimizer_state.values()]
        device = setup.device if group.on_gpu else torch.device("cpu")
        numbers = torch.zeros(1 + names.MAX_LEARNERS, dtype=torch.int64)
        numbers[0] = counters.updates
        for rank, steps in counters.progress.items():
            numbers[1 + rank] = steps
        self._tensors = [tensor.detach().to(device, copy=True) for tensor in (*self._targets, numbers)]
        self.exchanges = [group.broadcast(tensor, furthest.rank) for tensor in self._tensors]

    def adopt(self, counters: Counters) -> None:
        """Puts it into place."""
        if self.source == self._rank:
            return
        for target, tensor in zip(self._targets, self._tensors[:-1], strict=True):
            target.copy_(tensor)
        numbers = self._tensors[-1].tolist()
        counters.updates = numbers[0]
        counters.progress = {rank: steps for rank, steps in enumerate(numbers[1:]) if steps}
        counters.steps = counters.progress.get(self._rank, 0)


def checksum(vector: Tensor) -> int:
    """Of the bits of a float32 vector [N]: a whole number below 2^24, exact in float32."""
    return int(vector.view(torch.int32).sum(dtype=torch.int64)) % _CHECKSUM_RANGE
