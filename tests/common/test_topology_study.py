"""The simulation of gossip alone agrees with the theory where there is one, and the study runs from end to end."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from gala import topology

PAPER = Path(__file__).parents[2] / "benchmarks" / "paper"
SHAPES = ["Ring", "Exponential", "OnePeerExponential", "Complete"]


@pytest.fixture(scope="module")
def model():
    sys.path.insert(0, str(PAPER))
    try:
        yield importlib.import_module("topology_model")
    finally:
        sys.path.remove(str(PAPER))


def uneven(model, **changes):
    kept = {"pace_spread": 0.25, "jitter": 0.1, "delay": 0.2}
    return model.Conditions("uneven", **{**kept, **changes})


LOSS = {"loss": 0.1, "repair": 2.0}


@pytest.mark.parametrize("mixing", ["average", "push-sum"])
@pytest.mark.parametrize(
    ("kind", "size"), [("Ring", 5), ("Exponential", 8), ("OnePeerExponential", 6), ("Complete", 4)]
)
def test_in_lock_step_the_simulation_is_the_product_of_the_mixing_matrices(model, kind, size, mixing):
    shape = model.Shape(kind)
    gossip = model.Gossip(shape, size, mixing, model.SYNCHRONOUS, seed=0, seeds=1)
    expected = gossip.z.copy()
    for round in range(1, 13):
        gossip.step()
        expected = np.array(topology.mixing_matrix(shape, size, round)) @ expected
        np.testing.assert_allclose(gossip.z, expected, atol=1e-12)
        np.testing.assert_allclose(gossip.w, 1.0)


@pytest.mark.parametrize("peers", [1, 2, 3])
@pytest.mark.parametrize(("kind", "size"), [("Ring", 8), ("Exponential", 16), ("Exponential", 100)])
def test_in_lock_step_the_radius_decays_as_beta_to_the_k(model, kind, size, peers):
    shape = model.Shape(kind, peers)
    beta = topology.beta(shape, size)
    course = model.simulate(shape, size, "average", model.SYNCHRONOUS, updates=200.0, seeds=3, enough=1e-9)
    steps = np.arange(len(course.times))[:, None]
    assert (course.radius <= beta**steps * (1 + 1e-9)).all()  # never slower
    late = len(course.times) * 3 // 4
    slope = (course.radius[-1] / course.radius[late]) ** (1 / (len(course.times) - 1 - late))
    np.testing.assert_allclose(slope, beta, rtol=0.03)  # and in the end no faster


@pytest.mark.parametrize("size", [2, 8, 64, 1024])
def test_the_one_peer_exponential_graph_of_a_power_of_two_agrees_after_log2_n_rounds(model, size):
    course = model.simulate(model.Shape("OnePeerExponential"), size, "average", model.SYNCHRONOUS, updates=12.0)
    rounds = int(math.log2(size))
    assert course.radius[rounds].max() < 1e-12
    assert course.radius[rounds - 1].min() > 1e-3


@pytest.mark.parametrize("kind", SHAPES)
def test_push_sum_keeps_the_mean_at_every_moment_and_averaging_does_not(model, kind):
    drifts = {}
    for mixing in ("average", "push-sum"):
        course = model.simulate(model.Shape(kind), 8, mixing, uneven(model, **LOSS), updates=150.0, seeds=4)
        assert course.lost > 50
        assert course.radius[-1].max() < 5e-2
        drifts[mixing] = course.kept.max()
    assert drifts["push-sum"] < 1e-12
    assert course.drift[-1].max() < 5e-2  # and once they agree it is where they are
    assert drifts["average"] > 0.03


@pytest.mark.parametrize("mixing", ["average", "push-sum"])
@pytest.mark.parametrize("kind", SHAPES)
def test_learners_that_die_and_come_back_do_not_keep_the_others_from_agreeing(model, kind, mixing):
    conditions = uneven(model, death=0.01, away=10.0, **LOSS)
    course = model.simulate(model.Shape(kind), 8, mixing, conditions, updates=200.0, seeds=4)
    assert course.deaths > 20
    assert course.radius[-1].max() < 1e-2
    assert np.isfinite(course.drift).all()
    assert course.weights[0] > 0


def test_a_dead_learners_edges_lead_to_the_next_living_one_and_back(model):
    gossip = model.Gossip(model.Shape("Ring"), 5, "push-sum", model.SYNCHRONOUS, seed=0, seeds=2)
    gossip._die(7)
    assert gossip.target[6, 0] == 8
    assert gossip.target[1, 0] == 2  # the other seed is another world
    gossip._return(7)
    assert gossip.target[6, 0] == 7
    assert gossip.w[7] == 1.0


def test_the_same_seed_gives_the_same_course(model):
    courses = [
        model.simulate(model.Shape("Exponential"), 16, "push-sum", uneven(model, **LOSS), updates=20.0, seed=seed)
        for seed in (3, 3, 4)
    ]
    np.testing.assert_array_equal(courses[0].radius, courses[1].radius)
    assert (courses[0].radius[-1] != courses[2].radius[-1]).any()


def test_time_to_consensus_is_when_the_radius_stays_small(model):
    radius = np.array([[1.0, 1.0], [0.05, 0.5], [0.2, 0.3], [0.01, 0.2], [0.01, 0.2]])
    course = model.Course(np.arange(5.0), radius, radius, radius, (1.0, 1.0), 0, 0)
    np.testing.assert_array_equal(course.time_to(0.1), [3.0, np.nan])


@pytest.mark.timeout(240)  # matplotlib, on a busy machine
def test_the_study_runs_from_end_to_end_at_toy_size(model, tmp_path, monkeypatch, capsys):
    study = importlib.import_module("topology_study")
    options = ["--sizes", "4", "--updates", "12", "--seeds", "2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["topology_study.py", *options])
    study.main()
    assert "32 simulations" in capsys.readouterr().out
    rows = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert {(r["topology"], r["mixing"]) for r in rows} == {(k, m) for k in SHAPES for m in ("average", "push-sum")}
    assert {r["conditions"] for r in rows} == {"synchronous", "asynchronous", "lossy", "churning"}
    for name in ("radius", "consensus", "drift"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
