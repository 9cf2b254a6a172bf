"""Push-sum: every learner owns a weight, every message gives a part of it away, and none is ever lost or doubled.

A learner's vector is z = x / w, the de-biased parameters; w, its weight, lies beside it. What is kept over the whole
run is the sum of w z and the sum of w over all learners and all messages on their way, whatever is late or lost:

    giving to k neighbours     w <- w / (k + 1), and each message carries z and w / (k + 1)
    mixing                     z <- (w z + sum of w_j z_j) / (w + sum of w_j),  w <- w + sum of w_j

So a message that has begun to travel is kept until it is known whether the receiver's learner took it. `PushSumOutbox`
keeps it, for one edge; `Account` is the learner's side: its weight, and what comes back.

Sources: Kempe, Dobra, Gehrke, "Gossip-Based Computation of Aggregate Information" (2003), section 2; Assran et al.,
"Stochastic Gradient Push" (2019), algorithm 1. What is done about loss is ours: docs/protocol.md.

Shapes: z and every message are [N].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from gala.errors import MessageError
from gala_worker.gossip import codec
from gala_worker.gossip.mixing import blocks
from gala_worker.gossip.slots import Outbox, Snapshot, SnapshotPool

LEAST_WEIGHT: Final = 2.0**-30
"""A learner that owns so little gives nothing away, and no honest message carries less."""
MOST_WEIGHT_PER_MEMBER: Final = 16.0
"""A run of n learners begins with a weight of n. What claims more than so much of it is not honest."""
MAX_RECEIPTS: Final = 4
"""Messages taken back from neighbours that fell silent, and kept in case that they had been taken after all."""


def most_weight(members: int) -> float:
    """The most that a message or a learner may weigh in a run of so many members."""
    return MOST_WEIGHT_PER_MEMBER * members


def is_acceptable(weight: float, members: int) -> bool:
    """Whether an honest message may carry this weight."""
    return math.isfinite(weight) and LEAST_WEIGHT <= weight <= most_weight(members)


@torch.no_grad()
def push_sum_mix_(z: Tensor, weight: float, messages: Sequence[Tensor], weights: Sequence[float]) -> float:
    """z <- (w z + sum of w_j z_j) / (w + sum of w_j), in place.

    Args:
        z: float32 [N], on any device.
        weight: w, positive.
        messages: at least one, float32 or bfloat16 [N], on the CPU.
        weights: w_j; negative ones take away what was added before. The sum with w has to be positive.

    Returns: the new w.
    """
    total = weight + math.fsum(weights)
    for part, others in blocks(z, messages):
        if len(others) == 1:
            torch.lerp(part, others[0], weights[0] / total, out=part)
            continue
        part.mul_(weight / total)
        for other, share in zip(others, weights, strict=True):
            part.add_(other, alpha=share / total)
    return total


class Account:
    """What one learner owns. `weight` belongs to the learner's thread; the owner's lock guards the rest."""

    def __init__(self, pool: SnapshotPool) -> None:
        self.weight = 1.0
        """A learner that starts, joins or comes back starts with this."""
        self.receipts = 0
        self.taken_back = 0
        """Messages whose weight came back, so far."""
        self._pool = pool
        self._credits: list[Snapshot] = []
        self._debts: list[Snapshot] = []

    @property
    def unsettled(self) -> list[tuple[Snapshot, float]]:
        """(message, signed weight) of what the learner has still to add to its vector; the caller holds the lock."""
        return [
            *((snapshot, snapshot.weight) for snapshot in self._credits),
            *((snapshot, -snapshot.weight) for snapshot in self._debts),
        ]

    def share(self, receivers: int) -> float | None:
        """What each of so many neighbours may be given; None if the learner owns too little."""
        share = self.weight / (receivers + 1)
        return share if share >= LEAST_WEIGHT else None

    def take_back(self, snapshot: Snapshot) -> None:
        """A message was not taken: the learner adds it to its vector again. The caller's hold on it passes over."""
        self.taken_back += 1
        self._credits.append(snapshot)

    def owe(self, snapshot: Snapshot) -> None:
        """A message was taken back, and taken by the receiver as well. The caller's hold on it passes over."""
        self._debts.append(snapshot)

    def collect(self) -> list[tuple[Snapshot, float]]:
        """What is to be added now, as (message, signed weight). A debt waits until the learner owns twice as much."""
        due = [(snapshot, snapshot.weight) for snapshot in self._credits]
        self._credits.clear()
        weight = self.weight + math.fsum(weight for _, weight in due)
        for snapshot in list(self._debts):
            if weight >= 2 * snapshot.weight:
                weight -= snapshot.weight
                self._debts.remove(snapshot)
                due.append((snapshot, -snapshot.weight))
        return due

    def add_(self, z: Tensor, due: Sequence[tuple[Snapshot, float]]) -> None:
        """Adds what was collected to the learner's vector; the lock is not held.

        A message whose numbers are not finite brings its weight and nothing else.
        """
        for snapshot, weight in due:
            if codec.is_finite(snapshot.buffer):
                self.weight = push_sum_mix_(z, self.weight, [snapshot.buffer], [weight])
            else:
                self.weight += weight

    def release(self, due: Sequence[tuple[Snapshot, float]]) -> None:
        """After `add_`: the buffers are free again."""
        for snapshot, _ in due:
            self._pool.release(snapshot)


class PushSumOutbox(Outbox):
    """An `Outbox` that keeps what it has sent until it is known who has it.

    given -> acknowledged (the receiver's) | refused, farewell, another process (the learner's again)
          -> stream broken -> welcome: taken or not | silence: the learner's again, with a receipt
    """

    def __init__(self, pool: SnapshotPool, account: Account) -> None:
        super().__init__(pool)
        self._account = account
        self._given: Snapshot | None = None
        self._receipt: Snapshot | None = None
        self._receiver: int | None = None
        """Incarnation of the receiver that `_given` or `_receipt` travelled to."""
        self._newest = 0
        """Version of the newest message that ever began to travel on this edge."""
        self._broken_at: float | None = None

    @property
    def is_settled(self) -> bool:
        """Whether nothing has begun to travel that is not acknowledged."""
        return not self._unacknowledged

    @property
    def in_transit(self) -> list[Snapshot]:
        """What is given away and not acknowledged; the caller holds the lock."""
        return [snapshot for snapshot in (self._given, self._waiting) if snapshot is not None]

    def is_free(self, version: int, *, may_wait: bool) -> bool:
        """Whether a message of this version may be put. `may_wait`: behind one that is not acknowledged."""
        return self._waiting is None and version > self._newest and (may_wait or not self._unacknowledged)

    def begin(self) -> Snapshot | None:
        """The message to send now; it is kept beyond its sending."""
        snapshot = super().begin()
        if snapshot is not None:
            snapshot.holders += 1
            self._given, self._newest = snapshot, snapshot.version
        return snapshot

    def acknowledge(self, version: int) -> None:
        """The receiver's learner has taken everything up to `version`."""
        super().acknowledge(version)
        if self._given is not None and version >= self._given.version:
            self._pool.release(self._given)
            self._given = None

    def refuse(self, version: int) -> None:
        """The receiver does not take this message: the learner has it again."""
        if self._given is not None and version >= self._given.version:
            self._account.take_back(self._given)
            self._given = None
        super().acknowledge(version)

    def reset(self, now: float) -> None:
        """The stream is gone. What waited comes back; what had begun to travel may have been taken or not."""
        self._take_waiting_back()
        super().reset(now)
        self._broken_at = now

    def settle(self, accepted: int, receiver: int) -> None:
        """A new stream: the receiver's process says what the last message was that its learner took.

        Another process than before is one that has lost what it took.

        Raises: MessageError when it claims to have taken what was never sent.
        """
        if accepted > self._newest:
            raise MessageError(f"message {accepted} is said to be taken, and was not sent")
        known = receiver == self._receiver
        given, receipt = self._given, self._receipt
        self._given = None
        if given is not None:
            if known and accepted >= given.version:
                self._pool.release(given)
            else:
                self._account.take_back(given)
        if receipt is not None and known and accepted >= receipt.version:
            self._receipt = None
            self._account.receipts -= 1
            self._account.owe(receipt)
        self._drop_receipt()
        self._receiver = receiver

    def withdraw(self) -> None:
        """The receiver has left: what it has not acknowledged it will never take."""
        self._take_waiting_back()
        if self._given is not None:
            self._account.take_back(self._given)
            self._given = None
        self._drop_receipt()

    def give_up(self, before: float) -> None:
        """Takes back what was under way when the stream broke, if that was before this moment."""
        if self._given is None or self._broken_at is None or self._broken_at >= before or self._unacknowledged:
            return
        self._drop_receipt()
        if self._account.receipts < MAX_RECEIPTS:
            self._account.receipts += 1
            self._given.holders += 1
            self._receipt = self._given
        self._account.take_back(self._given)
        self._given = None

    def _take_waiting_back(self) -> None:
        if self._waiting is not None:
            self._account.take_back(self._waiting)
            self._waiting = None

    def _drop_receipt(self) -> None:
        if self._receipt is not None:
            self._account.receipts -= 1
            self._pool.release(self._receipt)
            self._receipt = None
