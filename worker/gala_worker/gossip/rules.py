"""When a learner mixes, with what, and to whom it gives: one rule for each `gossip.mixing`.

`Average` waits for a message from every counted in-peer and takes their mean; `PushSum` takes whatever has arrived and
weighs it. `peer` asks; all methods but `blend_` and `settle_` are called with the lock held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from gala_worker.gossip.mixing import mix_
from gala_worker.gossip.neighbourhood import Neighbourhood
from gala_worker.gossip.push_sum import PushSumOutbox, most_weight, push_sum_mix_
from gala_worker.gossip.receiving import InEdge
from gala_worker.gossip.sending import OutEdge
from gala_worker.gossip.slots import Received, Snapshot

Taken = Sequence[tuple[InEdge, Received]]


class Rule(Protocol):
    """What `GossipPeer` asks."""

    def begin(self, version: int) -> None:
        """The learner has made an update; its versions may start anywhere, and go back."""

    def has_receiver(self, edges: Sequence[OutEdge], version: int) -> bool:
        """Whether anybody is to get this version: if not, there is no need to copy it."""

    def hand_out(self, snapshot: Snapshot, edges: Sequence[OutEdge]) -> list[OutEdge]:
        """Puts the message on those of the edges that are to carry it."""

    def is_ready(self) -> bool:
        """Whether `take` would find something, or need not wait for it."""

    def is_overdue(self) -> bool:
        """Whether the staleness bound tells the learner to wait until `has_all`."""

    def has_all(self) -> bool:
        """Whether there is nothing to wait for."""

    def excuse(self) -> None:
        """After a wait in vain: who was waited for does not count until it is heard of again."""

    def take(self) -> Taken:
        """The messages to mix now."""

    def mixed(self, taken: Taken) -> None:
        """They have been mixed."""

    def settle_(self, vector: Tensor) -> None:
        """Adds what came back to the vector [N]."""

    def blend_(self, vector: Tensor, messages: Sequence[Received]) -> None:
        """Mixes the messages into the vector [N]."""


class _Patience:
    """What both rules share: who counts, and since when nothing has been mixed."""

    def __init__(self, hood: Neighbourhood) -> None:
        self._own = hood.standing
        self._in_peers = hood.in_peers
        self._out_peers = hood.out_peers
        self._mixed_version: int | None = None
        self._turns: dict[int, int] = {}
        """Where they take turns: in-peer -> this learner's version when it mixed a message of it last."""
        self._first = 0
        """The version from which staleness counts at the earliest."""

    @property
    def _bound(self) -> int | None:
        return self._own.plan.spec.gossip.max_staleness

    @property
    def _is_synchronous(self) -> bool:
        """Whether every exchange is waited for."""
        return self._bound is not None and self._bound < self._own.plan.spec.gossip.every_updates

    @property
    def _is_one_peer(self) -> bool:
        """In a time-varying topology an in-peer pushes here in some rounds only: whatever is there is mixed."""
        return self._own.plan.spec.topology.type == "OnePeerExponential"

    @property
    def _takes_turns(self) -> bool:
        """Whether an in-peer is waited for in its own rounds only, and what comes early is left for later.

        So it is where learners of a time-varying topology are synchronous. Any message would do to go on otherwise, and
        whoever mixed two at once would leave one less to all for good: in the end one learner at a time has one.
        """
        return self._is_one_peer and self._is_synchronous

    def _due(self) -> InEdge | None:
        """The in-peer whose message this round is for, if it counts; None too if one of it was mixed in this period.

        The latter is so for a learner whose count is ahead of its in-peer's: what that sends is never early.
        """
        own, members = self._own, self._own.membership
        every = own.plan.spec.gossip.every_updates
        rank = members.in_peer_of_round(own.version // every)
        edge = next((edge for edge in self.counted() if edge.rank == rank), None)
        last = self._turns.get(rank) if rank is not None else None
        is_heard = last is not None and 0 <= own.version - last < every * members.period
        return None if is_heard else edge

    def _is_due_here(self) -> bool:
        due = self._due()
        return due is None or due.inbox.is_fresh

    def _of_this_turn(self, edges: Sequence[InEdge]) -> list[InEdge]:
        """Those of them whose message is mixed now: it is of this round, or of an earlier one, or due."""
        round = self._own.version // self._own.plan.spec.gossip.every_updates
        due = self._due()
        taken = [edge for edge in edges if edge is due or (edge.inbox.round is not None and edge.inbox.round <= round)]
        for edge in taken:
            if edge.inbox.is_fresh:
                self._turns[edge.rank] = self._own.version
        return taken

    def begin(self, version: int) -> None:
        every = self._own.plan.spec.gossip.every_updates
        if self._mixed_version is None or version < self._mixed_version:
            self._mixed_version = self._first = version - every

    def counted(self) -> list[InEdge]:
        """The in-peers that matter: live, and not without a message for longer than the timeout."""
        oldest = self._own.now() - self._own.membership.timeout
        return [
            edge
            for edge in self._in_peers.edges.values()
            if edge.session is not None and (edge.inbox.is_fresh or edge.valid_at > oldest)
        ]

    def excuse(self) -> None:
        # In-peers need no excuse: who let us wait for the full time does not count any more.
        for edges in self._out_peers.routes:
            for edge in edges:
                edge.outbox.excused = edge.outbox.is_waiting

    def _all_under_way(self) -> bool:
        """Synchronous: what the neighbour has not taken yet must not be replaced, or left out, by what follows."""
        return not self._is_synchronous or not any(
            edge.outbox.is_waiting and not edge.outbox.excused for edges in self._out_peers.routes for edge in edges
        )


class Average(_Patience):
    """x <- (x + sum of m_j) / (1 + number of messages), once every counted in-peer has sent a fresh one."""

    def has_receiver(self, edges: Sequence[OutEdge], version: int) -> bool:
        return bool(edges)

    def hand_out(self, snapshot: Snapshot, edges: Sequence[OutEdge]) -> list[OutEdge]:
        carriers = [edge for edge in edges if edge.session is not None]
        for edge in carriers:
            edge.outbox.put(snapshot)
        return carriers

    def is_ready(self) -> bool:
        return self.has_all() and any(edge.inbox.is_fresh for edge in self._in_peers.edges.values())

    def has_all(self) -> bool:
        counted = self.counted()
        if counted:
            if self._takes_turns:
                enough = self._is_due_here()
            else:
                enough = (any if self._is_one_peer else all)(edge.inbox.is_fresh for edge in counted)
            if not enough:
                return False
        return self._all_under_way()

    def is_overdue(self) -> bool:
        if self._bound is None or self._mixed_version is None:
            return False
        return self._own.version - self._mixed_version > self._bound

    def take(self) -> Taken:
        if not self.has_all() and not self.is_overdue():
            return []
        edges = self.counted()
        if not edges:
            self._mixed_version = self._own.version  # staleness counts while there is somebody to mix with
        if self._takes_turns:
            edges = self._of_this_turn(edges)
        taken = [(edge, edge.inbox.take()) for edge in edges]
        return [(edge, received) for edge, received in taken if received is not None]

    def mixed(self, taken: Taken) -> None:
        self._mixed_version = self._own.version

    def settle_(self, vector: Tensor) -> None:
        """Nothing comes back: a message that is lost is lost."""

    def blend_(self, vector: Tensor, messages: Sequence[Received]) -> None:
        mix_(vector, [message.buffer for message in messages])


class PushSum(_Patience):
    """z <- (w z + sum of w_j z_j) / (w + sum of w_j) with whatever has arrived. See `push_sum`."""

    def has_receiver(self, edges: Sequence[OutEdge], version: int) -> bool:
        return bool(self._free(edges, version))

    def hand_out(self, snapshot: Snapshot, edges: Sequence[OutEdge]) -> list[OutEdge]:
        carriers = self._free(edges, snapshot.version)
        share = self._own.account.share(len(carriers)) if carriers else None
        if share is None:
            return []
        self._own.account.weight = snapshot.weight = share
        for edge in carriers:
            edge.outbox.put(snapshot)
        return carriers

    def _free(self, edges: Sequence[OutEdge], version: int) -> list[OutEdge]:
        # Where learners wait for each other, a message may wait for an acknowledgement that is on its way: two of them
        # that both left out an edge for that reason would wait for each other.
        may_wait = self._bound is not None
        return [
            edge
            for edge in edges
            if edge.is_open
            and isinstance(edge.outbox, PushSumOutbox)
            and edge.outbox.is_free(version, may_wait=may_wait)
        ]

    def is_ready(self) -> bool:
        return self.has_all()

    def has_all(self) -> bool:
        bound, since = self._bound, self._mixed_version
        if bound is None or since is None:
            return True
        version, counted = self._own.version, self.counted()
        if self._takes_turns:
            late = not self._is_due_here()
        elif self._is_one_peer:
            late = bool(counted) and version - since > bound and not any(edge.inbox.is_fresh for edge in counted)
        else:
            late = any(not edge.inbox.is_fresh and version - self._heard(edge) > bound for edge in counted)
        return not late and self._all_under_way()

    def _heard(self, edge: InEdge) -> int:
        known = edge.mixed_version <= self._own.version  # the learner may have gone back since
        return max(edge.mixed_version, self._first) if known else self._first

    def is_overdue(self) -> bool:
        return True  # `has_all` has looked at the bound

    def take(self) -> Taken:
        taken = []
        edges = [edge for edge in self._in_peers.edges.values() if edge.session is not None]
        for edge in self._of_this_turn(edges) if self._takes_turns else edges:
            received = edge.inbox.take()
            if received is not None:
                edge.accepted, edge.mixed_version = received.version, self._own.version
                taken.append((edge, received))
        if not self.counted():
            self._mixed_version = self._own.version
        return taken

    def mixed(self, taken: Taken) -> None:
        self._mixed_version = self._own.version

    def settle_(self, vector: Tensor) -> None:
        own = self._own
        with own.lock:
            due = own.account.collect()
        if due:
            own.account.add_(vector, due)
            with own.lock:
                own.account.release(due)

    def blend_(self, vector: Tensor, messages: Sequence[Received]) -> None:
        account, members = self._own.account, len(self._own.membership.ranks)
        buffers, weights = [message.buffer for message in messages], [message.weight for message in messages]
        weight = push_sum_mix_(vector, account.weight, buffers, weights)
        account.weight = min(weight, most_weight(members))  # nobody can make this learner's messages unacceptable
