"""What a GalaRun may not say: every problem names the field, the value, the bound and the remedy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gala import spec
from gala.errors import SpecError
from run_documents import MINIMAL, problems, with_spec


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(
            with_spec(learners=-3),
            "spec.learners: must be at least 1, got -3; give an integer from 1 to 1024 (default 4)",
            id="bound",
        ),
        pytest.param(
            with_spec(worker={"nodeSelector": {"a b": "c"}}),
            "spec.worker.nodeSelector.a b: must be a label key such as example.com/gpu, got 'a b'",
            id="label key",
        ),
        pytest.param(
            {**with_spec(), "metadata": {"name": "pole", "annotations": {"a/b/c": "d"}}},
            "metadata.annotations.a/b/c: must be a label key such as example.com/gpu, got 'a/b/c'",
            id="annotation key",
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
            with_spec(learners="010"),
            "spec.learners: must be an integer, got '010'; write 10, or 0o10 if it is octal: a number does not begin"
            " with 0",
            id="a number that begins with 0",
        ),
        pytest.param(
            with_spec(seed="-08"),
            "spec.seed: must be an integer, got '-08'; write -8: a number does not begin with 0",
            id="a number that begins with 0 and is not octal",
        ),
        pytest.param(
            with_spec(learners="four"),
            "spec.learners: must be an integer, got 'four'; give an integer from 1 to 1024 (default 4)",
            id="word for a number",
        ),
        pytest.param(
            with_spec(environment={"id": "\ud800"}),
            "spec.environment.id: must be text of whole characters, not halves of them, got '\\ud800'",
            id="half a character",
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
            " must be a quantity: digits with an optional suffix, such as 2, 500m or 4Gi; an exponent has at most two"
            " digits, got '4 GB'; write 2, '0.5', 500m or 4Gi",
            id="quantity",
        ),
        pytest.param(
            with_spec(
                worker={
                    "podTemplate": {
                        "spec": {
                            "volumes": [{"name": "a", "emptyDir": {}}],
                            "volumeMounts": [{"name": "a", "mountPath": "/etc//gala"}],
                        }
                    }
                }
            ),
            "spec.worker.podTemplate.spec.volumeMounts[0].mountPath:"
            " must be an absolute path without a colon, and without //, /./ or /../ in it, got '/etc//gala'",
            id="two spellings of a path",
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
