"""What A3C and IMPALA have in common: rank 0 holds the parameters, and the others send it what they have made of them.

Place in the flow: `a3c` and `impala` say what a contribution is and what is learned from it; here is how it travels
over the hub, how old it is when it is used, and how the run ends for everybody.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from gala.complaints import Complaints
from gala.plan import RunPlan
from gala_worker.algorithms.algorithm import WAIT_SECONDS, Algorithm, Setup
from gala_worker.algorithms.hub import Contribution, HubClient, HubServer, Identity, Octets
from gala_worker.gossip.messages import Refusal
from gala_worker.gossip.stats import GossipStats
from gala_worker.rollout import Collector
from gala_worker.state import Counters

log = logging.getLogger(__name__)

AGES_KEPT: Final = 1000
"""Contributions that the mean and the maximum of the staleness are over: the last ones that were used."""


def identity(setup: Setup) -> Identity:
    """Who a rank is for the hub."""
    schema = setup.flat.schema
    return Identity(setup.me.rank, setup.incarnation, schema.hash, schema.num_elements)


class Centre(Algorithm):
    """Rank 0: the parameters, and nobody to act with them."""

    acts = False

    def __init__(
        self, setup: Setup, *, contribution_bytes: int, inspect: Callable[[memoryview], Refusal | None]
    ) -> None:
        super().__init__(setup)
        self._hub = HubServer(
            setup.plan,
            identity(setup),
            loop=setup.loop,
            contribution_bytes=contribution_bytes,
            inspect=inspect,
            pinned=setup.device.type == "cuda",
        )
        self._complaints = Complaints(log)
        self._ages: deque[int] = deque(maxlen=AGES_KEPT)
        """In updates, from the parameters that a contribution was made with to its use."""
        self._delays: deque[float] = deque(maxlen=AGES_KEPT)
        """In seconds, from its arrival to its use."""
        self._updates = self._refused = 0
        self._waited_seconds = 0.0
        self._counters: Counters | None = None
        """The worker's, once it has begun."""
        self._is_saved = False

    @property
    def is_waiting(self) -> bool:
        """Whether there is nobody to learn from."""
        return not self._hub.stats().connected

    def open(self, *, resumes: bool = False) -> None:
        self._hub.start()

    def begin(self, collector: Collector | None, counters: Counters) -> None:
        self._counters = counters
        self.publish(counters)

    def saved(self) -> None:
        self._is_saved = True

    def take(self, seconds: float) -> Contribution | None:
        """The next contribution, if one comes in time."""
        began = time.perf_counter()
        contribution = self._hub.take(seconds)
        self._waited_seconds += time.perf_counter() - began
        return contribution

    def refuse(self, contribution: Contribution, what: str) -> None:
        """Counts a contribution that is not used, and says why once in a while."""
        self._refused += 1
        text = f"a contribution of rank {contribution.rank} is not used: {what}"
        self._complaints.add("contribution", contribution.rank, text, time.monotonic())

    def learned(self, contributions: Sequence[Contribution], counters: Counters) -> None:
        """Counts one update made of these: whose decisions they were, and how old they had become."""
        now = time.monotonic()
        progress = dict(counters.progress)
        for contribution in contributions:
            self._ages.append(counters.updates - contribution.version)
            self._delays.append(now - contribution.received_at)
            progress[contribution.rank] = progress.get(contribution.rank, 0) + contribution.steps
        counters.progress = progress
        counters.updates += 1
        self._updates += 1

    def publish(self, counters: Counters, *, last: bool = False) -> None:
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
        """Staleness is the mean over the last contributions that were used."""
        hub, used = self._hub.stats(), len(self._ages)
        return GossipStats(
            mixes=self._updates,
            skips=self._refused,
            seconds=self._waited_seconds,
            waited_seconds=self._waited_seconds,
            staleness_updates=round(sum(self._ages) / used) if used else 0,
            staleness_max_updates=max(self._ages, default=0),
            staleness_seconds=sum(self._delays) / used if used else 0.0,
            in_peers=hub.connected,
            out_peers=hub.connected,
            edges=hub.edges(),
            strangers=hub.strangers,
        )

    def events(self) -> list[dict[str, Any]]:
        return self._hub.events()

    def close(self) -> None:
        if self._counters is not None and self._is_saved:
            self.publish(self._counters, last=True)
        self._counters = None
        self._hub.close()


class Member(Algorithm):
    """Every other rank: acts with the newest parameters of the centre."""

    def __init__(self, setup: Setup, *, contribution_bytes: int) -> None:
        super().__init__(setup)
        self._hub = HubClient(
            setup.plan,
            identity(setup),
            loop=setup.loop,
            contribution_bytes=contribution_bytes,
            pinned=setup.device.type == "cuda",
        )
        self._version: int | None = None
        """Of the parameters in use; None before the first."""

    @property
    def is_waiting(self) -> bool:
        """Whether the centre is away, or has not caught up."""
        return self._hub.is_waiting or not self._hub.connected

    def has_reached(self, counters: Counters) -> bool:
        """The centre says so, once it has saved what came of it: this rank's plan may be older than the centre's."""
        return self.is_over

    @property
    def is_over(self) -> bool:
        """Whether the centre has said that the run has its steps, and there is nothing left to be taken from it."""
        return self._hub.finished and not self._hub.has_news

    def open(self, *, resumes: bool = False) -> None:
        self._hub.start()

    def begin(self, collector: Collector | None, counters: Counters) -> None:
        assert collector is not None
        self._collector = collector

    def adopt(self, counters: Counters, seconds: float) -> bool:
        """Puts the newest parameters into place, if some come within so many seconds; whether they did."""
        parameters = self._hub.latest(seconds, give_up=self.setup.stopping)
        if parameters is None:
            return False
        if self._version is None:
            counters.steps = parameters.progress.get(self.setup.me.rank, 0)
        self.setup.flat.vector.copy_(parameters.vector)
        self._version = parameters.version
        counters.progress = dict(parameters.progress)
        return True

    def push(self, payload: Sequence[Octets], num_steps: int) -> bool:
        """Hands a contribution over; False if there was no credit for it: then it is to be kept."""
        assert self._version is not None
        return self._hub.push(
            payload, version=self._version, steps=num_steps, timeout=WAIT_SECONDS, give_up=self.setup.stopping
        )

    def set_plan(self, plan: RunPlan) -> None:
        super().set_plan(plan)
        self._hub.set_plan(plan)

    def stats(self) -> GossipStats:
        hub = self._hub.stats()
        centre = (0,) if hub.connected else ()
        return GossipStats(
            seconds=hub.seconds,
            waited_seconds=hub.waited_seconds,
            in_peers=centre,
            out_peers=centre,
            edges=hub.edges(),
            strangers=hub.strangers,
        )

    def events(self) -> list[dict[str, Any]]:
        return self._hub.events()

    def close(self) -> None:
        self._hub.close()
