"""GalaRun: promised defaults, and what a user reads when something is wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gala import names, spec
from gala.checking import check_files
from gala.errors import SpecError
from gala.spec import Environment, GalaRun, Gossip, Metadata, RunSpec, Topology
from run_documents import FULL, MINIMAL, problems, with_spec


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
        api_version=names.API_VERSION,
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


@pytest.mark.parametrize("learners", [1, 2, 5])
@pytest.mark.parametrize("kind", ["Ring", "Exponential", "OnePeerExponential"])
def test_one_peer_is_right_for_any_number_of_learners(kind: str, learners: int) -> None:
    assert spec.parse(with_spec(learners=learners, topology={"type": kind, "peers": 1})).spec.topology.peers == 1


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
