"""The plan is complete, the same wherever it is made, and survives its way through plan.json."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gala import names, topology
from gala.errors import SpecError
from gala.plan import SEEDS_PER_LEARNER, Address, RunPlan, plan, simulator_seed
from gala.spec import GalaRun, parse


def a_run(**spec: Any) -> GalaRun:
    document = {"environment": {"id": "CartPole-v1"}, **spec}
    return parse({"apiVersion": "gala.dev/v1alpha1", "kind": "GalaRun", "metadata": {"name": "pole"}, "spec": document})


def local(rank: int) -> Address:
    return Address(gossip=f"127.0.0.1:{5000 + rank}", http=f"127.0.0.1:{6000 + rank}")


@st.composite
def runs(draw: st.DrawFn) -> GalaRun:
    kind = draw(st.sampled_from(["Ring", "Exponential", "OnePeerExponential", "Complete"]))
    return a_run(learners=draw(st.integers(1, 24)), seed=draw(st.integers(0, 2**31 - 1)), topology={"type": kind})


@given(runs(), st.integers(0, 5), st.uuids())
def test_the_plan_survives_its_file(run: GalaRun, epoch: int, uid: object) -> None:
    made = plan(run, epoch=epoch, uid=str(uid), address=local)
    assert RunPlan.from_json(made.to_json()) == made


@given(runs())
def test_two_launchers_make_the_same_plan_but_for_addresses(run: GalaRun) -> None:
    here, there = json.loads(plan(run, address=local).to_json()), json.loads(plan(run).to_json())
    for learner in here["learners"] + there["learners"]:
        del learner["address"]
    assert here == there


@given(runs())
def test_every_rank_is_planned_once_with_the_topologys_peers(run: GalaRun) -> None:
    made = plan(run)
    size = run.spec.learners
    assert made.ranks == tuple(range(size))
    for learner in made.learners:
        assert learner.name == f"pole-{learner.rank}"
        assert set(learner.out_peers) == {
            peer
            for round in range(topology.period(run.spec.topology, size))
            for peer in topology.out_peers(run.spec.topology, learner.rank, size, round)
        }
        for peer in learner.out_peers:
            assert learner.rank in made.learner(peer).in_peers


@given(st.integers(0, 2**31 - 1), st.sets(st.integers(0, names.MAX_LEARNERS - 1), min_size=2, max_size=2))
def test_no_two_learners_share_a_simulator_seed(seed: int, ranks: set[int]) -> None:
    first, second = (simulator_seed(seed, rank) for rank in ranks)
    assert abs(first - second) >= SEEDS_PER_LEARNER
    assert max(first, second) + SEEDS_PER_LEARNER <= 2**31


def test_runs_of_neighbouring_seeds_share_no_simulator_seed() -> None:
    starts = {simulator_seed(seed, rank) for seed in range(256) for rank in (0, names.MAX_LEARNERS - 1)}
    assert len(starts) == 512


def test_all_learners_start_from_one_point() -> None:
    assert plan(a_run(seed=7)).seed == 7


def test_a_learners_seed_does_not_depend_on_the_size_of_the_ring() -> None:
    small, large = plan(a_run(learners=2)), plan(a_run(learners=9))
    assert [learner.seed for learner in small.learners] == [learner.seed for learner in large.learners[:2]]


def test_in_a_cluster_a_rank_is_reached_under_the_runs_service() -> None:
    assert plan(a_run(learners=2)).learner(1).address == Address(
        gossip="pole-1.pole.default.svc:7070", http="pole-1.pole.default.svc:7071"
    )


def test_a_rank_outside_the_plan_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        plan(a_run(learners=2)).learner(2)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda document: document.pop("learners"), id="missing field"),
        pytest.param(lambda document: document.update(format=2), id="another format"),
        pytest.param(lambda document: document.update(epoch="soon"), id="not a number"),
        pytest.param(lambda document: document["spec"].update(learners=-1), id="bad spec"),
        pytest.param(lambda document: document["learners"].append(3), id="not a learner"),
        pytest.param(lambda document: document.update(learners=[]), id="no learners"),
        pytest.param(lambda document: document.update(epoch=math.inf), id="no bound"),
        pytest.param(lambda document: document.update(seed=-1), id="negative seed"),
        pytest.param(lambda document: document["learners"][0].update(seed=10**400), id="vast simulator seed"),
        pytest.param(lambda document: document["learners"][0].update(rank=10**400), id="vast rank"),
    ],
)
def test_a_damaged_plan_is_refused(damage: Any) -> None:
    document = json.loads(plan(a_run()).to_json())
    damage(document)
    with pytest.raises(SpecError):
        RunPlan.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "[" * 100_000])
def test_what_is_not_a_plan_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=names.PLAN_FILE):
        RunPlan.from_json(text)
