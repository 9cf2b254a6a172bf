"""GalaRun: promised defaults, and what a user reads when something is wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gala import spec
from gala.checking import check_files
from gala.errors import SpecError
from gala.spec import Environment, GalaRun, Gossip, Metadata, RunSpec, Topology

MINIMAL: dict[str, Any] = {
    "apiVersion": "gala.dev/v1alpha1",
    "kind": "GalaRun",
    "metadata": {"name": "pong"},
    "spec": {"environment": {"id": "ALE/Pong-v5"}},
}


def with_spec(**more: Any) -> dict[str, Any]:
    return {**MINIMAL, "spec": {**MINIMAL["spec"], **more}}


def problems(document: Any) -> list[str]:
    with pytest.raises(SpecError) as error:
        spec.parse(document)
    return str(error.value).splitlines()


def test_the_promised_defaults() -> None:
    assert spec.parse(MINIMAL).document() == {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"name": "pong", "namespace": "default", "labels": {}, "annotations": {}},
        "spec": {
            "algorithm": "GALA-A2C",
            "environment": {"id": "ALE/Pong-v5", "simulators": 16, "preset": "paper", "kwargs": {}},
            "learners": 4,
            "totalSteps": 40_000_000,
            "seed": 1,
            "topology": {"type": "Ring"},
            "gossip": {"everyUpdates": 1, "precision": "float32", "mixing": "average", "peerTimeoutSeconds": 30.0},
            "hyperparameters": {
                "learningRate": 7e-4,
                "learningRateSchedule": "constant",
                "rolloutLength": 5,
                "discount": 0.99,
                "entropyCoefficient": 0.01,
                "valueCoefficient": 0.5,
                "lossReduction": "mean",
                "maxGradientNorm": 0.5,
                "rmsPropDecay": 0.99,
                "rmsPropEpsilon": 1e-5,
                "epochs": 4,
                "minibatches": 4,
                "clipRange": 0.1,
                "normalizeAdvantages": True,
                "adamEpsilon": 1e-5,
                "batchRollouts": 32,
                "vtraceRhoClip": 1.0,
                "vtraceCClip": 1.0,
            },
            "policy": {"network": "auto", "hiddenSizes": [64, 64], "recurrent": False},
            "precision": "auto",
            "worker": {
                "imagePullPolicy": "IfNotPresent",
                "gpus": 1,
                "resources": {"requests": {}, "limits": {}},
                "nodeSelector": {},
                "tolerations": [],
                "env": [],
            },
            "checkpoint": {"everySteps": 1_000_000, "keep": 2},
            "evaluation": {"everySteps": 1_000_000, "episodes": 10},
            "diagnostics": {"maxSnapshots": 200},
            "runPolicy": {"suspend": False, "backoffLimit": 6, "minLearners": 1, "cleanPodPolicy": "Running"},
        },
    }


def test_what_is_unset_by_default() -> None:
    run = spec.parse(MINIMAL).spec
    assert run.topology.peers is None
    assert run.gossip.max_staleness is None
    assert run.hyperparameters.gae_lambda is None
    assert run.hyperparameters.reward_clipping is None
    assert run.policy.normalize_observations is None
    assert run.checkpoint.volume is None
    assert run.run_policy.active_deadline_seconds is None
    assert run.run_policy.ttl_seconds_after_finished is None


FULL = with_spec(
    environment={"id": "package.module:Name-v0", "kwargs": {"a": None, "b": [1, 0.5, {"c": "d"}]}},
    learners=8,
    totalSteps=4e7,
    topology={"type": "Exponential", "peers": 2},
    gossip={"maxStaleness": 0},
    evaluation={"everySteps": None},
    policy={"hiddenSizes": [32]},
    worker={
        "resources": {"limits": {"cpu": 2, "memory": "4Gi"}},
        "env": [{"name": "A", "value": ""}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        "tolerations": [{"operator": "Exists"}],
        "podTemplate": {"spec": {"volumes": [{"name": "data", "emptyDir": {}}]}},
    },
    checkpoint={"volume": {"size": "10Gi"}},
)


@pytest.mark.parametrize("document", [pytest.param(MINIMAL, id="minimal"), pytest.param(FULL, id="full")])
def test_a_run_survives_being_written_and_read(document: dict[str, Any]) -> None:
    run = spec.parse(document)
    assert spec.parse(json.loads(json.dumps(run.document()))) == run
    assert RunSpec.model_validate(run.spec.model_dump(mode="json", by_alias=True)) == run.spec


def test_parse_leaves_the_document_as_it_was() -> None:
    document = copy.deepcopy(FULL)
    spec.parse(document)
    assert document == FULL


def test_null_is_the_default_except_where_it_means_something() -> None:
    run = spec.parse(with_spec(learners=None, topology=None, evaluation={"everySteps": None, "episodes": None}))
    assert run.spec.learners == 4
    assert run.spec.topology == Topology()
    assert run.spec.evaluation.every_steps is None
    assert run.spec.evaluation.episodes == 10
    assert run.document()["spec"]["evaluation"] == {"everySteps": None, "episodes": 10}


def test_an_integral_float_is_an_integer_and_an_integer_is_a_number() -> None:
    run = spec.parse(with_spec(totalSteps=4e7, gossip={"peerTimeoutSeconds": 5}))
    assert (type(run.spec.total_steps), run.spec.total_steps) == (int, 40_000_000)
    assert (type(run.spec.gossip.peer_timeout_seconds), run.spec.gossip.peer_timeout_seconds) == (float, 5.0)


def test_what_a_server_adds_is_dropped() -> None:
    document = {
        **MINIMAL,
        "metadata": {
            "name": "pong",
            "uid": "1",
            "resourceVersion": "2",
            "creationTimestamp": "now",
            "managedFields": [],
        },
        "status": {"state": "Running"},
    }
    assert spec.parse(document) == spec.parse(MINIMAL)


def test_models_are_built_by_their_python_names_and_cannot_be_changed() -> None:
    run = GalaRun(
        api_version=spec.API_VERSION,
        kind="GalaRun",
        metadata=Metadata(name="pong"),
        spec=RunSpec(environment=Environment(id="ALE/Pong-v5"), total_steps=100, gossip=Gossip(every_updates=2)),
    )
    assert run.document()["spec"]["totalSteps"] == 100
    with pytest.raises(ValidationError):
        run.spec.learners = 5  # type: ignore[misc]


def test_a_document_has_camel_case_only() -> None:
    assert problems(with_spec(total_steps=5)) == [
        "spec.total_steps: is not a field of GalaRun, got 5; did you mean totalSteps?"
    ]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(
            with_spec(learners=-3),
            "spec.learners: must be at least 1, got -3; give an integer from 1 to 1024 (default 4)",
            id="bound",
        ),
        pytest.param(
            with_spec(learners=2000),
            "spec.learners: must be at most 1024, got 2000; give an integer from 1 to 1024 (default 4)",
            id="upper bound",
        ),
        pytest.param(
            with_spec(seed=-1),
            "spec.seed: must be at least 0, got -1; give an integer from 0 to 2147483647 (default 1)",
            id="seed",
        ),
        pytest.param(
            with_spec(hyperparameters={"learningRate": 0}),
            "spec.hyperparameters.learningRate: must be greater than 0, got 0; give a number from above 0 to 1",
            id="exclusive bound",
        ),
        pytest.param(
            with_spec(hyperparameters={"learningRate": "7e-4"}),
            "spec.hyperparameters.learningRate: must be a number, got '7e-4'; remove the quotes",
            id="quoted number",
        ),
        pytest.param(
            with_spec(learners="four"),
            "spec.learners: must be an integer, got 'four'; give an integer from 1 to 1024 (default 4)",
            id="word for a number",
        ),
        pytest.param(
            with_spec(learners=2.5),
            "spec.learners: must be an integer, got 2.5; give an integer from 1 to 1024 (default 4)",
            id="half a learner",
        ),
        pytest.param(
            with_spec(learners=True),
            "spec.learners: must be an integer, got True; give an integer from 1 to 1024 (default 4)",
            id="truth value for a number",
        ),
        pytest.param(
            with_spec(runPolicy={"suspend": "yes"}),
            "spec.runPolicy.suspend: must be true or false, got 'yes'; write true or false (default false)",
            id="text for a truth value",
        ),
        pytest.param(
            with_spec(worker={"env": [{"name": "A", "value": 3}]}),
            "spec.worker.env[0].value: must be text, got 3; put it in quotes",
            id="number for text",
        ),
        pytest.param(with_spec(gossip=[]), "spec.gossip: must be a mapping, got []", id="list for a mapping"),
        pytest.param(
            with_spec(policy={"hiddenSizes": 64}), "spec.policy.hiddenSizes: must be a list, got 64", id="no list"
        ),
        pytest.param(
            with_spec(policy={"hiddenSizes": []}),
            "spec.policy.hiddenSizes: must have at least 1 entries, got []",
            id="empty list",
        ),
        pytest.param(
            with_spec(algorithm="GALA"),
            "spec.algorithm: must be one of GALA-A2C, GALA-PPO, A2C, A3C, IMPALA, got 'GALA'; did you mean GALA-PPO?",
            id="enum",
        ),
        pytest.param(
            with_spec(topology={"type": "ring"}),
            "spec.topology.type: must be one of Ring, Exponential,"
            " OnePeerExponential, Complete, got 'ring'; did you mean Ring?",
            id="enum in the wrong case",
        ),
        pytest.param(
            with_spec(learnrs=2), "spec.learnrs: is not a field of GalaRun, got 2; did you mean learners?", id="typo"
        ),
        pytest.param(
            with_spec(peers=2),
            "spec.peers: is not a field of GalaRun, got 2; did you mean spec.topology.peers?",
            id="elsewhere",
        ),
        pytest.param(
            {**MINIMAL, "learners": 2},
            "learners: is not a field of GalaRun, got 2; did you mean spec.learners?",
            id="not indented",
        ),
        pytest.param(
            with_spec(checkpoint={"xyz": 2}),
            "spec.checkpoint.xyz: is not a field of GalaRun, got 2; remove it;"
            " the fields here are everySteps, keep, volume",
            id="unknown",
        ),
        pytest.param(
            {**MINIMAL, "metadata": {"name": "pong", "lables": {}}},
            "metadata.lables: is not a field of GalaRun, got {}; did you mean labels?",
            id="typo in metadata",
        ),
        pytest.param(
            {**MINIMAL, "spec": {}},
            "spec.environment: is required; add it: What is learned, by its Gymnasium id",
            id="no environment",
        ),
        pytest.param(
            with_spec(environment={}),
            "spec.environment.id: is required; add it: A Gymnasium id, such as"
            " ALE/Pong-v5 or CartPole-v1; package.module:Name-v0 imports the module",
            id="no id",
        ),
        pytest.param(
            with_spec(environment={"id": "Pong v5"}),
            "spec.environment.id: must be a Gymnasium id such as"
            " CartPole-v1, ALE/Pong-v5 or package.module:Name-v0, got 'Pong v5'",
            id="bad id",
        ),
        pytest.param(
            {**MINIMAL, "metadata": {"name": "Pong"}},
            "metadata.name: must consist of lower-case letters, digits"
            " and inner dashes, and begin with a letter, got 'Pong'",
            id="name",
        ),
        pytest.param(
            {**MINIMAL, "metadata": {"name": "p" * 51}},
            f"metadata.name: must have at most 50 characters, got '{'p' * 51}'",
            id="long name",
        ),
        pytest.param(
            {"kind": "GalaRun"} | {k: v for k, v in MINIMAL.items() if k != "apiVersion"},
            "apiVersion: is required; add it: gala.dev/v1alpha1",
            id="no apiVersion",
        ),
        pytest.param(
            {**MINIMAL, "kind": "galarun"},
            "kind: must be GalaRun, got 'galarun'; did you mean GalaRun?",
            id="wrong kind",
        ),
        pytest.param(
            {**MINIMAL, "apiVersion": "gala.dev/v1", "spec": {"replicas": 1}},
            "apiVersion: must be gala.dev/v1alpha1, got 'gala.dev/v1'; did you mean gala.dev/v1alpha1?",
            id="wrong version only",
        ),
        pytest.param(
            with_spec(worker={"resources": {"limits": {"cpu": 0.5}}}),
            "spec.worker.resources.limits.cpu: must be a"
            " whole number, or a quantity in quotes, got 0.5; write 2, '0.5', 500m or 4Gi",
            id="quantity type",
        ),
        pytest.param(
            with_spec(worker={"resources": {"limits": {"memory": "4 GB"}}}),
            "spec.worker.resources.limits.memory:"
            " must be a quantity: digits with an optional suffix, such as 2, 500m or 4Gi, got '4 GB'; write 2,"
            " '0.5', 500m or 4Gi",
            id="quantity",
        ),
        pytest.param(
            with_spec(worker={"env": [{"name": "A"}, {"name": "B"}, {"name": "A"}]}),
            "spec.worker.env: must not have two entries with the same name, got 'A'",
            id="same variable twice",
        ),
        pytest.param(
            with_spec(learners=2, topology={"peers": 5}),
            "spec.topology.peers: must be less than spec.learners, got"
            " 5; lower it or raise spec.learners: a learner cannot send to itself",
            id="rule",
        ),
    ],
)
def test_a_problem_says_where_what_and_what_to_do(document: dict[str, Any], expected: str) -> None:
    assert problems(document) == [expected]


@pytest.mark.parametrize("field", ["hostNetwork", "hostPID", "hostIPC"])
def test_the_nodes_namespaces_are_refused_with_the_reason(field: str) -> None:
    (problem,) = problems(with_spec(worker={"podTemplate": {"spec": {field: True}}}))
    assert problem.startswith(f"spec.worker.podTemplate.spec.{field}: is not a field of GalaRun")
    assert "refused on purpose" in problem


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param({"volumes": [{"name": "a", "hostPath": {"path": "/"}}]}, id="hostPath"),
        pytest.param({"volumes": [{"name": "a", "projected": {}}]}, id="a service account's token"),
        pytest.param({"securityContext": {"privileged": True}}, id="privileged"),
        pytest.param({"securityContext": {"runAsUser": 0}}, id="root"),
        pytest.param({"containers": [{"name": "a"}]}, id="containers"),
        pytest.param({"initContainers": [{"name": "a"}]}, id="initContainers"),
        pytest.param({"automountServiceAccountToken": True}, id="token"),
    ],
)
def test_the_pod_template_gives_no_privileges(pod: dict[str, Any]) -> None:
    assert problems(with_spec(worker={"podTemplate": {"spec": pod}}))


@pytest.mark.parametrize("learners", [1, 2, 5])
@pytest.mark.parametrize("kind", ["Ring", "Exponential", "OnePeerExponential"])
def test_one_peer_is_right_for_any_number_of_learners(kind: str, learners: int) -> None:
    assert spec.parse(with_spec(learners=learners, topology={"type": kind, "peers": 1})).spec.topology.peers == 1


def test_all_problems_of_a_document_come_at_once() -> None:
    paths = [
        problem.partition(":")[0]
        for problem in problems(
            {
                **MINIMAL,
                "metadata": {"name": "Pong"},
                "spec": {
                    "environment": {"id": "x y"},
                    "learners": 2,
                    "seed": -1,
                    "nope": 1,
                    "topology": {"peers": 5},
                    "gossip": {"precision": "int8", "everyUpdates": 4, "maxStaleness": 1},
                    "checkpoint": {"volume": {}},
                },
            }
        )
    ]
    # Among them three rules across fields: other fields of their sections are bad, but not those that they read.
    assert sorted(paths) == [
        "metadata.name",
        "spec.checkpoint.volume",
        "spec.environment.id",
        "spec.gossip.maxStaleness",
        "spec.gossip.precision",
        "spec.nope",
        "spec.seed",
        "spec.topology.peers",
    ]


@pytest.mark.parametrize(("learners", "least", "valid"), [(3, 3, True), (3, 1, True), (3, 4, False), (1, 2, False)])
def test_a_run_cannot_need_more_learners_than_it_asks_for(learners: int, least: int, valid: bool) -> None:
    document = with_spec(learners=learners, runPolicy={"minLearners": least})
    if valid:
        assert spec.parse(document).spec.run_policy.min_learners == least
    else:
        (problem,) = problems(document)
        assert problem.startswith("spec.runPolicy.minLearners: must be at most spec.learners")


@pytest.mark.parametrize("least", [-21.0, 0, 475.5, None])
def test_the_least_return_is_any_number_or_none(least: float | None) -> None:
    assert spec.parse(with_spec(evaluation={"minReturn": least})).spec.evaluation.min_return == least


@pytest.mark.parametrize("least", ["high", True, float("nan"), 1e13])
def test_a_least_return_that_is_no_number_is_refused(least: object) -> None:
    (problem,) = problems(with_spec(evaluation={"minReturn": least}))
    assert problem.startswith("spec.evaluation.minReturn: must be")


def test_a_rule_waits_until_the_fields_that_it_reads_are_valid() -> None:
    assert [line.partition(":")[0] for line in problems(with_spec(learners=-3, topology={"peers": 5}))] == [
        "spec.learners"
    ]


@pytest.mark.parametrize("document", [None, 3, "GalaRun", [], {}])
def test_a_document_that_is_no_galarun_at_all(document: Any) -> None:
    assert problems(document)


def test_a_file_is_loaded_with_overrides(tmp_path: Path) -> None:
    file = tmp_path / "pong.yaml"
    file.write_text(
        "apiVersion: gala.dev/v1alpha1\nkind: GalaRun\nmetadata: {name: pong}\n"
        "spec:\n  environment: {id: ALE/Pong-v5}\n  hyperparameters: {learningRate: 7e-4}\n"
    )
    run = spec.load(file, ["spec.learners=8", "spec.topology.peers=7", "metadata.name=other"])
    assert (run.spec.learners, run.spec.topology.peers, run.metadata.name) == (8, 7, "other")
    assert run.spec.hyperparameters.learning_rate == 7e-4
    with pytest.raises(SpecError, match=r"^spec\.learners: must be at least 1, got 0"):
        spec.load(file, ["spec.learners=0"])


def test_files_are_judged_one_by_one(tmp_path: Path) -> None:
    good, bad, no_yaml = tmp_path / "good.yaml", tmp_path / "bad.yaml", tmp_path / "no.yaml"
    good.write_text(json.dumps(MINIMAL))
    bad.write_text(json.dumps(with_spec(learners=0, seed=-1)))
    no_yaml.write_text("a: [")
    verdicts = check_files([good, bad, no_yaml, tmp_path / "none.yaml"])
    assert [0 if verdict is None else len(verdict.problems) for verdict in verdicts.values()] == [0, 2, 1, 1]
    assert next(iter(verdicts)) == str(good)


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")), ids=lambda file: file.name
)
def test_the_examples_are_valid(file: Path) -> None:
    assert spec.load(file).metadata.name


NAMES = ["apiVersion", "kind", "metadata", "name", "spec", "environment", "id", "topology", "peers", "worker", "env",
         "podTemplate", "volumes", "checkpoint", "volume", "size", "value", "tolerations", "labels", "x"]  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=3) | st.just("gala.dev/v1alpha1"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(ANYTHING, ANYTHING, ANYTHING)
def test_no_document_gets_anything_but_a_run_or_a_spec_error(metadata: Any, more: Any, whole: Any) -> None:
    for document in (
        whole,
        {**MINIMAL, "metadata": metadata, "spec": more},
        with_spec(worker=more, checkpoint=metadata),
    ):
        try:
            run = spec.parse(document)
        except SpecError as error:
            assert all(problem.path and problem.message for problem in error.problems)  # noqa: PT017
        else:
            assert spec.parse(run.document()) == run
