"""The work queue: which runs are to be looked at, each by one worker at a time.

What is added twice is done once; what is added while it is being worked on is done again afterwards. What is missing (a
pod is gone) comes before what has happened, and routine (answers of learners, resyncs) behind it, so that an operator
with its hands full still replaces a pod at once. While things go missing all else waits for a `Lull`, also what is left
of a key's own work: its `Rest`.

Failures come back after a back-off of their own key; `add_after` is for deadlines. All of it belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import heapq
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from gala_operator.lull import Lull

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

Rest = Callable[[], Awaitable[float | None]]
"""What is left of a key's work, and can wait until nothing urgent does. Returns what a handler returns."""
Handler = Callable[[K], Awaitable[float | Rest | None]]
"""Works on a key. Returns in how many seconds to come back although nothing has happened, None for never; or a rest."""

FIRST_BACK_OFF_SECONDS: Final = 0.25
MAX_BACK_OFF_SECONDS: Final = 60.0
FAIR_TURN: Final = 8
"""Every so many turns are those of the key that has waited longest, however urgent the others are."""


class _Urgency(enum.IntEnum):
    URGENT = 0
    REST = 1
    NEWS = 2
    ROUTINE = 3


class WorkQueue(Generic[K]):
    """De-duplicating, serialised by key."""

    def __init__(
        self,
        *,
        first_back_off: float = FIRST_BACK_OFF_SECONDS,
        max_back_off: float = MAX_BACK_OFF_SECONDS,
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`waited` is told how long each key has been ready before a worker took it."""
        self._first_back_off = first_back_off
        self._max_back_off = max_back_off
        self._waited = waited
        self._ready: dict[_Urgency, dict[K, None]] = {urgency: {} for urgency in _Urgency}
        """In the order in which they were added."""
        self._turns = 0
        self._added: dict[K, tuple[float, _Urgency]] = {}
        """Keys to be done -> since when; also those whose turn comes only when their worker is done with them."""
        self._busy: set[K] = set()
        """Keys that are being worked on."""
        self._rests: dict[K, tuple[float, Rest]] = {}
        """Keys whose work is half done -> since when, and the other half. They are busy, and ready."""
        self._due: dict[K, float] = {}
        """Keys that wait for their time."""
        self._heap: list[tuple[float, int, K]] = []
        self._count = 0
        self._failures: dict[K, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wakeups: deque[asyncio.Future[None]] = deque()
        self._lull = Lull(self._wake_all)

    def __len__(self) -> int:
        """Keys that wait for a worker; those with a delay do not count."""
        return len(self._added.keys() | self._rests.keys())

    def add(self, key: K) -> None:
        """Now. Of a key that is being worked on: again, as soon as that is done."""
        self._add(key, _Urgency.NEWS)

    def add_urgent(self, key: K) -> None:
        """As `add`, but before all that is added there, which waits until nothing urgent has come for a moment."""
        self._add(key, _Urgency.URGENT)

    def add_routine(self, key: K) -> None:
        """As `add`, but behind all that is added there."""
        self._add(key, _Urgency.ROUTINE)

    def _add(self, key: K, urgency: _Urgency) -> None:
        since, known = self._added.get(key, (asyncio.get_running_loop().time(), None))
        if known is not None and known <= urgency:
            return
        self._added[key] = since, urgency
        if key in self._busy:
            if urgency is _Urgency.URGENT and key in self._ready[_Urgency.REST]:
                # It has lost another pod: what it waits for itself must not be kept waiting by others.
                del self._ready[_Urgency.REST][key]
                self._ready[_Urgency.URGENT][key] = None
                self._wake()
            return
        if known is not None:
            del self._ready[known][key]
        self._ready[urgency][key] = None
        self._wake()

    def add_after(self, key: K, seconds: float) -> None:
        """In so many seconds, unless it is due earlier already."""
        if seconds <= 0:
            self.add(key)
            return
        at = asyncio.get_running_loop().time() + seconds
        if at >= self._due.get(key, float("inf")):
            return
        self._due[key] = at
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, key))
        if len(self._heap) > 2 * len(self._due) + 64:  # deadlines that were decided again and again
            self._heap = [entry for entry in self._heap if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)
        self._set_timer()

    def retry(self, key: K) -> float:
        """After a failure: after a back-off, which is returned. It doubles until `forget`."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        seconds = min(self._first_back_off * 2.0 ** min(failures, 30), self._max_back_off)
        seconds *= random.uniform(0.8, 1.2)  # what failed together does not come back together
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: K) -> None:
        """After a success: the next failure's back-off is the first one's again."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """The next key; `done` must follow. What it was due for later is dropped: who works on it decides that anew."""
        while not self._has_ready():
            wakeup: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._wakeups.append(wakeup)
            try:
                await wakeup
            except asyncio.CancelledError:
                with contextlib.suppress(ValueError):
                    self._wakeups.remove(wakeup)
                if wakeup.done() and not wakeup.cancelled() and self._has_ready():
                    self._wake()  # it was meant for one who does not come any more
                raise
        key = self._next()
        if key not in self._rests:
            self._waited(asyncio.get_running_loop().time() - self._added.pop(key)[0])
            self._due.pop(key, None)
            self._busy.add(key)
        return key

    def done(self, key: K) -> None:
        """The worker is done with it, for better or worse."""
        self._busy.discard(key)
        if key in self._added:
            self._ready[self._added[key][1]][key] = None
            self._wake()

    async def work(self, handle: Handler[K], *, workers: int) -> None:
        """Until cancelled: hands every key to `handle`, so many at the same time.

        What it raises is logged, and the key comes back after its back-off.
        """
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(self._worker(handle), name=f"reconcile-{number}")

    async def _worker(self, handle: Handler[K]) -> None:
        while True:
            key = await self.get()
            rest: Rest | None = None
            try:
                outcome = await self._take_part(key, handle)
                if callable(outcome):
                    rest = outcome
                else:
                    self.forget(key)
                    if outcome is not None:
                        self.add_after(key, outcome)
            except Exception:
                log.exception("%s failed, coming back in %.1f s", key, self.retry(key))
            finally:
                if rest is not None:
                    self._put_off(key, rest)
                else:
                    self.done(key)

    async def _take_part(self, key: K, handle: Handler[K]) -> float | Rest | None:
        """What is left of the key's work, or all of it; a `Rest` if that has to wait."""
        if key in self._rests:
            return await self._rests.pop(key)[1]()
        outcome = await handle(key)
        return await outcome() if callable(outcome) and self._is_calm() else outcome

    def _put_off(self, key: K, rest: Rest) -> None:
        self._rests[key] = asyncio.get_running_loop().time(), rest
        again = self._added.get(key)
        is_urgent = again is not None and again[1] is _Urgency.URGENT
        self._ready[_Urgency.URGENT if is_urgent else _Urgency.REST][key] = None
        self._wake()

    def _next(self) -> K:
        self._turns += 1
        foremost = [(urgency, next(iter(keys))) for urgency, keys in self._ready.items() if keys]
        urgency, key = min(foremost, key=self._since) if self._turns % FAIR_TURN == 0 else foremost[0]
        del self._ready[urgency][key]
        if urgency is _Urgency.URGENT:
            self._lull.disturb()
        return key

    def _since(self, candidate: tuple[_Urgency, K]) -> float:
        key = candidate[1]
        return (self._rests.get(key) or self._added[key])[0]

    def _has_ready(self) -> bool:
        """Whether there is something for a worker to do: with nothing urgent at hand all else waits for a lull."""
        return bool(self._ready[_Urgency.URGENT]) or (self._lull.is_now and any(self._ready.values()))

    def _is_calm(self) -> bool:
        return self._lull.is_now and not self._ready[_Urgency.URGENT]

    def _wake_all(self) -> None:
        for _ in range(len(self._wakeups)):
            self._wake()

    def _wake(self) -> None:
        while self._wakeups:
            wakeup = self._wakeups.popleft()
            if not wakeup.done():
                wakeup.set_result(None)
                return

    def _set_timer(self) -> None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)  # done, or due earlier by another entry
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer = asyncio.get_running_loop().call_at(self._heap[0][0], self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            at, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == at:
                del self._due[key]
                self.add(key)
        self._set_timer()
