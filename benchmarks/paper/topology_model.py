"""Gossip alone, simulated: who holds which numbers, what is on its way, who is away. numpy, no environments.

Many seeds are simulated side by side as one large graph without edges between them: learner i of seed s is row
s * n + i. Time is counted in updates of an average learner and passes in ticks; in a tick everything that is due
arrives, then all learners whose update is due offer, and then the same learners mix. The rules are those of
docs/protocol.md, with these simplifications: a message that is lost is lost on arrival and its stream is down from then
on; a dead neighbour is noticed at once; a learner that comes back begins with the numbers of a random living one.

Shapes: M = seeds * n learners, K = edges of a learner, D = numbers of a learner; vectors are [M, D], edges [M, K].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from gala import topology
from gala_worker.gossip import ring

Mixing = Literal["average", "push-sum"]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

EMPTY, FLYING, READY, ACKNOWLEDGED, BROKEN = range(5)
"""Of an edge: nothing on it; a message on its way; arrived; taken, and the acknowledgement on its way; stream down."""
NUMBERS: Final = 4
"""D: how many numbers a learner has. They do not influence each other; more of them make a smoother norm."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A topology, as `gala.topology` reads it."""

    type: str
    peers: int | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What goes wrong, as distributions. Times are in updates of an average learner."""

    name: str
    tick: float = 0.25
    pace_spread: float = 0.0
    """sigma of a lognormal of median 1: how much a learner's mean time per update differs from the others'."""
    jitter: float = 0.0
    """sigma of a lognormal of median 1: how much one update of a learner differs from the next."""
    delay: float = 0.0
    """Mean of an exponential: from sending to arriving; for acknowledgements as well."""
    loss: float = 0.0
    """Probability that a message is lost and its stream broken."""
    repair: float = 0.0
    """Mean of an exponential: from the break of a stream to the next one."""
    death: float = 0.0
    """Deaths per learner and update (a Poisson process)."""
    away: float = 0.0
    """Mean of an exponential: from death to return."""


SYNCHRONOUS: Final = Conditions("synchronous", tick=1.0)


@dataclass(frozen=True, slots=True)
class Course:
    """What one simulation showed, per seed."""

    times: Floats
    """[T], updates of an average learner; the first is 0."""
    radius: Floats
    """[T, seeds]: root mean square distance of the living from their mean, as a share of that at the start."""
    drift: Floats
    """[T, seeds]: distance of the living learners' mean from that at the start, as a share of the radius at the start.
    A run that simply took over one learner's numbers would show about 1."""
    kept: Floats
    """[T, seeds]: the same for the weighted mean of everything, on its way or not (push-sum); `drift` for averaging."""
    weights: tuple[float, float]
    """Smallest and largest weight of a living learner at the end."""
    lost: int
    deaths: int

    def time_to(self, fraction: float) -> Floats:
        """[seeds]: the first time at which the radius is, and stays, at or below this fraction; NaN if it never is."""
        above = self.radius > fraction
        last = np.where(above.any(axis=0), len(self.times) - 1 - np.argmax(above[::-1], axis=0), -1)
        times: Floats = np.append(self.times, np.nan)[last + 1]
        return times


class Gossip:
    """The state of all learners and edges, and what happens in a tick."""

    def __init__(
        self, shape: Shape, size: int, mixing: Mixing, conditions: Conditions, *, seed: int, seeds: int
    ) -> None:
        """`seeds` runs of `size` learners each, with numbers drawn from N(0, 1)."""
        self.shape, self.size, self.seeds, self.conditions = shape, size, seeds, conditions
        self.push_sum = mixing == "push-sum"
        self.rng = np.random.default_rng(seed)
        rows = size * seeds
        self.now = 0.0
        self.z: Floats = self.rng.normal(size=(rows, NUMBERS))
        self.w = np.ones(rows)
        self.alive = np.ones(rows, dtype=bool)
        self.back_at = np.full(rows, np.inf)
        self.version = np.zeros(rows, dtype=np.int64)
        self.pace = self.rng.lognormal(0.0, conditions.pace_spread, rows)
        first = self.rng.random(rows) if conditions.pace_spread else np.ones(rows)
        self.next_update: Floats = self.pace * first
        self.period = topology.period(shape, size)
        distances = sorted({o for r in range(self.period) for o in topology.offsets(shape, size, r)})
        by_round = [[distances.index(o) for o in topology.offsets(shape, size, r)] for r in range(self.period)]
        self.in_round = np.zeros((self.period, len(distances)), dtype=bool)
        for number, columns in enumerate(by_round):
            self.in_round[number, columns] = True
        local = (np.arange(size)[:, None] + np.array(distances, dtype=np.int64)) % size
        self.nominal = (np.arange(seeds)[:, None, None] * size + local).reshape(rows, len(distances))
        self.target = self.nominal.copy()
        """[M, K]: the row that an edge leads to; -1 = nobody."""
        edges = self.target.shape
        self.state = np.zeros(edges, dtype=np.int8)
        self.due = np.zeros(edges)
        self.weight = np.zeros(edges)
        self.payload = np.zeros((*edges, NUMBERS))
        self.waiting = np.zeros(edges, dtype=bool)
        self.waiting_payload = np.zeros((*edges, NUMBERS)) if not self.push_sum else np.zeros((0, 0, NUMBERS))
        self.lost = self.deaths = 0
        self._start = self.means()
        self._start_radius = self._radius()

    # ---------------------------------------------------------------- measures, per seed

    def means(self) -> Floats:
        """[seeds, D]: the living learners' mean."""
        share = self.alive.reshape(self.seeds, self.size, 1)
        means: Floats = (self.z.reshape(self.seeds, self.size, NUMBERS) * share).sum(axis=1) / share.sum(axis=1)
        return means

    def kept(self) -> Floats:
        """[seeds, D]: the weighted mean of all learners and messages."""
        on_the_way = ((self.state == FLYING) | (self.state == READY) | (self.state == BROKEN)) * self.weight
        total = self.w + on_the_way.sum(axis=1)
        sums = self.w[:, None] * self.z + np.einsum("mk,mkd->md", on_the_way, self.payload)
        grouped = sums.reshape(self.seeds, self.size, NUMBERS).sum(axis=1)
        kept: Floats = grouped / total.reshape(self.seeds, self.size).sum(axis=1)[:, None]
        return kept

    def _radius(self) -> Floats:
        share = self.alive.reshape(self.seeds, self.size)
        apart = self.z.reshape(self.seeds, self.size, NUMBERS) - self.means()[:, None]
        radius: Floats = np.sqrt(((apart**2).sum(axis=2) * share).sum(axis=1) / share.sum(axis=1))
        return radius

    def measure(self) -> tuple[Floats, Floats, Floats]:
        """(radius, drift, kept drift), [seeds] each, as shares of the radius at the start."""
        drift = np.linalg.norm(self.means() - self._start, axis=1)
        kept = np.linalg.norm(self.kept() - self._start, axis=1) if self.push_sum else drift
        start = self._start_radius
        return self._radius() / start, drift / start, kept / start

    # ---------------------------------------------------------------- a tick

    def step(self) -> None:
        """One tick passes."""
        self.now += self.conditions.tick
        if self.conditions.death:
            self._come_and_go()
        self._arrive()
        active = self.alive & (self.next_update <= self.now + 1e-9)
        if not active.any():
            return
        self.version[active] += 1
        spread = self.rng.lognormal(0.0, self.conditions.jitter, int(active.sum())) if self.conditions.jitter else 1.0
        self.next_update[active] += self.pace[active] * spread
        self._offer(active)
        self._arrive()
        self._mix(active)

    def _delays(self, count: int) -> Floats | float:
        return self.rng.exponential(self.conditions.delay, count) if self.conditions.delay else 0.0

    def _offer(self, active: Bools) -> None:
        wanted = active[:, None] & self.in_round[self.version % self.period] & (self.target >= 0)
        if self.push_sum:
            free = wanted & (self.state == EMPTY)
            share = self.w / (free.sum(axis=1) + 1)
            self.w = np.where(active, share, self.w)
            self.weight[free] = np.broadcast_to(self.w[:, None], free.shape)[free]
            self.payload[free] = np.broadcast_to(self.z[:, None], self.payload.shape)[free]
            self._send(free)
        else:
            self.waiting |= wanted
            self.waiting_payload[wanted] = np.broadcast_to(self.z[:, None], self.payload.shape)[wanted]
            self._send_waiting()

    def _send_waiting(self) -> None:
        begin = self.waiting & (self.state == EMPTY)
        if begin.any():
            self.payload[begin] = self.waiting_payload[begin]
            self.waiting[begin] = False
            self._send(begin)

    def _send(self, edges: Bools) -> None:
        self.state[edges] = FLYING
        self.due[edges] = self.now + self._delays(int(edges.sum()))

    def _arrive(self) -> None:
        due = self.due <= self.now + 1e-9
        repaired = due & (self.state == BROKEN)
        if repaired.any():
            rows = np.flatnonzero(repaired.any(axis=1))
            self._give_back(rows, repaired[rows])
            self.state[repaired] = EMPTY
        self.state[due & (self.state == ACKNOWLEDGED)] = EMPTY
        if not self.push_sum:
            self._send_waiting()
            due = self.due <= self.now + 1e-9
        arrived = due & (self.state == FLYING)
        self.state[arrived] = READY
        if self.conditions.loss and arrived.any():
            lost = arrived.copy()
            lost[arrived] = self.rng.random(int(arrived.sum())) < self.conditions.loss
            self.lost += int(lost.sum())
            self.state[lost] = BROKEN
            self.due[lost] = self.now + self.rng.exponential(self.conditions.repair, int(lost.sum()))

    def _give_back(self, rows: NDArray[np.int64], edges: Bools) -> None:
        """What was not taken from these edges [len(rows), K] is the sender's again; without push-sum it is lost."""
        if not self.push_sum:
            return
        weights = np.where(edges, self.weight[rows], 0.0)
        total = self.w[rows] + weights.sum(axis=1)
        sums = self.w[rows, None] * self.z[rows] + np.einsum("mk,mkd->md", weights, self.payload[rows])
        self.z[rows], self.w[rows] = sums / total[:, None], total
        self.weight[rows] -= weights

    def _mix(self, active: Bools) -> None:
        rows = len(active)
        real = self.target >= 0
        ready = (self.state == READY) & real
        arrived = np.bincount(self.target[ready], minlength=rows)
        mixers = active & (arrived > 0)
        if not self.push_sum and self.period == 1:
            counted = real & (self.state != BROKEN) & self.alive[:, None]
            mixers &= arrived >= np.bincount(self.target[counted], minlength=rows)
        taken = ready & mixers[np.where(real, self.target, 0)]
        if not taken.any():
            return
        into, payload = self.target[taken], self.payload[taken]
        weights = self.weight[taken] if self.push_sum else np.ones(len(into))
        own = self.w if self.push_sum else np.ones(rows)
        total = (own + np.bincount(into, weights, minlength=rows))[mixers]
        for number in range(NUMBERS):
            sums = np.bincount(into, weights * payload[:, number], minlength=rows)[mixers]
            self.z[mixers, number] = (own[mixers] * self.z[mixers, number] + sums) / total
        if self.push_sum:
            self.w[mixers] = total
        self.state[taken] = ACKNOWLEDGED
        self.due[taken] = self.now + self._delays(len(into))

    # ---------------------------------------------------------------- churn

    def _come_and_go(self) -> None:
        chance = -np.expm1(-self.conditions.death * self.conditions.tick)
        dying = self.alive & (self.rng.random(len(self.alive)) < chance)
        returning = np.flatnonzero(~self.alive & (self.back_at <= self.now))
        for row in np.flatnonzero(dying):
            self._die(int(row))
        for row in returning:
            self._return(int(row))

    def _members(self, row: int) -> slice:
        first = row // self.size * self.size
        return slice(first, first + self.size)

    def _die(self, row: int) -> None:
        run = self._members(row)
        if self.alive[run].sum() <= 2:
            return
        self.deaths += 1
        self.alive[row], self.w[row] = False, 0.0
        self.back_at[row] = self.now + self.rng.exponential(self.conditions.away)
        self.state[row], self.weight[row], self.waiting[row] = EMPTY, 0.0, False
        self._aim([int(r) for r in np.flatnonzero((self.target[run] == row).any(axis=1)) + run.start], run)
        self.target[row] = -1

    def _return(self, row: int) -> None:
        run = self._members(row)
        others = np.flatnonzero(self.alive[run]) + run.start
        self.z[row] = self.z[self.rng.choice(others)]
        self.w[row], self.alive[row] = 1.0, True
        self.next_update[row] = self.now + self.pace[row]
        diverted = (self.target[run] != self.nominal[run]).any(axis=1) & self.alive[run]
        self._aim([int(r) for r in np.flatnonzero(diverted) + run.start], run)

    def _aim(self, rows: list[int], run: slice) -> None:
        """The healed ring: each edge leads to its nominal rank, or to the next living one after it."""
        members = range(run.start, run.stop)
        gone = {int(row) for row in np.flatnonzero(~self.alive[run]) + run.start}
        for row in rows:
            if not self.alive[row]:
                continue
            if self.target.shape[1] >= self.size - 1:  # complete: whoever is left is a neighbour already
                chosen = np.where(self.alive[self.nominal[row]], self.nominal[row], -1)
            else:
                heirs = ring.choose([int(peer) for peer in self.nominal[row]], members, row, gone)
                chosen = np.array([-1 if heir is None else heir for heir in heirs])
            moved = chosen != self.target[row]
            if moved.any():
                lost = moved & ((self.state[row] == FLYING) | (self.state[row] == READY) | (self.state[row] == BROKEN))
                self._give_back(np.array([row]), lost[None])
                self.state[row, moved], self.waiting[row, moved] = EMPTY, False
                self.target[row] = chosen


def simulate(
    shape: Shape,
    size: int,
    mixing: Mixing,
    conditions: Conditions,
    *,
    updates: float,
    seed: int = 0,
    seeds: int = 1,
    enough: float = 0.0,
) -> Course:
    """The course of `seeds` runs over so many updates of an average learner.

    Args:
        enough: stop early once every run's radius has come down to this share of the radius at the start.
    """
    gossip = Gossip(shape, size, mixing, conditions, seed=seed, seeds=seeds)
    times, measures = [0.0], [gossip.measure()]
    while gossip.now < updates - 1e-9 and not (measures[-1][0] <= enough).all():
        gossip.step()
        times.append(gossip.now)
        measures.append(gossip.measure())
    radius, drift, kept = (np.stack(rows) for rows in zip(*measures, strict=True))
    living = gossip.w[gossip.alive]
    return Course(
        np.array(times), radius, drift, kept, (float(living.min()), float(living.max())), gossip.lost, gossip.deaths
    )
