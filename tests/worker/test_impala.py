"""IMPALA's learner and actors over real gRPC in one process, with the steps of each called by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch

from gala import names
from gala.plan import Address, RunPlan, plan
from gala.spec import parse
from gala_worker.algorithms.a2c import Update
from gala_worker.algorithms.hub import HubClient, Identity, server
from gala_worker.algorithms.impala import Actor, Learner
from gala_worker.algorithms.impala_rollouts import Batch, RolloutLayout
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.state import capture, restore
from ports import hold_port
from ranks import Rank
from waiting import eventually

T, B = 4, 3


class Star:
    """A plan on a port that is held for as long as the test takes."""

    def __init__(self, loop: LoopThread, stack: ExitStack, **changes: Any) -> None:
        self.loop = loop
        self._stack = stack
        self._incarnation = 0
        address = Address(gossip=f"127.0.0.1:{hold_port(stack)}", http="unused:1")
        spec = {
            "algorithm": "IMPALA",
            "environment": {"id": "CartPole-v1", "simulators": B},
            "learners": 3,
            "totalSteps": 1_000_000,
            "hyperparameters": {"rolloutLength": T, "batchRollouts": B},
            "gossip": {"peerTimeoutSeconds": 2},
        }
        document = {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {"name": "star"},
            "spec": spec | changes,
        }
        self.plan: RunPlan = plan(parse(document), uid="a run", address=lambda rank: address)

    def rank(self, number: int) -> Rank:
        """A rank that has not begun; it is closed in the end."""
        self._incarnation += 1
        made = Rank(self.plan, number, self.loop, incarnation=self._incarnation)
        self._stack.callback(made.close)
        return made

    def begin(self, number: int) -> Rank:
        made = self.rank(number)
        made.algorithm.open()
        made.begin()
        return made


@pytest.fixture
def star(loop_thread: LoopThread) -> Iterator[Callable[..., Star]]:
    with ExitStack() as stack:
        yield lambda **changes: Star(loop_thread, stack, **changes)


def test_the_plan_gives_rank_0_the_learner_s_part_and_the_others_the_actors_(star: Callable[..., Star]) -> None:
    run = star()
    assert isinstance(run.rank(0).algorithm, Learner)
    assert isinstance(run.rank(1).algorithm, Actor)
    assert run.plan.keepers == run.plan.essential == (0,)


def test_what_actors_do_is_learned_from_counted_and_told_to_them(star: Callable[..., Star]) -> None:
    run = star()
    learner, one, two = run.begin(0), run.begin(1), run.begin(2)
    start = learner.flat.vector.clone()
    learner.until(lambda: set(learner.counters.progress) == {1, 2}, one, two)
    one.until(lambda: set(one.counters.progress) == {1, 2}, learner, two)
    assert learner.counters.updates >= 2
    assert learner.counters.steps == 0
    assert not torch.equal(learner.flat.vector, start)
    # What it counts has been learned from: no more than what was done.
    assert learner.counters.progress[1] <= one.counters.steps
    assert 0 < one.counters.global_steps <= learner.counters.global_steps
    assert learner.algorithm.stats().in_peers == (1, 2)
    assert one.algorithm.stats().out_peers == (0,)


def test_actors_act_with_what_the_learner_has_learned_and_its_statistics(star: Callable[..., Star]) -> None:
    run = star()
    learner, actor = run.begin(0), run.begin(1)
    start = actor.flat.vector.clone()
    published: dict[int, torch.Tensor] = {}

    def acts_with_what_was_learned() -> bool:
        published[learner.counters.updates] = learner.flat.vector.clone()
        return any(torch.equal(actor.flat.vector, vector) for updates, vector in published.items() if updates >= 3)

    learner.until(acts_with_what_was_learned, actor)
    assert not torch.equal(actor.flat.vector, start)
    normalisation = actor.setup.policy.normalisation
    assert normalisation is not None
    assert normalisation.count > 0


def test_the_lag_is_the_updates_between_acting_and_learning(star: Callable[..., Star]) -> None:
    run = star()
    learner, actor = run.begin(0), run.begin(1)
    learner.until(lambda: learner.counters.updates >= 1, actor)
    first = learner.algorithm.stats()
    assert (first.staleness_updates, first.staleness_max_updates) == (0, 0)
    # Two rollouts with the same parameters at least: the second one is learned from one update later.
    for _ in range(3):
        actor.step()
    learner.until(lambda: learner.counters.updates >= 3)
    assert learner.algorithm.stats().staleness_max_updates >= 1
    assert learner.algorithm.stats().staleness_seconds > 0


def test_newer_parameters_travel_while_a_rollout_is_packed(
    star: Callable[..., Star], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = star()
    learner, actor = run.begin(0), run.begin(1)
    assert isinstance(learner.algorithm, Learner)
    assert isinstance(actor.algorithm, Actor)
    hub, layout = actor.algorithm._hub, actor.algorithm._layout
    learner.until(lambda: learner.counters.updates >= 1, actor)

    def publish() -> None:
        learner.counters.updates += 1
        learner.algorithm.publish(learner.counters)
        eventually(lambda: hub.has_news)

    if not hub.has_news:
        publish()
    packed = []

    def encode(batch: Batch) -> list[memoryview]:
        publish()
        packed.append(batch)
        return RolloutLayout.encode(layout, batch)

    monkeypatch.setattr(layout, "encode", encode)
    actor.step()
    assert packed


def test_a_batch_whose_gradient_is_no_number_changes_nothing_and_does_not_count(
    star: Callable[..., Star], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = star()
    learner, actor = run.begin(0), run.begin(1)
    before, update = learner.flat.vector.clone(), learner.algorithm._learner.update

    def spoilt(batch: Batch, *args: Any, **options: Any) -> Update:
        made: Update = update(batch._replace(rewards=batch.rewards.fill_(math.inf)), *args, **options)
        return made

    with monkeypatch.context() as patched:
        patched.setattr(learner.algorithm._learner, "update", spoilt)
        learner.until(lambda: learner.algorithm.stats().skips, actor)
    assert torch.equal(learner.flat.vector, before)
    assert (learner.counters.updates, learner.counters.global_steps) == (0, 0)
    learner.until(lambda: learner.counters.updates >= 2, actor)


def test_an_actor_whose_plan_has_fewer_steps_than_the_learner_s_goes_on(star: Callable[..., Star]) -> None:
    run = star(totalSteps=50)
    learner, actor = run.begin(0), run.begin(1)
    learner.algorithm.plan = replace(run.plan, spec=run.plan.spec.model_copy(update={"total_steps": 10**6}))
    actor.until(lambda: actor.counters.global_steps >= 50, learner)
    assert not actor.algorithm.has_reached(actor.counters)


def test_an_update_waits_for_whole_contributions_enough(star: Callable[..., Star]) -> None:
    run = star(hyperparameters={"rolloutLength": T, "batchRollouts": 2 * B + 1})
    learner, actor = run.begin(0), run.begin(1)
    learner.until(lambda: learner.counters.updates >= 1, actor)
    # Nine rollouts, three contributions, of which a few decisions may be autoreset's.
    assert 3 * T * B - 2 * B <= learner.counters.global_steps <= 3 * T * B


def test_at_the_end_the_actors_hear_of_it(star: Callable[..., Star], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FINISH_SECONDS", 1.0)  # rank 2 of the plan never comes
    run = star(totalSteps=50)
    learner, actor = run.begin(0), run.begin(1)
    learner.until(lambda: learner.counters.global_steps >= 50, actor)
    learner.algorithm.saved()
    learner.algorithm.close()
    actor.until(lambda: actor.counters.global_steps >= 50)
    assert actor.counters.global_steps == learner.counters.global_steps


def test_a_rollout_that_nobody_takes_any_more_does_not_keep_an_actor_from_its_end(
    star: Callable[..., Star], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "FINISH_SECONDS", 1.0)
    run = star(totalSteps=50)
    learner, actor = run.begin(0), run.begin(1)
    learner.until(lambda: learner.counters.global_steps >= 50, actor)
    actor.until(lambda: actor.algorithm._unsent is not None)
    learner.algorithm.saved()
    learner.algorithm.close()
    actor.until(lambda: actor.algorithm.has_reached(actor.counters))
    assert actor.counters.global_steps == learner.counters.global_steps


def test_an_actor_or_learner_without_the_other_waits(star: Callable[..., Star]) -> None:
    run = star()
    actor = run.begin(1)
    assert actor.step() is None
    assert actor.algorithm.is_waiting
    assert actor.counters.steps == 0
    learner = run.begin(0)
    assert learner.algorithm.is_waiting
    updates = learner.counters.updates
    assert learner.step() is None
    assert learner.counters.updates == updates
    learner.until(lambda: learner.counters.updates > 0, actor)
    assert not learner.algorithm.is_waiting


def test_an_actor_that_dies_is_replaced_and_the_learner_goes_on(star: Callable[..., Star]) -> None:
    run = star()
    learner, actor = run.begin(0), run.begin(1)
    learner.until(lambda: learner.counters.progress.get(1, 0) > 0, actor)
    before = learner.counters.progress[1]
    actor.algorithm.close()
    successor = run.begin(1)
    learner.until(lambda: learner.counters.progress[1] > before + 5 * T * B, successor)
    # It goes on counting where its predecessor had been heard of.
    assert successor.counters.steps >= before


def test_a_learner_that_comes_back_from_its_checkpoint_is_followed_also_backwards(star: Callable[..., Star]) -> None:
    run = star()
    learner, actor = run.begin(0), run.begin(1)
    learner.until(lambda: learner.counters.updates >= 2, actor)
    kept = capture(learner.flat, learner.algorithm.optimizer_state, learner.counters, torch.Generator())
    learner.until(lambda: learner.counters.updates >= 6, actor)
    learner.algorithm.close()
    successor = run.rank(0)
    successor.counters = restore(kept, 0, successor.flat, successor.algorithm.optimizer_state)
    assert successor.counters.updates < learner.counters.updates
    successor.algorithm.open()
    successor.begin()
    updates = successor.counters.updates
    successor.until(lambda: successor.counters.updates >= updates + 3, actor)
    # Nothing that was made for the predecessor was taken for the successor's.
    assert successor.algorithm.stats().skips == 0
    actor.until(lambda: actor.counters.global_steps <= successor.counters.global_steps, successor)


class Hostile:
    """An actor of its own design, that sends what it likes."""

    def __init__(self, run: Star, learner: Rank) -> None:
        assert isinstance(learner.algorithm, Learner)
        self.layout = learner.algorithm._layout
        schema = learner.flat.schema
        self.client = HubClient(
            run.plan,
            Identity(2, 1_000, schema.hash, schema.num_elements),
            loop=run.loop,
            contribution_bytes=self.layout.num_bytes,
        )
        self.client.start()
        assert self.client.latest(30.0) is not None

    def push(self, payload: bytes, *, version: int = 0, steps: int = T * B) -> None:
        assert self.client.push([payload], version=version, steps=steps, timeout=30.0)


def test_hostile_rollouts_change_nothing_and_the_others_are_served(star: Callable[..., Star]) -> None:
    run = star()
    learner, actor = run.begin(0), run.begin(1)
    hostile = Hostile(run, learner)
    good = bytearray(hostile.layout.num_bytes)
    valid = next(field for field in hostile.layout._fields if field.name == "valid")
    good[valid.offset : valid.offset + valid.num_bytes] = b"\1" * valid.num_bytes
    try:
        start = learner.flat.vector.clone()
        hostile.push(b"\xff" * len(good))  # neither numbers nor flags
        hostile.push(bytes(good), version=10**9)  # from the future
        hostile.push(bytes(good), steps=10**12)  # it claims to have finished the run
        learner.until(lambda: learner.algorithm.stats().skips >= 2)
        assert learner.counters.updates == 0
        assert learner.counters.progress == {}
        assert torch.equal(learner.flat.vector, start)
        refused = {edge.peer: edge.refused for edge in learner.algorithm.stats().edges if edge.direction == "in"}
        assert refused[2] == 1  # by the hub, before the learner saw it
        learner.until(lambda: learner.counters.progress.get(1, 0) > 0, actor)
        assert learner.counters.progress.keys() == {1}
    finally:
        hostile.client.close()


@pytest.mark.parametrize("recurrent", [False, True])
def test_recurrent_policies_take_their_memory_along(star: Callable[..., Star], recurrent: bool) -> None:
    run = star(policy={"recurrent": recurrent})
    learner, actor = run.begin(0), run.begin(1)
    learner.until(lambda: learner.counters.updates >= 2, actor)
    assert learner.algorithm.stats().skips == 0
    assert ("state" in {field.name for field in learner.algorithm._layout._fields}) is recurrent


def test_the_optimiser_s_statistics_are_the_learner_s_alone(star: Callable[..., Star]) -> None:
    run = star()
    assert list(run.rank(0).algorithm.optimizer_state)
    assert not run.rank(1).algorithm.optimizer_state
    assert run.plan.learner(0).role == names.ROLE_LEARNER
