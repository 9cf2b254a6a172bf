"""What could not be learned from, because it is not finite: counted, and told with its cause.

Place in the flow: `worker` shows every step. One reward or observation that is not finite, in one simulator, makes the
gradient of a whole rollout so; the optimisers then leave the parameters alone (`RMSprop.step`), and a run whose
environment does it all the time would learn nothing. IMPALA's actors make no updates: of them it is the rollouts that
count, which the learner refuses.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from gala import names
from gala.complaints import Complaints
from gala.errors import SimulatorError
from gala.plan import LearnerPlan
from gala_worker.algorithms.a2c import Update
from gala_worker.metrics import MetricsWriter
from gala_worker.rollout import Collector
from gala_worker.state import Counters

log = logging.getLogger(__name__)

HOPELESS: Final = 100
"""So many in a row of a rank whose decisions count only once they are learned from, and its run would never end."""


class SkippedUpdates:
    """Belongs to the learner thread."""

    def __init__(
        self,
        environment_id: str,
        me: LearnerPlan,
        metrics: MetricsWriter,
        *,
        is_keeper: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_keeper`: the parameters are this rank's own, so that its decisions count whatever comes of them."""
        self._environment_id = environment_id
        self._is_actor = me.role == names.ROLE_ACTOR
        self._metrics = metrics
        self._is_keeper = is_keeper
        self._clock = clock
        self._complaints = Complaints(log)
        self._updates = self._in_a_row = 0

    def note(self, update: Update | None, collector: Collector | None, counters: Counters) -> None:
        """After every step, with the update if there was one.

        Raises:
            SimulatorError: nothing can be learned from this rank, and the run would wait for it forever.
        """
        has_acted = self._is_actor and counters.updates > self._updates
        self._updates = counters.updates
        if update is None and not has_acted:
            return
        flaw = collector.flaw() if collector is not None and (update is None or update.is_skipped) else None
        if flaw is None and not (update is not None and update.is_skipped):
            self._in_a_row = 0
            return
        counters.skipped_updates += 1
        self._in_a_row += 1
        self._complain(flaw, counters)
        if flaw is not None and not self._is_keeper and self._in_a_row >= HOPELESS:
            raise SimulatorError(
                f"spec.environment.id: {self._environment_id} has given {flaw} that is not finite, as in each of the "
                f"last {HOPELESS} rollouts, and nothing can be learned from them; let it return finite numbers"
            )

    def _complain(self, flaw: str | None, counters: Counters) -> None:
        what, cause = "rollout" if self._is_actor else "update", flaw or "the gradient"
        text = (
            f"{what} {counters.updates:,} teaches nothing: {cause} is not finite; so it was with "
            f"{counters.skipped_updates:,} {what}s so far"
        )
        if self._complaints.add("skipped", None, text, self._clock()):
            self._metrics.event("skipped", updates=counters.skipped_updates, notFinite=cause)
