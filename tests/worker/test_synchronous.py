"""Synchronous A2C: n ranks are one worker with n times the simulators, and stay the same to the last bit.

The ranks of these tests are threads of one process, connected by real meetings and real process groups.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gala.plan import Address, RunPlan, plan
from gala.spec import parse
from gala_worker.algorithms.a2c import A2C
from gala_worker.algorithms.shared_statistics import SharedStatistics
from gala_worker.algorithms.synchronous import checksum
from gala_worker.flat import FlatState
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.model import ActorCritic
from ports import free_ports
from ranks import Agent, Rank

pytestmark = pytest.mark.timeout(200)

SIMULATORS = 4
PEER_TIMEOUT_SECONDS = 10.0
UID = "a-run"


def make_plan(
    ports: list[int],
    *,
    epoch: int = 0,
    normalise: bool = True,
    total: int = 10**9,
    snapshots: int | None = None,
    peer_timeout: float = PEER_TIMEOUT_SECONDS,
    **hyper: Any,
) -> RunPlan:
    document: dict[str, Any] = {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"name": "together"},
        "spec": {
            "algorithm": "A2C",
            "environment": {"id": "CartPole-v1", "simulators": SIMULATORS},
            "learners": len(ports),
            "totalSteps": total,
            "policy": {"hiddenSizes": [16], "normalizeObservations": normalise},
            "gossip": {"peerTimeoutSeconds": peer_timeout},
            "hyperparameters": {"learningRate": 3e-3, **hyper},
            "diagnostics": {"everyUpdates": snapshots},
        },
    }
    return plan(
        parse(document),
        epoch=epoch,
        uid=UID,
        address=lambda rank: Address(gossip=f"127.0.0.1:{ports[rank]}", http="127.0.0.1:1"),
    )


class Synchronous(Rank):
    """A rank that has begun."""

    def __init__(self, run: RunPlan, rank: int, loop: LoopThread, folder: Path, **options: Any) -> None:
        super().__init__(run, rank, loop, folder=folder, **options)
        self.algorithm.open()
        self.begin(seed=SIMULATORS * rank)

    def train(self, updates: int) -> None:
        """Until so many updates have been made."""
        deadline = time.monotonic() + 150
        while self.counters.updates < updates:
            assert time.monotonic() < deadline, f"rank {self.rank} is at {self.counters.updates} of {updates}"
            self.step(measure=self.counters.updates % 20 == 0)

    @property
    def events(self) -> list[str]:
        return [event["event"] for event in self.algorithm.events()]


def at_once(*jobs: Callable[[], object]) -> None:
    """Runs jobs in threads, and raises what they raise."""
    failures: list[BaseException] = []

    def guarded(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.fixture
def ranks(loop_thread: LoopThread, tmp_path: Path) -> Iterator[Callable[..., Synchronous]]:
    """Makes ranks; all are closed in the end."""
    made: list[Synchronous] = []

    def make(run: RunPlan, rank: int, **options: Any) -> Synchronous:
        made.append(Synchronous(run, rank, loop_thread, tmp_path, **options))
        return made[-1]

    yield make
    at_once(*(rank.close for rank in made))


def state(rank: Synchronous) -> list[Tensor]:
    return [rank.flat.vector, *rank.algorithm.optimizer_state.values()]


def assert_identical(*of: Synchronous) -> None:
    first, *others = of
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(state(first), state(other), strict=True))
        assert other.counters.progress == first.counters.progress
        assert other.counters.updates == first.counters.updates


# ---------------------------------------------------------------- mathematics


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_two_ranks_make_the_update_of_one_worker_with_twice_the_simulators(
    ranks: Callable[..., Synchronous], monkeypatch: pytest.MonkeyPatch, reduction: str
) -> None:
    # The likeliest actions, so that equal parameters act alike however the simulators are spread.
    monkeypatch.setattr(
        "gala_worker.model.distributions.Categorical.sample", lambda self, parameters, generator: self.mode(parameters)
    )
    run = make_plan(free_ports(2), normalise=False, lossReduction=reduction, rolloutLength=8)
    two = [ranks(run, 0), ranks(run, 1)]
    agent = Agent(run, simulators=2 * SIMULATORS)
    flat = agent.flat
    single = A2C(agent.policy, flat, run.spec.hyperparameters)
    collector = agent.collector(seed=0)
    start = flat.vector.clone()
    steps = 0
    unequal = False
    for update in range(1, 6):
        rollout = collector.collect()
        shares = rollout.valid.unflatten(1, (2, SIMULATORS)).sum((0, 2)).tolist()
        unequal |= shares[0] != shares[1]
        steps += rollout.num_steps
        single.update(rollout, 0.0)
        at_once(*(lambda rank=rank, update=update: rank.train(update) for rank in two))  # type: ignore[misc]
        for rank in two:
            torch.testing.assert_close(rank.flat.vector, flat.vector, rtol=1e-4, atol=2e-5)
            assert rank.counters.global_steps == steps
    agent.close()
    assert unequal, "no rank had dummy steps: the weights were not put to the test"
    assert float((flat.vector - start).norm()) > 0.01
    assert_identical(*two)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_merged_statistics_are_those_of_one_process_that_saw_everything(processes: int) -> None:
    generator = torch.Generator().manual_seed(1)

    def policy() -> ActorCritic:
        agent = Agent(make_plan([1]))
        agent.close()
        return agent.policy

    single, several = policy(), [policy() for _ in range(processes)]
    shared = [SharedStatistics(each) for each in several]
    for rollout in range(20):
        for statistics in shared:
            statistics.begin()
        for number, each in enumerate(several):
            seen = torch.randn(4 + number, 4, generator=generator) * torch.tensor([1.0, 0.1, 30.0, 1e-3]) + 7 + rollout
            each.observe(seen)
            single.observe(seen)
        summed = torch.zeros(shared[0].num_elements)
        for statistics in shared:
            part = torch.empty(statistics.num_elements)
            statistics.write(part)
            summed += part
        for statistics in shared:
            statistics.merge(summed, processes)
    expected = single.normalisation
    assert expected is not None
    for each in several:
        found = each.normalisation
        assert found is not None
        assert float(found.count) == float(expected.count)
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.variance, expected.variance, rtol=1e-3, atol=1e-3)
    assert checksum(FlatState(several[0], several[0].gossiped_buffers()).vector) == checksum(
        FlatState(several[-1], several[-1].gossiped_buffers()).vector
    )


def test_a_policy_that_does_not_normalise_has_nothing_to_merge() -> None:
    agent = Agent(make_plan([1], normalise=False))
    agent.close()
    assert SharedStatistics(agent.policy).num_elements == 0


# ---------------------------------------------------------------- together


def test_three_ranks_are_identical_after_a_hundred_and_fifty_updates_with_other_rollouts_each(
    ranks: Callable[..., Synchronous],
) -> None:
    run = make_plan(free_ports(3))
    three = [ranks(run, rank) for rank in range(3)]
    at_once(*(lambda rank=rank: rank.train(150) for rank in three))  # type: ignore[misc]
    assert_identical(*three)
    assert sum(three[0].counters.progress.values()) == three[0].counters.global_steps
    assert three[0].counters.global_steps > 150 * SIMULATORS * 5 * 3 * 0.8
    assert [rank.counters.steps for rank in three] == [rank.counters.progress[rank.rank] for rank in three]
    assert three[1].algorithm.stats().in_peers == (0, 2)


def test_one_rank_needs_no_group_and_makes_the_updates_of_a2c(ranks: Callable[..., Synchronous]) -> None:
    run = make_plan(free_ports(1))
    alone = ranks(run, 0)
    agent = Agent(run)
    flat = agent.flat
    single = A2C(agent.policy, flat, run.spec.hyperparameters)
    collector = agent.collector(seed=0)
    for update in range(20):
        single.update(collector.collect(), 0.0, measure_update=update % 20 == 0)
    agent.close()
    alone.train(20)
    assert torch.equal(alone.flat.vector, flat.vector)
    assert alone.algorithm.stats().in_peers == ()
    assert alone.events == []


def test_a_rank_that_has_gone_is_waited_for_and_comes_back_with_the_others_state(
    ranks: Callable[..., Synchronous],
) -> None:
    run = make_plan(free_ports(3))
    three = [ranks(run, rank) for rank in range(3)]
    at_once(*(lambda rank=rank: rank.train(30) for rank in three))  # type: ignore[misc]
    three[1].close()
    began = time.monotonic()
    for rank in (three[0], three[2]):
        while not rank.algorithm.is_waiting:
            assert rank.step() is None or rank.counters.updates <= 31
    assert time.monotonic() - began < PEER_TIMEOUT_SECONDS / 2, "a closed connection is noticed at once"
    # Its parameters are others, and it has counted nothing: it must take the survivors'.
    three[1] = ranks(run, 1, incarnation=2, seed=99)
    at_once(*(lambda rank=rank: rank.train(60) for rank in three))  # type: ignore[misc]
    assert_identical(*three)
    assert three[1].counters.progress[1] > 30 * SIMULATORS * 5 * 0.8
    assert three[0].events == ["assembled", "parted", "assembled"], "parameters that differ would part them again"


def test_a_rank_that_is_slower_than_the_peer_timeout_is_waited_for_once_it_has_said_so(
    ranks: Callable[..., Synchronous],
) -> None:
    run = make_plan(free_ports(2), peer_timeout=1.0)
    fast, slow = ranks(run, 0), ranks(run, 1)
    collect = slow.algorithm._collector.collect

    def slowly() -> object:
        time.sleep(1.6)  # the work of a simulator
        return collect()

    slow.algorithm._collector.collect = slowly
    at_once(lambda: fast.train(3), lambda: slow.train(3))
    assert fast.events == ["assembled", "parted", "assembled"]
    assert_identical(fast, slow)


def test_snapshots_hold_equal_parameters_and_the_gradient_of_the_own_shard(
    ranks: Callable[..., Synchronous], tmp_path: Path
) -> None:
    run = make_plan(free_ports(2), snapshots=5)
    two = [ranks(run, 0), ranks(run, 1)]
    at_once(*(lambda rank=rank: rank.train(12) for rank in two))  # type: ignore[misc]
    two[1].close()
    two[1] = ranks(run, 1, incarnation=2)  # joins at an update that is not its own
    at_once(*(lambda rank=rank: rank.train(16) for rank in two))  # type: ignore[misc]
    for rank in two:
        rank.algorithm.close()
    for version in (5, 10):
        first, second = (
            load_file(next(tmp_path.glob(f"learner-{rank}/**/snapshot-*-{version:012d}.safetensors")))
            for rank in (0, 1)
        )
        assert torch.equal(first["parameters"], second["parameters"])
        assert not torch.equal(first["gradient"], second["gradient"])


def test_rank_0_comes_back_too(ranks: Callable[..., Synchronous]) -> None:
    run = make_plan(free_ports(2))
    two = [ranks(run, 0), ranks(run, 1)]
    at_once(*(lambda rank=rank: rank.train(20) for rank in two))  # type: ignore[misc]
    kept = two[1].flat.vector.clone()
    two[0].close()
    while not two[1].algorithm.is_waiting:
        two[1].step()
    two[0] = ranks(run, 0, incarnation=2, seed=99)
    at_once(*(lambda rank=rank: rank.train(21) for rank in two))  # type: ignore[misc]
    assert_identical(*two)
    assert float((two[0].flat.vector - kept)[: len(two[0].flat.trainable)].norm()) < 1.0, "the survivor's state"


def test_an_update_that_only_one_rank_has_made_is_made_good(ranks: Callable[..., Synchronous]) -> None:
    run = make_plan(free_ports(2))
    two = [ranks(run, 0), ranks(run, 1)]
    at_once(*(lambda rank=rank: rank.train(10) for rank in two))  # type: ignore[misc]
    ahead = two[1]
    ahead.flat.trainable.add_(0.5)
    ahead.counters.updates += 1
    ahead.counters.progress[1] += 20
    for rank in two:
        rank.algorithm.set_plan(run)  # whatever the reason, they part
    at_once(*(lambda rank=rank: rank.train(12) for rank in two))  # type: ignore[misc]
    assert_identical(*two)


def test_parameters_that_differ_in_one_bit_are_noticed_and_made_equal(ranks: Callable[..., Synchronous]) -> None:
    run = make_plan(free_ports(2))
    two = [ranks(run, 0), ranks(run, 1)]
    at_once(*(lambda rank=rank: rank.train(10) for rank in two))  # type: ignore[misc]
    two[1].flat.vector.view(torch.int32)[3] += 1
    at_once(*(lambda rank=rank: rank.train(70) for rank in two))  # type: ignore[misc]
    assert_identical(*two)
    reasons = [event.get("reason", "") for event in two[0].algorithm.events()]
    assert any("differ" in reason for reason in reasons)


def test_a_new_epoch_is_begun_together(ranks: Callable[..., Synchronous]) -> None:
    ports = free_ports(3)
    old, new = make_plan(ports[:2]), make_plan(ports, epoch=1)
    three = [ranks(old, 0), ranks(old, 1)]
    at_once(*(lambda rank=rank: rank.train(10) for rank in three))  # type: ignore[misc]
    three[0].algorithm.set_plan(new)
    for _ in range(2):  # the other does not know of it yet
        assert three[0].step() is None
    three[1].algorithm.set_plan(new)
    three.append(ranks(new, 2))
    at_once(*(lambda rank=rank: rank.train(20) for rank in three))  # type: ignore[misc]
    assert_identical(*three)
    assert sorted(three[0].counters.progress) == [0, 1, 2]


def test_growing_from_one_rank_and_shrinking_to_one(ranks: Callable[..., Synchronous]) -> None:
    ports = free_ports(2)
    first = ranks(make_plan(ports[:1]), 0)
    first.train(5)
    both = make_plan(ports, epoch=1)
    first.algorithm.set_plan(both)
    second = ranks(both, 1)
    at_once(lambda: first.train(10), lambda: second.train(10))
    assert_identical(first, second)
    second.close()
    first.algorithm.set_plan(make_plan(ports[:1], epoch=2))
    first.train(15)
    assert not first.algorithm.is_waiting


def test_all_ranks_end_at_the_same_update(ranks: Callable[..., Synchronous]) -> None:
    run = make_plan(free_ports(2), total=1000)
    two = [ranks(run, 0), ranks(run, 1)]

    def train(rank: Synchronous) -> None:
        while rank.counters.global_steps < 1000:
            rank.step()
        rank.algorithm.close()

    at_once(*(lambda rank=rank: train(rank) for rank in two))  # type: ignore[misc]
    assert_identical(*two)
    assert two[0].counters.global_steps < 1000 + 2 * SIMULATORS * 5


def test_closing_amid_a_wait_takes_no_time(ranks: Callable[..., Synchronous]) -> None:
    run = make_plan(free_ports(2))
    two = [ranks(run, 0), ranks(run, 1)]
    at_once(*(lambda rank=rank: rank.train(5) for rank in two))  # type: ignore[misc]
    # Rank 1 does nothing more, as if it were frozen: its connections stay open.
    assert two[0].step() is None
    assert two[0].algorithm.is_waiting
    began = time.monotonic()
    two[0].algorithm.close()
    assert time.monotonic() - began < 2.0
