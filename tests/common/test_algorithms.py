"""Roles, peers, keepers and defaults: what a plan makes of spec.algorithm."""

from __future__ import annotations

from typing import Any

import pytest

from gala import crd, names, spec
from gala.algorithms import ALGORITHMS
from gala.errors import SpecError
from gala.plan import RunPlan, plan
from gala.spec import GalaRun


def run(**changes: Any) -> GalaRun:
    return spec.parse(
        {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {"name": "x"},
            "spec": {"environment": {"id": "CartPole-v1"}, "learners": 3, **changes},
        }
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_of_the_spec_has_facts_and_its_plan_survives_plan_json(algorithm: str) -> None:
    made = plan(run(algorithm=algorithm))

    assert RunPlan.from_json(made.to_json()) == made
    assert [learner.role for learner in made.learners] == [ALGORITHMS[algorithm].role(rank) for rank in range(3)]


def test_the_spec_knows_no_algorithm_without_facts() -> None:
    (version,) = crd.definition()["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["algorithm"]

    assert set(schema["enum"]) == set(ALGORITHMS)


@pytest.mark.parametrize("algorithm", ["GALA-A2C", "GALA-PPO"])
def test_gossip_has_no_special_rank_and_the_topologys_peers(algorithm: str) -> None:
    made = plan(run(algorithm=algorithm))

    assert {learner.role for learner in made.learners} == {names.ROLE_ACTOR_LEARNER}
    assert [learner.out_peers for learner in made.learners] == [(1,), (2,), (0,)]
    assert (made.keepers, made.essential) == ((0, 1, 2), ())


def test_synchronous_a2c_needs_everybody() -> None:
    made = plan(run(algorithm="A2C"))

    assert [learner.in_peers for learner in made.learners] == [(1, 2), (0, 2), (0, 1)]
    assert (made.keepers, made.essential) == ((0, 1, 2), (0, 1, 2))


@pytest.mark.parametrize(
    ("algorithm", "centre", "member"), [("A3C", "server", "actor-learner"), ("IMPALA", "learner", "actor")]
)
def test_a_centre_is_rank_0_and_everybody_is_its_peer(algorithm: str, centre: str, member: str) -> None:
    made = plan(run(algorithm=algorithm))

    assert [learner.role for learner in made.learners] == [centre, member, member]
    assert [learner.in_peers for learner in made.learners] == [(1, 2), (0,), (0,)]
    assert [learner.out_peers for learner in made.learners] == [(1, 2), (0,), (0,)]
    assert (made.keepers, made.essential) == ((0,), (0,))


@pytest.mark.parametrize("algorithm", ["A3C", "IMPALA"])
def test_a_centre_alone_is_refused_since_it_has_no_simulators(algorithm: str) -> None:
    with pytest.raises(SpecError, match=r"spec\.learners: must be at least 2 for this algorithm, got 1"):
        run(algorithm=algorithm, learners=1)


def test_hyperparameters_that_are_not_given_are_the_algorithms_own() -> None:
    impala = run(algorithm="IMPALA", hyperparameters={"rolloutLength": 10, "learningRate": None}).spec.hyperparameters
    a2c = run(algorithm="A2C").spec.hyperparameters

    assert (impala.rollout_length, impala.learning_rate, impala.max_gradient_norm) == (10, 6e-4, 40.0)
    assert (impala.value_coefficient, a2c.value_coefficient) == (0.25, 0.5)
    assert (a2c.rollout_length, a2c.learning_rate, a2c.max_gradient_norm) == (5, 7e-4, 0.5)


def test_what_depends_on_the_algorithm_has_no_default_in_the_definition() -> None:
    """Else an API server would fill in A2C's numbers before anybody could ask for the algorithm's."""
    (version,) = crd.definition()["spec"]["versions"]
    spec_schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    fields = spec_schema["hyperparameters"]["properties"]

    for name in ("learningRate", "learningRateSchedule", "rolloutLength", "gaeLambda", "maxGradientNorm"):
        assert "default" not in fields[name]
        assert "nullable" not in fields[name]
    assert fields["discount"]["default"] == 0.99


def test_a_minibatch_without_a_decision_is_refused() -> None:
    with pytest.raises(SpecError, match="minibatches: must be at most rolloutLength x simulators"):
        run(
            algorithm="GALA-PPO",
            environment={"id": "CartPole-v1", "simulators": 1},
            hyperparameters={"rolloutLength": 2, "minibatches": 3},
        )
