"""A3C's server and actor-learners over real gRPC, against plain A2C and against a slow oracle of the shared RMSProp."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest
import torch

from gala.plan import Address, plan
from gala.spec import parse
from gala_worker.algorithms.a2c import A2C
from gala_worker.algorithms.a3c_payload import PayloadLayout
from gala_worker.algorithms.rmsprop import SQUARE_AVERAGE
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.state import Counters, capture, restore
from ports import hold_port
from ranks import Agent, Rank
from waiting import PATIENCE_SECONDS, eventually

TOTAL = 4000


class Team:
    """The ranks of one A3C run on CartPole, in this process."""

    def __init__(self, loop: LoopThread, stack: contextlib.ExitStack, learners: int, **hyperparameters):
        self.loop, self.stack = loop, stack
        address = Address(gossip=f"127.0.0.1:{hold_port(stack)}", http="unused:1")
        document = {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {"name": "team"},
            "spec": {
                "algorithm": "A3C",
                "environment": {"id": "CartPole-v1", "simulators": 4},
                "learners": learners,
                "totalSteps": TOTAL,
                "seed": 3,
                "hyperparameters": {"learningRate": 1e-2, **hyperparameters},
                "gossip": {"peerTimeoutSeconds": 5},
            },
        }
        self.plan = plan(parse(document), address=lambda rank: address)
        self.incarnation = 0

    def agent(self) -> Agent:
        """Parameters as a rank has them at its start."""
        made = Agent(self.plan)
        self.stack.callback(made.close)
        return made

    def join(self, rank: int, counters: Counters | None = None, before=lambda member: None) -> Member:
        self.incarnation += 1
        member = Member(self.plan, rank, self.loop, incarnation=self.incarnation)
        member.counters = counters or member.counters
        self.stack.callback(member.close)
        member.algorithm.open()
        before(member)
        member.begin()
        return member


class Member(Rank):
    """One rank, whose look at the hub is steered."""

    def take_version(self, version: int) -> None:
        """Waits until these are the newest parameters that have come."""
        hub = self.algorithm._hub

        def come() -> bool:
            hub.request()
            return hub._attendance.ready is not None and hub._attendance.ready.version == version

        eventually(come)


@pytest.fixture
def team(loop_thread):
    with contextlib.ExitStack() as stack:
        yield lambda learners, **hyperparameters: Team(loop_thread, stack, learners, **hyperparameters)


# ------------------------------------------------------------------ oracles


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_one_actor_that_waits_for_each_application_makes_the_updates_of_plain_a2c(team, reduction):
    made = team(2, lossReduction=reduction, learningRateSchedule="linear", maxGradientNorm=0.5)
    server, actor = made.join(0), made.join(1)
    agent = made.agent()
    flat = agent.flat
    plain, collector, steps = (
        A2C(agent.policy, flat, made.plan.spec.hyperparameters),
        agent.collector(actor.setup.me.seed),
        0,
    )
    for update in range(1, 21):
        actor.until_step()
        applied = server.until_step()
        actor.take_version(update)
        rollout = collector.collect()
        expected = plain.update(rollout, steps / TOTAL)
        steps += rollout.num_steps
        assert applied.learning_rate == expected.learning_rate
        torch.testing.assert_close(server.flat.vector, flat.vector, atol=1e-5, rtol=1e-5)
        assert server.counters.progress == {1: steps}
        assert float(applied.loss.entropy) == pytest.approx(float(expected.loss.entropy), abs=1e-4)
    assert server.algorithm.stats().staleness_updates == 0
    moved = torch.linalg.vector_norm(flat.trainable - made.agent().flat.trainable)
    assert moved > 0.1  # there was something to agree on


def test_the_server_s_parameters_are_those_of_shared_rmsprop_in_the_order_of_arrival(team):
    """Several actor-learners at their own pace; the oracle is NumPy in float64, one element-wise formula per line."""
    made = team(4, maxGradientNorm=0.5, rmsPropEpsilon=1e-4, learningRateSchedule="linear")
    server = made.join(0)
    hyper, P = made.plan.spec.hyperparameters, len(server.flat.trainable)
    parameters = server.flat.trainable.double().numpy().copy()
    mean, variance, count = np.zeros(4), np.ones(4), 0.0
    square, steps, staleness = np.zeros(P), 0, []
    actors = [made.join(rank) for rank in (1, 2, 3)]
    stop = threading.Event()

    def act(member: Member) -> None:
        while not stop.is_set():
            member.step()

    threads = [threading.Thread(target=act, args=(actor,)) for actor in actors]
    for thread in threads:
        thread.start()
    take = server.algorithm._hub.take
    arrived = []

    def recorded(timeout):
        contribution = take(timeout)
        if contribution is not None:
            copy = np.frombuffer(bytes(contribution.payload), np.float32).astype(np.float64)
            arrived.append((contribution.rank, contribution.steps, contribution.version, copy))
        return contribution

    server.algorithm._hub.take = recorded
    try:
        for _ in range(60):
            server.until_step()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for update, (_, decisions, version, payload) in enumerate(arrived):
        gradient = payload[:P]
        gradient = gradient * min(1.0, hyper.max_gradient_norm / (np.sqrt((gradient**2).sum()) + 1e-6))
        square = hyper.rms_prop_decay * square + (1 - hyper.rms_prop_decay) * gradient**2
        rate = hyper.learning_rate * (1 - steps / TOTAL)
        parameters = parameters - rate * gradient / (np.sqrt(square) + hyper.rms_prop_epsilon)
        if (seen := payload[P]) > 0:
            (own, other), total = (count, seen), count + seen
            apart = payload[P + 1 : P + 5] - mean
            variance = (own * variance + other * payload[P + 5 : P + 9] + apart**2 * own * other / total) / total
            mean, count = mean + apart * other / total, total
        steps += decisions
        staleness.append(update - version)
    np.testing.assert_allclose(server.flat.trainable.double().numpy(), parameters, rtol=1e-3, atol=1e-4)
    normalisation = server.policy.normalisation
    np.testing.assert_allclose(normalisation.mean.double().numpy(), mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(normalisation.variance.double().numpy(), variance, rtol=1e-3, atol=1e-4)
    assert float(normalisation.count) == count > 60 * 20 / 2
    np.testing.assert_allclose(
        server.algorithm.optimizer_state[SQUARE_AVERAGE].double().numpy(), square, rtol=1e-3, atol=1e-7
    )
    assert {rank for rank, *_ in arrived} == {1, 2, 3}
    assert min(staleness) >= 0
    assert max(staleness) > 0  # asynchrony that nobody sees would prove nothing
    assert server.algorithm.stats().staleness_updates == round(sum(staleness) / len(staleness))
    assert server.counters.global_steps == steps


# ------------------------------------------------------------------ nobody waits without need


def test_an_actor_goes_on_while_its_gradients_wait_and_stops_only_without_credit(team):
    made = team(2)
    server, actor = made.join(0), made.join(1)
    for _ in range(3):
        assert actor.until_step() is not None
    assert actor.counters.updates == 3  # two wait at the server, one here
    began = time.monotonic()
    assert actor.step() is None
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    assert actor.counters.updates == 3
    decisions = actor.counters.steps
    for _ in range(3):
        server.until_step()
        actor.step()
    assert server.counters.progress == {1: decisions}


def test_an_actor_waits_for_the_first_parameters_and_says_so(team):
    made = team(2)
    actor = made.join(1)
    initial = actor.flat.vector.clone()
    assert actor.step() is None
    assert actor.algorithm.is_waiting
    assert torch.equal(actor.flat.vector, initial)
    server = made.join(0)
    assert actor.until_step() is not None
    eventually(lambda: not actor.algorithm.is_waiting)
    assert server.algorithm.stats().in_peers == (1,)
    assert actor.algorithm.stats().out_peers == (0,)


def test_a_server_without_actors_waits(team):
    server = team(2).join(0)
    assert server.step() is None
    assert server.algorithm.is_waiting
    assert server.counters.updates == 0


# ------------------------------------------------------------------ what must not be applied


GRADIENT, MOMENTS = slice(0, 9), -12  # weight, four means, four variances, three losses


@pytest.mark.parametrize(
    ("where", "value", "version", "steps", "noticed"),
    [
        (GRADIENT, float("nan"), 0, 20, lambda stats: stats.edges[0].refused),
        (GRADIENT, float("inf"), 0, 20, lambda stats: stats.edges[0].refused),
        (GRADIENT, 1e30, 0, 20, lambda stats: stats.skips),  # finite, but not its norm
        (GRADIENT, 1.0, 5, 20, lambda stats: stats.skips),  # made with parameters that do not exist
        (GRADIENT, 1.0, 0, 10**9, lambda stats: stats.skips),  # more decisions than any rollout has
        (MOMENTS, -1.0, 0, 20, lambda stats: stats.edges[0].refused),
        (MOMENTS, 0.5, 0, 20, lambda stats: stats.edges[0].refused),
        (MOMENTS, 1e9, 0, 20, lambda stats: stats.skips),  # would outweigh everything that is seen from then on
        (MOMENTS + 2, 1e30, 0, 20, lambda stats: stats.edges[0].refused),
        (MOMENTS + 8, -1e-3, 0, 20, lambda stats: stats.edges[0].refused),
    ],
    ids=["nan", "inf", "overflow", "future", "steps", "weight", "half", "outweighs", "mean", "variance"],
)
def test_a_contribution_that_cannot_be_applied_changes_nothing_and_is_counted(
    team, where, value, version, steps, noticed
):
    made = team(2)
    server, actor = made.join(0), made.join(1)
    before = server.flat.vector.clone()
    payload = np.zeros(PayloadLayout(server.policy).num_bytes // 4, np.float32)
    payload[where] = value
    hub = actor.algorithm._hub
    eventually(lambda: actor.algorithm._take(actor.counters, 1.0))
    assert hub.push([memoryview(payload).cast("B")], version=version, steps=steps, timeout=PATIENCE_SECONDS)
    eventually(lambda: server.step() or noticed(server.algorithm.stats()))
    assert noticed(server.algorithm.stats()) == 1
    assert torch.equal(server.flat.vector, before)
    assert (server.counters.updates, server.counters.global_steps) == (0, 0)
    assert float(server.algorithm.optimizer_state[SQUARE_AVERAGE].sum()) == 0.0
    actor.until_step()
    server.until_step()
    assert server.counters.updates == 1


# ------------------------------------------------------------------ comings, goings, the end


def test_the_run_ends_for_all_when_the_server_has_its_steps(team):
    made = team(3)
    server = made.join(0, Counters(updates=50, progress={1: TOTAL - 30}))
    actors = [made.join(1), made.join(2)]
    actors[0].until_step()
    assert actors[0].counters.steps == TOTAL - 30 + 20  # what this rank has done in all its lives
    server.until_step()
    actors[1].until_step()
    server.until_step()
    assert server.counters.global_steps >= TOTAL
    server.algorithm.saved()
    server.algorithm.close()
    for actor in actors:
        while actor.counters.global_steps < TOTAL:
            assert actor.algorithm._hub.finished
            assert not actor.algorithm.is_over  # the last parameters are still to be taken
            actor.step()
        assert actor.counters.progress == server.counters.progress


def test_a_gradient_that_nobody_takes_any_more_does_not_keep_an_actor_from_its_end(team):
    made = team(2)
    server, actor = made.join(0, Counters(updates=50, progress={1: TOTAL - 10})), made.join(1)
    actor.until_step()
    server.until_step()
    actor.until(lambda: actor.algorithm._unsent is not None)
    server.algorithm.saved()
    server.algorithm.close()
    actor.until(lambda: actor.algorithm.has_reached(actor.counters))
    assert actor.counters.progress == server.counters.progress


def test_nobody_is_told_of_an_end_that_the_server_could_not_save(team):
    made = team(2)
    server, actor = made.join(0, Counters(updates=50, progress={1: TOTAL - 10})), made.join(1)
    actor.until_step()
    server.until_step()
    assert server.counters.global_steps >= TOTAL
    server.algorithm.close()  # as when the disk is full: it will be back with an older checkpoint
    eventually(lambda: actor.algorithm.is_waiting)
    assert not actor.algorithm.is_over
    assert not actor.algorithm._hub.finished


def test_an_actor_whose_last_parameters_are_lost_knows_that_the_run_is_over(team):
    made = team(2)
    made.join(0, Counters(updates=50, progress={1: TOTAL - 30}))
    actor = made.join(1)
    actor.until_step()
    assert not actor.algorithm.is_over
    with actor.algorithm._hub._attendance.lock:  # a farewell without them, as when the stream broke on the way
        actor.algorithm._hub._attendance.finished = True
    assert actor.algorithm.is_over
    steps = actor.counters.steps
    assert actor.algorithm.step(actor.counters, measure=False) is None
    assert actor.counters.steps == steps


def test_a_server_that_comes_back_from_an_older_checkpoint_is_followed(team):
    made = team(2)
    server, actor = made.join(0), made.join(1)

    def train(updates: int) -> None:
        for _ in range(updates):
            actor.until_step()
            server.until_step()

    train(3)
    checkpoint = capture(server.flat, server.algorithm.optimizer_state, server.counters)
    train(4)
    server.algorithm.close()
    eventually(lambda: actor.algorithm.is_waiting)
    found = {}

    def start_there(member: Member) -> None:
        member.counters = restore(checkpoint, 0, member.flat, member.algorithm.optimizer_state)
        found["vector"] = member.flat.vector.clone()

    server = made.join(0, before=start_there)
    assert server.counters.updates == 3
    actor.take_version(3)
    assert actor.algorithm._take(actor.counters, 1.0)
    assert torch.equal(actor.flat.vector, found["vector"])
    assert actor.counters.global_steps == server.counters.global_steps
    train(2)
    assert server.counters.updates == 5
    assert actor.algorithm.stats().strangers == {}
