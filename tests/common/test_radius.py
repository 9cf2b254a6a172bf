"""The epsilon-ball's bounds hold for every trace that learners can leave, and there is none where they would not."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gala import topology
from gala.report import propagation
from gala.report.propagation import Weights, propagate
from gala.report.radius import Graph, ball_of, delay_bound, radius, synchronous_bound, synchronous_until
from gala.report.traces import Life, Mixed, TraceError

P = 5
RING = Graph("Ring", None)


@dataclass(frozen=True, eq=False)
class InMemory:
    """A `traces.Snapshot` without a file."""

    vector: Any

    def parameters(self) -> Any:
        return self.vector


@dataclass
class Recorder:
    """A learner of any algorithm: a vector, and what it writes down about itself."""

    rank: int
    x: Any
    version: int = 0
    lives: list[dict[str, Any]] = field(default_factory=list)
    sent: dict[int, Any] = field(default_factory=dict)

    def start(self, version: int, x: Any) -> None:
        self.version, self.x = version, x.copy()
        self.sent = {}
        life = {"version": version, "norms": [], "mixed": [], "start": InMemory(x.copy()), "snapshots": {}}
        self.lives.append(life)

    def update(self, u: Any) -> None:
        self.x = self.x + u
        self.version += 1
        self.sent[self.version] = self.x.copy()
        self.lives[-1]["norms"].append(float(np.linalg.norm(u)))

    def mix(self, messages: list[tuple[Mixed, Any]], every: int) -> None:
        own = 1 - sum(mixed.weight for mixed, _ in messages)
        self.x = own * self.x + sum((mixed.weight * vector for mixed, vector in messages), np.zeros(P))
        self.lives[-1]["mixed"].append(tuple(mixed for mixed, _ in messages))
        if self.version % every == 0:
            self.lives[-1]["snapshots"][self.version] = InMemory(self.x.copy())

    def trace(self) -> tuple[Life, ...]:
        return tuple(
            Life(
                rank=self.rank,
                incarnation=i,
                **{**life, "norms": tuple(life["norms"]), "mixed": tuple(life["mixed"])},
            )
            for i, life in enumerate(self.lives)
        )


def learners(n: int) -> list[Recorder]:
    recorders = [Recorder(rank, np.zeros(P)) for rank in range(n)]
    for recorder in recorders:
        recorder.start(0, np.full(P, 3.0))
    return recorders


def random_update(rng: Any) -> Any:
    """Of any length, also none, and often in a direction that others share: the worst for the radius."""
    direction = np.eye(P)[0] if rng.random() < 0.4 else rng.normal(size=P)
    return direction * rng.choice([0.0, 0.1, 1.0, 20.0]) * rng.choice([-1, 1])


def synchronous(n: int, graph: Graph, rounds: int, seed: int, every: int = 1) -> list[Recorder]:
    rng = np.random.default_rng(seed)
    recorders = learners(n)
    for version in range(1, rounds + 1):
        for recorder in recorders:
            recorder.update(random_update(rng))
        for recorder in recorders:
            sources = ()
            if version % graph.every_updates == 0:
                sources = topology.in_peers(graph, recorder.rank, n, version // graph.every_updates)
            share = 1 / (1 + len(sources))
            messages = [(Mixed(j, version, share), recorders[j].sent[version]) for j in sources]
            recorder.mix(messages, every)
    return recorders


def asynchronous(n: int, steps: int, seed: int, every: int = 3, crashes: float = 0.0) -> list[Recorder]:
    """Anything goes: any learner updates next and mixes any messages, however old, with any weights."""
    rng = np.random.default_rng(seed)
    recorders = learners(n)
    saved = [(0, recorder.x) for recorder in recorders]
    pace = rng.dirichlet(np.full(n, 2.0))
    for _ in range(steps):
        i = int(rng.choice(n, p=pace))
        recorder = recorders[i]
        if rng.random() < crashes:
            donor = recorders[int(rng.integers(n))]
            recorder.start(*(saved[i] if rng.random() < 0.5 else (donor.version, donor.x)))
        recorder.update(random_update(rng))
        sources = [j for j in range(n) if j != i and recorders[j].sent and rng.random() < 0.5]
        shares = rng.dirichlet(np.ones(1 + len(sources)))[1:] if rng.random() < 0.3 else [1 / (1 + len(sources))] * n
        messages = []
        for j, share in zip(sources, shares, strict=False):
            version = int(rng.choice(sorted(recorders[j].sent)[-4:]))
            life = len(recorders[j].lives) - 1
            messages.append((Mixed(j, version, float(share), life), recorders[j].sent[version]))
        recorder.mix(messages, every)
        if rng.random() < 0.05:
            saved[i] = (recorder.version, recorder.x.copy())
    return recorders


def traces(recorders: list[Recorder]) -> dict[int, tuple[Life, ...]]:
    return {recorder.rank: recorder.trace() for recorder in recorders}


def below(measured: Any, bound: Any) -> bool:
    known = ~np.isnan(bound)
    return bool(np.all(measured[known] <= bound[known] * (1 + 1e-9) + 1e-9))


GRAPHS = st.sampled_from(
    [
        Graph("Ring", None),
        Graph("Ring", 2),
        Graph("Exponential", None),
        Graph("OnePeerExponential", None),
        Graph("Complete", None),
        Graph("Ring", None, 3),
        Graph("OnePeerExponential", None, 2),
    ]
)


@settings(max_examples=60, deadline=None)
@given(graph=GRAPHS, n=st.integers(2, 7), rounds=st.integers(1, 30), seed=st.integers(0, 2**16))
def test_in_the_synchronous_mode_both_bounds_hold_and_the_measured_one_is_tighter(
    graph: Graph, n: int, rounds: int, seed: int
) -> None:
    ball = ball_of(traces(synchronous(n, graph, rounds, seed)), graph)
    assert ball.versions.tolist() == list(range(1, rounds + 1))
    assert not ball.notes
    assert not np.isnan(ball.bound).any()
    assert not np.isnan(ball.synchronous_bound).any()
    assert below(ball.radius, ball.bound)
    assert below(ball.radius, ball.synchronous_bound)
    assert below(ball.bound, ball.synchronous_bound)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 6), steps=st.integers(1, 150), seed=st.integers(0, 2**16))
def test_with_delays_skips_and_changing_neighbours_the_radius_is_below_the_bound_at_every_point(
    n: int, steps: int, seed: int
) -> None:
    ball = ball_of(traces(asynchronous(n, steps, seed)), RING)
    assert not np.isnan(ball.bound).any()
    assert below(ball.radius, ball.bound)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 5), steps=st.integers(20, 150), seed=st.integers(0, 2**16), lost=st.integers(0, 6))
def test_where_learners_crash_and_traces_lose_their_ends_the_bounds_that_are_given_hold(
    n: int, steps: int, seed: int, lost: int
) -> None:
    recorders = asynchronous(n, steps, seed, crashes=0.05)
    for recorder in recorders:
        for life in recorder.lives[:-1]:
            kept = max(0, len(life["norms"]) - lost)
            del life["norms"][kept:], life["mixed"][kept:]
    ball = ball_of(traces(recorders), RING)
    assert below(ball.radius, ball.bound)
    assert not np.isnan(ball.bound).any() or ball.notes


def test_the_weights_reproduce_the_parameters() -> None:
    rng = np.random.default_rng(4)
    updates: dict[tuple[int, int], Any] = {}
    recorders = learners(3)
    for version in range(1, 41):
        for recorder in recorders:
            updates[recorder.rank, version] = rng.normal(size=P)
            recorder.update(updates[recorder.rank, version])
        for recorder in recorders:
            j = (recorder.rank + 1) % 3
            late = max(1, version - recorder.rank)
            recorder.mix([(Mixed(j, late, 0.3), recorders[j].sent[late])] if version % 2 else [], every=40)
    [(version, weights)] = list(propagate(traces(recorders), {40}))
    assert version == 40
    assert isinstance(weights, Weights)
    assert weights.remainder == 0
    u = np.stack([updates[int(j), int(g) + 1] for j, g in zip(weights.learners, weights.groups, strict=True)])
    np.testing.assert_allclose(3.0 + weights.matrix @ u, np.stack([r.x for r in recorders]), atol=1e-9)


def test_what_is_dropped_from_the_window_stays_in_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    recorders = synchronous(3, RING, 900, seed=1, every=300)
    exact = {v: delay_bound(w) for v, w in propagate(traces(recorders), {900}) if isinstance(w, Weights)}
    monkeypatch.setattr(propagation, "AGREED", 1e-2)
    rough = {v: w for v, w in propagate(traces(recorders), {900}) if isinstance(w, Weights)}
    assert rough[900].matrix.shape[1] < 1024
    assert rough[900].remainder > 0
    assert exact[900] <= delay_bound(rough[900]) * (1 + 1e-9)
    assert exact[900] <= delay_bound(rough[900]) <= exact[900] + 2 * rough[900].remainder


def test_the_rows_are_bounded_however_long_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propagation, "MAX_BYTES", 8 * 64 * 1024)
    recorders = synchronous(4, Graph("Exponential", None), 2000, seed=3, every=500)
    ball = ball_of(traces(recorders), Graph("Exponential", None))
    assert below(ball.radius, ball.bound)
    apart = learners(2)
    for _ in range(5000):
        apart[0].update(np.ones(P))
        apart[0].mix([], every=1)
    with pytest.raises(TraceError, match="too many updates apart"):
        list(propagate(traces(apart), {1}))


@pytest.mark.parametrize("graph", [Graph("Ring", None), Graph("Ring", None, 2), Graph("OnePeerExponential", None)])
@pytest.mark.parametrize("n", [3, 4, 6])
def test_the_synchronous_bound_is_the_sum_of_the_norms_of_the_products_of_mixing_matrices(graph: Graph, n: int) -> None:
    rng = np.random.default_rng(0)
    norms = rng.exponential(size=(17, n))
    matrices = [np.eye(n)] + [
        np.array(topology.mixing_matrix(graph, n, v // graph.every_updates))
        if v % graph.every_updates == 0
        else np.eye(n)
        for v in range(1, 18)
    ]
    for k in (1, 2, 9, 17):
        expected = 0.0
        for s in range(1, k + 1):
            product = np.eye(n)
            for v in range(s, k + 1):
                product = matrices[v] @ product
            expected += np.linalg.norm(product - 1 / n, 2) * np.linalg.norm(norms[s - 1])
        assert synchronous_bound(norms, graph, [k])[0] == pytest.approx(expected, rel=1e-9)


def test_the_synchronous_bound_of_a_ring_is_the_series_of_protocol_md() -> None:
    norms = np.ones((6, 4)) / 2  # ||G(s)|| = 1 for every s
    beta = math.cos(math.pi / 4)
    expected = [sum(beta ** (k - s) for s in range(k)) for k in range(1, 7)]
    np.testing.assert_allclose(synchronous_bound(norms, RING, range(1, 7)), expected)


def test_the_bound_is_reached_by_the_worst_updates() -> None:
    """Not only an upper bound: along the ring's slowest mode the radius is the synchronous bound."""
    n, rounds = 4, 12
    matrix = np.array(topology.mixing_matrix(RING, n))
    mode = np.cos(2 * math.pi * np.arange(n) / n)
    recorders = learners(n)
    for version in range(1, rounds + 1):
        # Along the mode where the mixings so far have turned it, so that all updates add up.
        turned = np.linalg.matrix_power(matrix, version - 1) @ mode
        turned /= np.linalg.norm(turned)
        for recorder in recorders:
            recorder.update(np.eye(P)[0] * turned[recorder.rank])
        for recorder in recorders:
            j = (recorder.rank - 1) % n
            recorder.mix([(Mixed(j, version, 0.5), recorders[j].sent[version])], every=1)
    ball = ball_of(traces(recorders), RING)
    np.testing.assert_allclose(ball.radius, ball.synchronous_bound, rtol=1e-9)
    np.testing.assert_allclose(ball.radius, ball.bound, rtol=1e-9)


def test_the_radius_is_the_frobenius_norm_around_the_mean() -> None:
    assert radius(np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0], [1.0, -3.0]])) == pytest.approx(math.sqrt(20))


def changed(recorders: list[Recorder], rank: int, **fields: Any) -> dict[int, tuple[Life, ...]]:
    found = traces(recorders)
    found[rank] = (dataclasses.replace(found[rank][0], **fields),)
    return found


def test_a_mixing_that_was_not_the_topology_s_ends_the_synchronous_bound() -> None:
    recorders = synchronous(4, RING, 20, seed=0)
    recorders[2].lives[0]["mixed"][9] = ()
    assert synchronous_until(traces(recorders), RING) == (10, "learner 2 did not mix as the topology says")
    late = synchronous(4, RING, 20, seed=0)
    late[1].lives[0]["mixed"][4] = (Mixed(0, 4, 0.5),)
    limit, why = synchronous_until(traces(late), RING)
    assert (limit, "another version" in why) == (5, True)
    ball = ball_of(traces(late), RING)
    assert np.isnan(ball.synchronous_bound[4:]).all()
    assert not np.isnan(ball.synchronous_bound[:4]).any()
    assert any("not synchronous from version 5 on" in note for note in ball.notes)
    free = ball_of(traces(late), RING, synchronous=False)
    assert np.isnan(free.synchronous_bound).all()
    assert not free.notes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 3}, "began with version 3"),
        ({"start": InMemory(np.zeros(P))}, "the same parameters"),
    ],
)
def test_learners_that_did_not_begin_together_have_no_synchronous_bound(change: dict[str, Any], words: str) -> None:
    limit, why = synchronous_until(changed(synchronous(3, RING, 5, seed=0), 1, **change), RING)
    assert limit == 0
    assert words in why


def test_a_message_that_no_trace_has_leaves_a_gap_in_the_bound_until_the_next_snapshots() -> None:
    recorders = learners(2)
    rng = np.random.default_rng(7)
    for version in range(1, 31):
        for recorder in recorders:
            recorder.update(rng.normal(size=P))
        for recorder in recorders:
            other = recorders[1 - recorder.rank]
            recorder.mix([(Mixed(other.rank, version, 0.5), other.sent[version])], every=5)
    recorders[0].lives[0]["mixed"][11] = (Mixed(1, 999, 0.5),)
    ball = ball_of(traces(recorders), RING)
    assert ball.versions.tolist() == [5, 10, 15, 20, 25, 30]
    assert np.isnan(ball.bound).tolist() == [False, False, True, False, False, False]
    assert any("version 999" in note for note in ball.notes)
    assert below(ball.radius, ball.bound)


@pytest.mark.parametrize(("kind", "value"), [("wire", "bfloat16"), ("mixing", "push-sum")])
def test_what_the_bound_does_not_cover_has_a_radius_only(kind: str, value: str) -> None:
    recorders = synchronous(3, RING, 5, seed=0)
    ball = ball_of({r: (dataclasses.replace(ls[0], **{kind: value}),) for r, ls in traces(recorders).items()}, RING)
    assert (ball.radius > 0).all()
    assert np.isnan(ball.bound).all()
    assert value in ball.notes[0]


def test_a_restarted_learner_s_messages_are_unknown_unless_they_name_the_life_they_are_from() -> None:
    recorders = asynchronous(3, 120, seed=5, crashes=0.05)
    assert any(len(recorder.lives) > 1 for recorder in recorders)
    named = ball_of(traces(recorders), RING)
    for recorder in recorders:
        for life in recorder.lives:
            life["mixed"] = [tuple(dataclasses.replace(m, incarnation=None) for m in ms) for ms in life["mixed"]]
    anonymous = ball_of(traces(recorders), RING)
    assert not np.isnan(named.bound).any()
    assert np.isnan(anonymous.bound).any()
    assert below(anonymous.radius, anonymous.bound)


@pytest.mark.parametrize(
    ("mixed", "words"),
    [
        ((Mixed(1, 1, math.nan),), "with which weights"),
        ((Mixed(1, 1, 1.2),), "no average"),
        ((Mixed(1, 1, -0.1),), "no average"),
    ],
)
def test_a_trace_with_weights_that_cannot_be_is_refused(mixed: tuple[Mixed, ...], words: str) -> None:
    recorders = synchronous(2, RING, 3, seed=0)
    recorders[0].lives[0]["mixed"][0] = mixed
    with pytest.raises(TraceError, match=words):
        ball_of(traces(recorders), RING)


def test_messages_from_the_future_are_refused() -> None:
    recorders = synchronous(2, RING, 6, seed=0)
    recorders[0].lives[0]["mixed"][0] = (Mixed(1, 3, 0.5),)
    recorders[1].lives[0]["mixed"][1] = (Mixed(0, 2, 0.5),)
    with pytest.raises(TraceError, match="future"):
        ball_of(traces(recorders), RING)
