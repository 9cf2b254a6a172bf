"""An actor's place in the star: what it has to send, what has arrived, and the stream, opened again and again.

Everything here runs on the transport's thread; what the learner thread shares is guarded by `lock`, which is held for
bookkeeping only.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gala.plan import RunPlan
from gala_worker.algorithms.hub.attending import Attending, State
from gala_worker.algorithms.hub.messages import MAX_UNPROCESSED, HubHeader, HubWelcome
from gala_worker.algorithms.hub.parameters import Parameters
from gala_worker.algorithms.hub.terms import HUB_RANK, Terms
from gala_worker.gossip.journal import Journal
from gala_worker.gossip.messages import Leaving, Progress, Reason, Refusal, StateRequest
from gala_worker.gossip.patience import HELLO_SECONDS, Attention
from gala_worker.gossip.ring import Backoff
from gala_worker.gossip.transport import Link, Session, Transport

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Parcel:
    """A contribution on its way to the hub; kept until the hub's learner has taken it."""

    buffer: bytearray
    serial: int = 0
    version: int = 0
    steps: int = 0


class Attendance:
    """The host of the actor's session, and the `Endpoint` of its transport, which only connects."""

    def __init__(self, terms: Terms, *, transport: Transport, make_buffer: Callable[[], Tensor]) -> None:
        self.terms = terms
        self.lock = threading.Condition()
        self.session: Attending | None = None
        self.lineage: int | None = None
        """Incarnation of the hub's process that spoke last."""
        self.ready: Parameters | None = None
        self.progress: dict[int, int] = {}
        self.finished = False
        self.contributions = self.bytes_out = self.parameters = self.bytes_in = self.replaced = 0
        self.refusals = self.lost = 0
        self.journal = Journal(log)
        self._transport = transport
        self._make_buffer = make_buffer
        self._free_buffers: list[Tensor] = []
        self._parcels: list[Parcel] = []
        self._free_parcels = [Parcel(bytearray(0)) for _ in range(MAX_UNPROCESSED)]
        self._serial = 0
        random_source = random.Random(f"{terms.plan.run_uid}/{terms.identity.rank}/{terms.identity.incarnation}")
        self._backoff = Backoff(random_source)
        self._dialled_at = 0.0
        self._gone = False
        self._closing = False
        self._attention = Attention()

    @property
    def is_open(self) -> bool:
        """Whether the hub answers."""
        return self.session is not None and self.session.state is State.OPEN

    # ---------------------------------------------------------------- commands, on the transport's thread

    def dial(self) -> None:
        """Opens a stream, unless there is one, it is too early, or there is nothing left to attend."""
        now = self._transport.now()
        if self._closing or self.finished or self.session is not None or not self._backoff.due(now):
            return
        self._dialled_at = now
        self._transport.connect(self.terms.address, self._greet)

    def set_plan(self, plan: RunPlan) -> None:
        """A newer plan; an older one, or one of another run, is ignored. The hub may have moved."""
        if plan.epoch <= self.terms.plan.epoch or plan.run_uid != self.terms.plan.run_uid:
            return
        moved = plan.learner(HUB_RANK).address.gossip != self.terms.address
        self.terms = Terms(plan, self.terms.identity, self.terms.contribution_bytes)
        if moved and self.session is not None:
            self.session.leave(Leaving.REKNIT)
        self._backoff.reset()
        self.dial()

    def leave(self, why: Leaving) -> None:
        """Say farewell, and dial no more."""
        self._closing = True
        if self.session is not None:
            self.session.leave(why)

    # ---------------------------------------------------------------- Endpoint

    def accept(self, link: Link, now: float) -> Session | None:
        """Nobody connects to an actor."""
        return None

    def tick(self, now: float) -> None:
        """Close what has fallen silent; try again what is due."""
        was_away = self._attention.was_away(now, self.terms.timeout)
        session = self.session
        if session is None:
            self.dial()
            return
        if was_away:
            session.heard_at, self._dialled_at = now, now
        if session.state is State.OPEN and session.heard_at is not None:
            silent = now - session.heard_at > self.terms.timeout
        else:
            silent = now - self._dialled_at > min(HELLO_SECONDS, self.terms.timeout)
        if silent:
            session.link.abort()

    def state_requested(self, request: StateRequest, answer: Callable[[bytes | Reason], None]) -> None:
        """An actor has none."""
        answer(Reason.NOTHING_YET)

    # ---------------------------------------------------------------- for the session

    def _greet(self, link: Link) -> Attending:
        session = Attending(self, link, self.terms.hello())
        with self.lock:
            self.session = session
        return session

    def welcomed(self, session: Attending, welcome: HubWelcome) -> int:
        """The stream is open. Returns the serial of the last contribution that need not be sent again."""
        if self._gone:
            self.journal.note("peer-back", peer=HUB_RANK)
        self._gone = False
        self._backoff.reset()
        with self.lock:
            if self.lineage not in (None, welcome.incarnation):
                self._give_up_all()
            self.lineage = welcome.incarnation
            held = set(welcome.held)
            for parcel in list(self._parcels):
                if parcel.serial <= welcome.received and parcel.serial not in held:
                    self._put_away(parcel)
            self.lock.notify_all()
        return welcome.received

    def _give_up_all(self) -> None:
        """Another process is the hub now: its state is the truth, and what was made for the former is of no use."""
        self.lost += len(self._parcels)
        for parcel in list(self._parcels):
            self._put_away(parcel)
        if self.ready is not None:
            self._free_buffers.append(self.ready.vector)
            self.ready = None

    def refused(self, refusal: Refusal) -> None:
        """The hub refuses us, or makes no sense."""
        text = f"the hub refuses: {refusal.reason.text} ({refusal.detail!r})"
        self.journal.refusal(refusal.reason.name, HUB_RANK, text, self._transport.now())

    def taken(self, serial: int, refused: Reason | None) -> None:
        """The hub's learner has taken a contribution: there is room for another one."""
        with self.lock:
            for parcel in list(self._parcels):
                if parcel.serial == serial:
                    self._put_away(parcel)
            self.lock.notify_all()
        if refused is not None:
            self.refusals += 1
            self.refused(Refusal(refused, f"contribution {serial}"))

    def next_parcel(self, after: int) -> Parcel | None:
        """The next contribution to send."""
        with self.lock:
            return next((parcel for parcel in self._parcels if parcel.serial > after), None)

    def acquire_buffer(self) -> Tensor:
        """For arriving parameters."""
        with self.lock:
            if self._free_buffers:
                return self._free_buffers.pop()
        return self._make_buffer()

    def give_back_buffer(self, buffer: Tensor) -> None:
        """From either thread."""
        with self.lock:
            self._free_buffers.append(buffer)

    def arrived(self, session: Attending, buffer: Tensor, header: HubHeader) -> None:
        """Parameters are complete."""
        with self.lock:
            if self.ready is not None:
                self._free_buffers.append(self.ready.vector)
                self.replaced += 1
            self.ready = Parameters(buffer, header.version, header.progress, header.finished, session.lineage)
            self.progress = dict(header.progress)
            self.parameters += 1
            session.outstanding = False
            self.finished = header.finished
            self.lock.notify_all()
        if header.finished:
            session.leave(Leaving.FINISHED)

    def not_finite(self, version: int) -> None:
        """Parameters that must not be used."""
        self.refusals += 1
        text = f"refusing parameters {version} of the hub: {Reason.NOT_FINITE.text}"
        self.journal.refusal(Reason.NOT_FINITE.name, HUB_RANK, text, self._transport.now())

    def heard_progress(self, progress: Progress) -> None:
        """What the hub has learned from so far."""
        with self.lock:
            self.progress = dict(progress)

    def hub_left(self, why: Leaving, progress: Progress) -> None:
        """The hub says farewell: for good when the run is finished, else it may come back."""
        with self.lock:
            self.progress = dict(progress)
            self.finished = self.finished or why is Leaving.FINISHED
            self.lock.notify_all()

    def ended(self, session: Attending, now: float, why: str) -> None:
        """The stream is closed, whoever closed it."""
        if self.session is not session:
            return
        with self.lock:
            self.session = None
            self.lock.notify_all()
        if not session.is_leaving:
            self._backoff.failed(now)
            # One that has never been there is only not there yet: an actor may start before it.
            if self.lineage is not None and not self._gone and not self.finished:
                self._gone = True
                self.journal.note("peer-gone", peer=HUB_RANK, reason=why)
        self.dial()

    # ---------------------------------------------------------------- for the learner thread; the lock is held

    @property
    def has_credit(self) -> bool:
        """Whether a contribution may be handed over."""
        return bool(self._free_parcels)

    def begin_parcel(self) -> Parcel:
        """An empty one, to be filled without the lock."""
        parcel = self._free_parcels.pop()
        if not parcel.buffer:
            parcel.buffer = bytearray(self.terms.contribution_bytes)
        return parcel

    def post(self, parcel: Parcel) -> None:
        """It is filled."""
        self._serial += 1
        parcel.serial = self._serial
        self._parcels.append(parcel)
        if self.session is not None:
            self.session.link.wake()

    def give_up(self, parcel: Parcel) -> None:
        """It is not to be sent after all."""
        self._free_parcels.append(parcel)

    def _put_away(self, parcel: Parcel) -> None:
        self._parcels.remove(parcel)
        self._free_parcels.append(parcel)
