"""A3C: actor-learners push gradients to a server that holds the parameters (Mnih et al. 2016, arXiv 1602.01783).

    actor-learner: take the newest parameters -> collect a rollout -> its gradient -> push it -> ...     Algorithm S3
    server:        the next gradient -> one step of RMSProp with shared statistics -> publish -> ...     section 4

Nothing serialises the actor-learners: gradients of all of them travel at the same time, and each goes on while its last
one travels. The price is staleness: the server applies a gradient to parameters that have moved on since it was
computed. It is measured for every one. The published program shares memory between threads and updates it without any
lock, so that updates may tear; here the server applies whole gradients one after another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from gala.plan import RunPlan
from gala_worker.algorithms import a3c_payload
from gala_worker.algorithms.a2c import A2C, Update, scheduled_learning_rate
from gala_worker.algorithms.algorithm import WAIT_SECONDS, Algorithm, Setup
from gala_worker.algorithms.hub import Contribution, HubClient, HubServer, Identity, Parameters
from gala_worker.algorithms.losses import A2CLoss
from gala_worker.algorithms.rmsprop import Step
from gala_worker.gossip.stats import Complaints, GossipStats
from gala_worker.rollout import Collector
from gala_worker.state import Counters

log = logging.getLogger(__name__)

FIRST_SECONDS: Final = 5.0
"""How long an actor-learner waits for its first parameters before it says that it is waiting."""


def _identity(setup: Setup) -> Identity:
    schema = setup.flat.schema
    return Identity(setup.me.rank, setup.incarnation, schema.hash, schema.num_elements)


class Server(Algorithm):
    """Rank 0: the parameters and the shared statistics of RMSProp."""

    acts = False

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._learner = A2C(setup.policy, setup.flat, setup.plan.spec.hyperparameters)
        self._hub = HubServer(
            setup.plan,
            _identity(setup),
            loop=setup.loop,
            contribution_bytes=a3c_payload.num_bytes(setup.flat),
            is_acceptable=a3c_payload.is_acceptable,
            pinned=setup.device.type == "cuda",
        )
        self._complaints = Complaints(log)
        self._staleness: list[int] = []
        """Of what was applied since the last `stats`."""
        self._delays: list[float] = []
        self._last_staleness, self._last_delay = 0, 0.0
        self._applied = self._refused = 0
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
        began = time.perf_counter()
        contribution = self._hub.take(WAIT_SECONDS)
        self._waited_seconds += time.perf_counter() - began
        if contribution is None:
            return None
        update = self._apply(contribution, counters, measure=measure)
        contribution.release()
        if update is not None:
            self._publish(counters)
        return update

    def _apply(self, contribution: Contribution, counters: Counters, *, measure: bool) -> Update | None:
        flat = self.setup.flat
        staleness = counters.updates - contribution.version
        if staleness < 0:
            self._refuse(contribution, f"made with parameters {contribution.version}, which are not known here")
            return None
        pushed = a3c_payload.decode(contribution.payload, len(flat.trainable))
        flat.gradient.copy_(pushed.gradient)
        update = self._learner.apply(pushed.loss, self.done(counters), measure_update=measure)
        if not update.step.gradient_norm < float("inf"):  # even where every number is finite
            self._refuse(contribution, f"of norm {update.step.gradient_norm}")
            return None
        tail = flat.vector[len(flat.trainable) :]
        tail.lerp_(pushed.statistics.to(tail.device), 1.0 / max(1, len(self.plan.ranks) - 1))
        counters.updates += 1
        rank = contribution.rank
        counters.progress = {**counters.progress, rank: counters.progress.get(rank, 0) + contribution.steps}
        self._applied += 1
        self._staleness.append(staleness)
        self._delays.append(time.monotonic() - contribution.received_at)
        return update

    def _refuse(self, contribution: Contribution, what: str) -> None:
        self._refused += 1
        text = f"a gradient of rank {contribution.rank} is not applied: {what}"
        self._complaints.add("gradient", contribution.rank, text, time.monotonic())

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
        """Staleness is the mean over the gradients applied since the last call."""
        hub = self._hub.stats()
        if self._staleness:
            self._last_staleness = round(sum(self._staleness) / len(self._staleness))
            self._last_delay = sum(self._delays) / len(self._delays)
            self._staleness.clear()
            self._delays.clear()
        return GossipStats(
            mixes=self._applied,
            skips=self._refused,
            seconds=self._waited_seconds,
            waited_seconds=self._waited_seconds,
            staleness_updates=self._last_staleness,
            staleness_seconds=self._last_delay,
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


class ActorLearner(Algorithm):
    """Every other rank: acts, and computes gradients for the server."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._learner = A2C(setup.policy, setup.flat, setup.plan.spec.hyperparameters)
        self._hub = HubClient(
            setup.plan,
            _identity(setup),
            loop=setup.loop,
            contribution_bytes=a3c_payload.num_bytes(setup.flat),
            pinned=setup.device.type == "cuda",
        )
        self._version: int | None = None
        """Of the parameters in use; None before the first."""
        self._unsent: tuple[A2CLoss, int] | None = None
        """A gradient that there was no credit for, and its decisions."""
        self._pushed = 0

    @property
    def is_waiting(self) -> bool:
        """Whether the server is away, or has not caught up."""
        return self._hub.is_waiting or not self._hub.connected

    def open(self) -> None:
        self._hub.start()

    def begin(self, collector: Collector | None, counters: Counters) -> None:
        assert collector is not None
        self._collector = collector
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
        parameters = self._hub.latest(seconds, give_up=self.setup.stopping)
        if parameters is not None:
            self._adopt(parameters, counters)
        if self._hub.finished:
            time.sleep(0 if self._reached(counters) else WAIT_SECONDS)
            return False
        return self._version is not None

    def _adopt(self, parameters: Parameters, counters: Counters) -> None:
        if self._version is None:
            counters.steps = parameters.progress.get(self.setup.me.rank, 0)
        self.setup.flat.vector.copy_(parameters.vector)
        self._version = parameters.version
        counters.progress = dict(parameters.progress)

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
        assert self._version is not None
        done = self._hub.push(
            a3c_payload.encode(self.setup.flat, loss),
            version=self._version,
            steps=num_steps,
            timeout=WAIT_SECONDS,
            give_up=self.setup.stopping,
        )
        self._unsent = None if done else (loss, num_steps)
        self._pushed += done

    def _reached(self, counters: Counters) -> bool:
        return counters.global_steps >= self.plan.spec.total_steps

    def set_plan(self, plan: RunPlan) -> None:
        super().set_plan(plan)
        self._hub.set_plan(plan)

    def stats(self) -> GossipStats:
        hub = self._hub.stats()
        server = (0,) if hub.connected else ()
        return GossipStats(
            seconds=hub.seconds,
            waited_seconds=hub.waited_seconds,
            in_peers=server,
            out_peers=server,
            edges=hub.edges(),
            strangers=hub.strangers,
        )

    def events(self) -> list[dict[str, Any]]:
        return self._hub.events()

    def close(self) -> None:
        self._hub.close()
