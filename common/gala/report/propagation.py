"""Where every learner's parameters come from: the exact weight of each local update in them, from recorded mixings.

With u_j(s) the local update that made learner j's version s, y_i(v) = x_i(v - 1) + u_i(v) what learner i then sends,
and w its mixing weights, a trace says x_i(v) = w_ii y_i(v) + sum over messages of w_ij y_j(v_j). From a common start
x_0 it follows for every learner and version, with whatever delays, skips and changes of the topology there were, that

    x_i(v) = x_0 + sum over j, s of W_iv(j, s) u_j(s)

A row W_iv is computed from the rows of what was mixed. That takes a row for every state that is still to be mixed, and
in it a column for every update on which these rows do not agree yet; a column on which they agree is dropped: all later
states are convex combinations of these, so that none ever differs more on it. What they differ by at that moment, times
the update's length, adds to `Weights.remainder`.

A life that did not begin with x_0 (a restart, a joiner) begins with a known state plus an update of its own, as long as
the recorded parameters of the two are apart. Where a message cannot be found in the traces, because a crash took the
last lines, the receiver's parameters are unknown until its next snapshot, which is treated likewise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gala.report.traces import Array, Life, Mixed, Snapshot, TraceError, snapshots_of

AGREED = 1e-10
"""Weights that differ by no more count as agreed."""
MAX_BYTES = 1 << 30
"""Of the rows; it takes learners that are many thousand updates apart."""

Indices = npt.NDArray[np.int64]

_Key = tuple[int, int, int]
"""A message: rank, life, version."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The rows of all learners at one version. n learners, C columns."""

    matrix: Array
    """[n, C], ranks ascending."""
    norms: Array
    """[C], of the updates."""
    groups: Indices
    """[C]: columns of one group are updates of different learners that made the same version."""
    learners: Indices
    """[C]: whose update it was, as a row of `matrix`."""
    remainder: float
    """Sum over all dropped columns of the largest difference between two weights times the update's length."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Why there are no weights."""

    reason: str


def propagate(
    traces: Mapping[int, tuple[Life, ...]], versions: Collection[int]
) -> Iterator[tuple[int, Weights | Unknown]]:
    """The weights at each of `versions` that all learners have a snapshot of, each learner at its own such version.

    They come in the order in which the traces allow to compute them, which need not be ascending.

    Raises:
        TraceError: no run can have left these traces: weights that are no average, messages from the future.
    """
    if traces:
        yield from _Replay(traces, set(versions)).run()


class _Table:
    """Rows of weights over a common, moving set of columns."""

    def __init__(self) -> None:
        self.rows = np.zeros((16, 1024))
        self.count = 0
        self.remainder = 0.0
        self.norms = np.zeros(1024)
        self.labels = np.zeros((3, 1024), np.int64)
        """Learner, version and life of each column's update; version -1 for what is no update."""
        self._free = list(range(16))
        self._used: set[int] = set()

    def new(self, like: int | None = None) -> int:
        """A row of zeros, or a copy."""
        if not self._free:
            self._check(2 * len(self.rows), self.rows.shape[1])
            self._free = list(range(len(self.rows), 2 * len(self.rows)))
            self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
        row = self._free.pop()
        self._used.add(row)
        self.rows[row] = 0.0 if like is None else self.rows[like]
        return row

    def free(self, row: int) -> None:
        self._used.remove(row)
        self._free.append(row)

    def add(self, row: int, norm: float, label: tuple[int, int, int]) -> None:
        """An update, in this row only."""
        if self.count == len(self.norms):
            self._make_room()
        self.rows[row, self.count] = 1.0
        self.norms[self.count] = norm
        self.labels[:, self.count] = label
        self.count += 1

    def mix(self, row: int, own: float, messages: list[tuple[float, int]]) -> None:
        target = self.rows[row, : self.count]
        target *= own
        for weight, message in messages:
            target += weight * self.rows[message, : self.count]

    def _make_room(self) -> None:
        used = self.rows[sorted(self._used)]
        spread = used.max(axis=0) - used.min(axis=0)
        dropped = spread <= AGREED
        self.remainder += float((spread * self.norms)[dropped].sum())
        kept = np.flatnonzero(~dropped)
        capacity = len(self.norms)
        if 2 * len(kept) > capacity:
            capacity *= 2
            self._check(len(self.rows), capacity)
        rows, norms, labels = np.zeros((len(self.rows), capacity)), np.zeros(capacity), np.zeros((3, capacity), int)
        self.count = len(kept)
        rows[:, : self.count] = self.rows[:, kept]
        norms[: self.count] = self.norms[kept]
        labels[:, : self.count] = self.labels[:, kept]
        self.rows, self.norms, self.labels = rows, norms, labels

    def _check(self, num_rows: int, num_columns: int) -> None:
        if 8 * num_rows * num_columns > MAX_BYTES:
            raise TraceError("the learners are too many updates apart to follow where their parameters come from")


class _Learner:
    """One rank's place in its trace."""

    def __init__(self, index: int, rank: int, lives: tuple[Life, ...]) -> None:
        self.index, self.rank, self.lives = index, rank, lives
        self.life = -1
        self.done = 0
        """Updates of this life made."""
        self.mixing = False
        """Whether the last of them is still to be followed by its mixing."""
        self.row: int | None = None
        """None while the parameters are unknown."""
        self.unknown = ""
        """Why."""
        self.keys: list[list[tuple[_Key | None, ...]]] = []
        """By life and update: the messages that were mixed."""

    @property
    def version(self) -> int:
        return self.lives[self.life].version + self.done

    @property
    def next_version(self) -> int | None:
        """Of the next thing to do; None at the end."""
        if self.mixing:
            return self.version
        if self.life >= 0 and self.done < len(self.lives[self.life].norms):
            return self.version + 1
        return self.lives[self.life + 1].version if self.life + 1 < len(self.lives) else None

    def find(self, message: Mixed) -> int | None:
        """The life that sent a message; None where the traces do not tell.

        A crash takes the last lines of a trace: a version that only one of several lives has may still be another's.
        """
        for i, life in enumerate(self.lives):
            if message.incarnation == life.incarnation or (message.incarnation is None and len(self.lives) == 1):
                return i if life.version < message.version <= life.last_version else None
        return None


class _Replay:
    """All learners, one step after the other, in an order in which every message was sent before it was mixed."""

    def __init__(self, traces: Mapping[int, tuple[Life, ...]], versions: set[int]) -> None:
        self._learners = {
            rank: _Learner(index, rank, lives) for index, (rank, lives) in enumerate(sorted(traces.items()))
        }
        chosen = {rank: snapshots_of(lives) for rank, lives in traces.items()}
        common = versions.intersection(*chosen.values())
        self._wanted = {(rank, chosen[rank][version][0], version) for rank in traces for version in common}
        self._pending: dict[int, dict[int, int | str]] = {}
        self._table = _Table()
        self._uses: Counter[_Key] = Counter()
        self._messages: dict[_Key, int | None] = {}
        complete = True
        for learner in self._learners.values():
            for life in learner.lives:
                for mixed in life.mixed:
                    _check_weights(learner.rank, mixed)
                learner.keys.append([tuple(map(self._key, mixed)) for mixed in life.mixed])
                for keys in learner.keys[-1]:
                    self._uses.update(key for key in keys if key is not None)
                    complete = complete and None not in keys
        firsts = [lives[0] for lives in traces.values()]
        self._seed = min(firsts, key=lambda life: life.version).start
        self._reference: tuple[int, Snapshot] | None = None
        """The newest state that is known both as a row and as parameters; None if nobody will begin from it."""
        if not complete or any(len(lives) > 1 for lives in traces.values()) or len({x.version for x in firsts}) > 1:
            self._reference = (self._table.new(), self._seed)

    def run(self) -> Iterator[tuple[int, Weights | Unknown]]:
        limit = 0
        while left := [learner for learner in self._learners.values() if learner.next_version is not None]:
            moved = False
            for learner in left:
                while (version := learner.next_version) is not None and version <= limit and self._can_go_on(learner):
                    moved = True
                    finished = self._go_on(learner)
                    if finished is not None and len(self._pending[finished]) == len(self._learners):
                        yield finished, self._collect(finished)
            if not moved:
                later = [version for learner in left if (version := learner.next_version or 0) > limit]
                if not later:
                    raise TraceError(f"learner {left[0].rank}'s trace says that it mixed a message from the future")
                limit = min(later)

    def _key(self, message: Mixed) -> _Key | None:
        """None where the traces do not say what the message held."""
        sender = self._learners.get(message.rank)
        life = sender.find(message) if sender else None
        return None if life is None else (message.rank, life, message.version)

    def _can_go_on(self, learner: _Learner) -> bool:
        if not learner.mixing:
            return True
        keys = learner.keys[learner.life][learner.done - 1]
        return all(key is None or key in self._messages for key in keys)

    def _go_on(self, learner: _Learner) -> int | None:
        """One step. The answer is the version of a wanted state that this learner has reached."""
        if learner.mixing:
            learner.mixing = False
            self._mix(learner, learner.lives[learner.life].mixed[learner.done - 1])
            return self._look(learner)
        if learner.life < 0 or learner.done == len(learner.lives[learner.life].norms):
            learner.life += 1
            learner.done = 0
            self._anchor(learner, learner.lives[learner.life].start)
            return None
        norm = learner.lives[learner.life].norms[learner.done]
        learner.done += 1
        learner.mixing = True
        if learner.row is not None:
            self._table.add(learner.row, norm, (learner.index, learner.version, learner.life))
        key = (learner.rank, learner.life, learner.version)
        if self._uses[key]:
            self._messages[key] = None if learner.row is None else self._table.new(like=learner.row)
        return None

    def _mix(self, learner: _Learner, mixed: tuple[Mixed, ...]) -> None:
        rows: list[tuple[float, int]] = []
        unknown = ""
        keys = learner.keys[learner.life][learner.done - 1]
        for message, key in zip(mixed, keys, strict=True):
            row = None if key is None else self._messages[key]
            if row is None:
                unknown = f"learner {message.rank}'s version {message.version}, which learner {learner.rank} mixed in,"
                unknown += " is not known from its trace"
            else:
                rows.append((message.weight, row))
        if unknown and learner.row is not None:
            self._forget(learner, unknown)
        if learner.row is not None:
            self._table.mix(learner.row, 1.0 - sum(weight for weight, _ in rows), rows)
        for key in keys:
            if key is not None:
                self._uses[key] -= 1
                if self._uses[key] == 0 and (row := self._messages[key]) is not None:
                    self._table.free(row)

    def _look(self, learner: _Learner) -> int | None:
        """Takes the row of a learner at a snapshot."""
        life, version = learner.lives[learner.life], learner.version
        snapshot = life.snapshots.get(version)
        if snapshot is None:
            return None
        wanted = (learner.rank, learner.life, version) in self._wanted
        if wanted:
            row = learner.unknown if learner.row is None else self._table.new(like=learner.row)
            self._pending.setdefault(version, {})[learner.index] = row
        if self._reference is not None:
            if learner.row is None:
                self._anchor(learner, snapshot)
            if learner.row is not None:
                self._table.free(self._reference[0])
                self._reference = (self._table.new(like=learner.row), snapshot)
        return version if wanted else None

    def _collect(self, version: int) -> Weights | Unknown:
        rows = [row for _, row in sorted(self._pending.pop(version).items())]
        known = [row for row in rows if isinstance(row, int)]
        table = self._table
        columns = slice(table.count)
        learners, versions, lives = table.labels[:, columns]
        own = np.where(versions < 0, np.arange(table.count), 0)  # what is no update of its learner: a group of its own
        _, groups = np.unique(np.stack([versions, lives, own]), axis=1, return_inverse=True)
        weights = Weights(
            table.rows[known, columns],
            table.norms[columns].copy(),
            groups.reshape(-1),
            learners.copy(),
            table.remainder,
        )
        for row in known:
            table.free(row)
        reasons = [row for row in rows if isinstance(row, str)]
        return Unknown(reasons[0]) if reasons else weights

    def _anchor(self, learner: _Learner, at: Snapshot) -> None:
        """The learner is where `at` says: at the nearest known state, and as far from it as measured."""
        parameters = at.parameters()
        distance = float(np.linalg.norm(parameters - self._seed.parameters())) if at != self._seed else 0.0
        origin = None
        if distance > 0 and self._reference is not None:
            apart = float(np.linalg.norm(parameters - self._reference[1].parameters()))
            if apart < distance:
                distance, origin = apart, self._reference[0]
        if learner.row is not None:
            self._table.free(learner.row)
        if not math.isfinite(distance):
            learner.row, learner.unknown = None, f"{at.path} holds parameters that are not finite"
            return
        learner.row = self._table.new(like=origin)
        if distance > 0:
            self._table.add(learner.row, distance, (learner.index, -1, learner.life))

    def _forget(self, learner: _Learner, reason: str) -> None:
        if learner.row is not None:
            self._table.free(learner.row)
        learner.row, learner.unknown = None, reason


def _check_weights(rank: int, mixed: tuple[Mixed, ...]) -> None:
    weights = [message.weight for message in mixed]
    if any(math.isnan(weight) for weight in weights):
        raise TraceError(f"learner {rank}'s trace does not say with which weights it mixed")
    if any(weight < 0 for weight in weights) or sum(weights) > 1 + 1e-6:
        raise TraceError(f"learner {rank}'s trace has weights that are no average: {weights}")
