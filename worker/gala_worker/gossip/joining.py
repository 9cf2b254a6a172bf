"""The question of a starting learner: whose state may it begin with? Asked of one neighbour after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Final

from gala.errors import GossipError, RefusedError, SilentError
from gala_worker.gossip.messages import Reason, StateRequest
from gala_worker.gossip.transport import Transport

PAUSE_SECONDS: Final = 0.25
"""Between two rounds of questions."""
SHORTEST_PATIENCE_SECONDS: Final = 1.0
"""The least that a neighbour has to begin its answer."""


class Joiner:
    """Asks until somebody answers, for as long as anybody may still do so."""

    def __init__(
        self, transport: Transport, request: StateRequest, max_bytes: int, *, again: Collection[Reason]
    ) -> None:
        """Talks to nobody yet.

        Args:
            max_bytes: a larger state is not taken.
            again: whoever refuses for one of these reasons is asked again. With `NOT_MY_PEER` among them, so is whoever
                does not answer at all: where some do not know the plan yet, others may not have started.
        """
        self._again = {reason.name for reason in again}
        self._awaits_all = Reason.NOT_MY_PEER in again
        self._transport = transport
        self._request = request
        self._max_bytes = max_bytes
        self._pause = threading.Condition()

    def fetch(self, addresses: Sequence[str], timeout_seconds: float, give_up: Callable[[], bool]) -> bytes | None:
        """The state of the first that gives it; None if nobody does.

        Who refuses for one of the reasons in `again`, or has not answered in its share of the time, is asked again
        until the time is over: a learner answers between two updates only. Nobody else is asked twice.

        Args:
            addresses: `host:port` of neighbours, the preferred first.
            give_up: asked before each question and after each pause.
        """
        deadline = self._transport.now() + timeout_seconds
        share = max(SHORTEST_PATIENCE_SECONDS, timeout_seconds / 4)
        candidates = list(addresses)
        while candidates:
            hopeful: list[str] = []
            is_anybody_busy = False
            for number, address in enumerate(candidates, start=1):
                remaining = deadline - self._transport.now()
                if remaining <= 0 or give_up():
                    return None
                # Whoever is busy has an answer for the next round. If nobody is, the last has all the time there is:
                # an update may take longer than a share, and a question that is withdrawn is not answered.
                is_last = number == len(candidates) and not is_anybody_busy
                try:
                    return self._transport.fetch_state(
                        address,
                        self._request,
                        first_seconds=remaining if is_last else min(remaining, share),
                        seconds=remaining,
                        max_bytes=self._max_bytes,
                    )
                except SilentError:
                    hopeful.append(address)
                except RefusedError as error:
                    if error.reason in self._again:
                        is_anybody_busy = True
                        hopeful.append(address)
                except GossipError:  # nobody listens there, or it makes no sense
                    if self._awaits_all:
                        is_anybody_busy = True
                        hopeful.append(address)
            candidates = hopeful
            if candidates and self._transport.wait(self._pause, give_up, PAUSE_SECONDS):
                return None
        return None
