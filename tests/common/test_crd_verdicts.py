"""An API server and `gala validate` give the same verdict on the same document.

`api_server` is a small, independent reading of what an API server does with a custom resource: strict field
validation, pruning of nulls, defaults, the structural schema, then CEL (through cel-python). It knows only the CRD;
`gala.spec.parse` knows only the models.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api_server import ApiServer, compiled
from gala import crd, spec
from gala.errors import SpecError

API_SERVER = ApiServer(crd.definition())
MINIMAL: dict[str, Any] = {
    "apiVersion": "gala.dev/v1alpha1",
    "kind": "GalaRun",
    "metadata": {"name": "pong"},
    "spec": {"environment": {"id": "ALE/Pong-v5"}},
}
WORDS = ["a", "A", "", "pong", "a.b/c", "ALE/Pong-v5", "GALA_X", "gala-x", "gala.dev/x", "nvidia.com/gpu", "500m",
         "4Gi", "Exists", "-1", "7e-4", "a\n", "/data", "/a:b", "x" * 64, "x" * 260, "ü", "Ring"]  # fmt: skip
ODD = st.sampled_from([None, True, 0, 1, -1, 2.0, 0.5, "", "a", "1", [], {}, [None], {"a": None}])
JSON = st.recursive(st.sampled_from([None, True, 1, 0.5, "a"]), lambda inner: st.dictionaries(st.just("k"), inner))


def rarely(unusual: st.SearchStrategy[Any], usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    # 17, because Hypothesis likes to draw the ends of a range.
    return st.integers(0, 29).flatmap(lambda luck: unusual if luck == 17 else usual)


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values around what a schema accepts: mostly just inside its bounds, now and then outside, or of another type."""
    return rarely(ODD, _usual(schema))


def _usual(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    kind = schema.get("type", "quantity")
    nothing = [None] * 4 if schema.get("nullable") else []
    if "enum" in schema:
        return st.sampled_from([*schema["enum"], *schema["enum"], schema["enum"][0].lower()])
    if kind == "quantity":
        return st.sampled_from([0, 2, "2", "500m", "4Gi", ".5", "1e3", "1e100", "+1", 1.0, "4 Gi", -1, "-1", 0.5])
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", 0), schema.get("maximum", 10)
        inside = [low, low + 1, low + 3, high - 1, high, float(high)]
        return st.sampled_from([*inside, *inside, *inside, low - 1, high + 1, low + 0.5, *nothing])
    if kind == "boolean":
        return st.booleans()
    if kind == "string":
        fitting = [word for word in WORDS if not list(API_SERVER._schema(word, schema, ""))]
        return st.sampled_from([*fitting, *fitting, *fitting, *fitting, *WORDS])
    if kind == "array":
        return st.lists(values(schema["items"]), max_size=3)
    if "properties" in schema:
        return objects(schema)
    inner = values(schema["additionalProperties"]) if "additionalProperties" in schema else JSON
    return st.dictionaries(st.sampled_from(["a", "b", "cpu", "nvidia.com/gpu", "gala.dev/x"]), inner, max_size=2)


def objects(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Few fields at a time, so that a document is as often acceptable as not."""
    fields = {name: values(field) for name, field in schema["properties"].items()}
    names = st.lists(st.sampled_from(sorted(fields)), unique=True, max_size=3)
    chosen = names.flatmap(lambda some: st.fixed_dictionaries({name: fields[name] for name in some}))
    required = st.fixed_dictionaries({name: fields[name] for name in schema.get("required", [])})
    typo = rarely(st.just({"nmae": 1}), st.just({}))
    return st.tuples(required, chosen, typo).map(lambda parts: parts[0] | parts[1] | parts[2])


SPEC = API_SERVER.schema["properties"]["spec"]
RINGS = st.fixed_dictionaries(
    {
        "learners": st.sampled_from([1, 2, 3, 4, 5, 8, 9, 512, 513, 1024]),
        "topology": st.fixed_dictionaries(
            {"type": st.sampled_from(["Ring", "Exponential", "OnePeerExponential", "Complete"])},
            optional={"peers": st.sampled_from([1, 2, 3, 4, 7, 8, 9, 10, 11, 1023, None])},
        ),
    }
)
DOCUMENTS = {
    **{name: st.fixed_dictionaries({name: values(field)}) for name, field in SPEC["properties"].items()},
    "topology and learners": RINGS,
    "everything": objects(SPEC),
}
NAMES = st.sampled_from(["pong", "p", "p" * 50, "p" * 51, "1a", "a1", "Pong", "a-", "a.b", "a_b", "a\n", "ü"])


def both(document: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The problems that an API server finds, and those that Python finds."""
    try:
        spec.parse(document)
    except SpecError as error:
        return API_SERVER.create(document), str(error).splitlines()
    return API_SERVER.create(document), []


@pytest.mark.timeout(240)  # seconds of computing; machines that run the whole suite at once are slow
@pytest.mark.parametrize("part", DOCUMENTS)
def test_python_and_the_api_server_accept_and_refuse_the_same_documents(part: str) -> None:
    verdicts: list[bool] = []
    for rule in rules(API_SERVER.schema):
        compiled(rule["rule"])  # raises the recursion limit, which hypothesis would not like to see

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(DOCUMENTS[part])
    def agree(fields: dict[str, Any]) -> None:
        server, python = both(with_spec(fields))
        assert bool(server) == bool(python), f"API server: {server}, Python: {python}"
        verdicts.append(not server)

    agree()
    # Neither side may agree by refusing everything or nothing.
    assert set(verdicts) == {True, False}


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(NAMES)
def test_python_and_the_api_server_agree_on_names(name: str) -> None:
    server, python = both({**MINIMAL, "metadata": {"name": name}})
    assert bool(server) == bool(python)


def claim_with(**metadata: Any) -> dict[str, Any]:
    """Of a volume that is made for each pod."""
    template = {"metadata": metadata, "spec": {"resources": {"requests": {"storage": "1Gi"}}}}
    volume = {"name": "a", "ephemeral": {"volumeClaimTemplate": template}}
    return {"worker": {"podTemplate": {"spec": {"volumes": [volume]}}}}


@pytest.mark.parametrize(
    ("quantity", "accepted"),
    [("1e99", True), ("1E-99", True), ("1e+5", True), ("1e100", False), ("1e9999999", False), ("1e-100", False)],
)
@pytest.mark.parametrize("part", ["requests", "limits"])
def test_an_exponent_of_a_quantity_has_at_most_two_digits(part: str, quantity: str, accepted: bool) -> None:
    server, python = both(with_spec({"worker": {"resources": {part: {"cpu": quantity}}}}))
    assert (not server, not python) == (accepted, accepted)
    assert accepted or "an exponent has at most two digits" in python[0]


@pytest.mark.parametrize(
    ("path", "accepted"),
    [
        *((path, True) for path in ("/data", "/data/", "/a/.b/..c/...", "/etc/galaxy", "/a b", "/etc", "/..a")),
        *((path, False) for path in ("", "/", "//", "data", "/a:b", "/.", "/..", "/a/.", "/a/..", "/a//")),
        *((path, False) for path in ("/etc//gala", "/etc/./gala", "//etc/gala", "/etc/x/../gala", "/etc/gala/")),
    ],
)
def test_a_mount_path_has_no_empty_or_dotted_part_and_does_not_lead_to_the_plan(path: str, accepted: bool) -> None:
    pod = {"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "a", "mountPath": path}]}
    server, python = both(with_spec({"worker": {"podTemplate": {"spec": pod}}}))
    assert (not server, not python) == (accepted, accepted)


CASES = {
    "a server or learner alone": {"algorithm": "IMPALA", "learners": 1},
    "minibatches without a decision": {
        "algorithm": "GALA-PPO",
        "environment": {"id": "CartPole-v1", "simulators": 1},
        "hyperparameters": {"rolloutLength": 2, "minibatches": 3},
    },
    "ring with as many peers as learners": {"learners": 4, "topology": {"peers": 4}},
    "exponential with more peers than powers of two": {"learners": 4, "topology": {"type": "Exponential", "peers": 3}},
    "one peer is one peer": {"topology": {"type": "OnePeerExponential", "peers": 2}},
    "complete takes no peers": {"topology": {"type": "Complete", "peers": 3}},
    "staleness below what every updates needs": {"gossip": {"everyUpdates": 4, "maxStaleness": 2}},
    "reserved variable": {"worker": {"env": [{"name": "GALA_RANK", "value": "1"}]}},
    "value and valueFrom": {
        "worker": {"env": [{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]}
    },
    "no source of a value": {"worker": {"env": [{"name": "A", "valueFrom": {}}]}},
    "toleration with Exists and a value": {
        "worker": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}
    },
    "toleration without a key": {"worker": {"tolerations": [{"value": "b"}]}},
    "toleration seconds without NoExecute": {"worker": {"tolerations": [{"key": "a", "tolerationSeconds": 1}]}},
    "gpu in requests": {"worker": {"resources": {"requests": {"nvidia.com/gpu": 1}}}},
    "gpu in limits": {"worker": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}},
    "volume without a source": {"worker": {"podTemplate": {"spec": {"volumes": [{"name": "a"}]}}}},
    "reserved volume": {"worker": {"podTemplate": {"spec": {"volumes": [{"name": "gala-plan", "emptyDir": {}}]}}}},
    "reserved label": {"worker": {"podTemplate": {"metadata": {"labels": {"gala.dev/run": "a"}}}}},
    "reserved annotation": {"worker": {"podTemplate": {"metadata": {"annotations": {"gala.dev/run": "a"}}}}},
    "reserved label of a claim": claim_with(labels={"gala.dev/run": "a"}),
    "reserved annotation of a claim": claim_with(annotations={"gala.dev/run": "a"}),
    "unconfined by annotation": {
        "worker": {
            "podTemplate": {
                "metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/learner": "unconfined"}}
            }
        }
    },
    "mount of a volume that is not there": {
        "worker": {"podTemplate": {"spec": {"volumeMounts": [{"name": "a", "mountPath": "/a"}]}}}
    },
    "mount over the plan": {
        "worker": {
            "podTemplate": {
                "spec": {
                    "volumes": [{"name": "a", "emptyDir": {}}],
                    "volumeMounts": [{"name": "a", "mountPath": "/etc/gala/plan.json"}],
                }
            }
        }
    },
    "selector without values": {
        "worker": {
            "podTemplate": {
                "spec": {
                    "topologySpreadConstraints": [
                        {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]},
                        }
                    ]
                }
            }
        }
    },
    "checkpoint volume without size or claim": {"checkpoint": {"volume": {}}},
    "storage class of an existing claim": {"checkpoint": {"volume": {"claimName": "a", "storageClassName": "b"}}},
    "more learners needed than asked for": {"learners": 2, "runPolicy": {"minLearners": 3}},
    "access mode of an existing claim": {"checkpoint": {"volume": {"claimName": "a", "accessMode": "ReadWriteMany"}}},
}


def with_spec(more: dict[str, Any]) -> dict[str, Any]:
    return {**MINIMAL, "spec": MINIMAL["spec"] | more}


@pytest.mark.parametrize("broken", CASES.values(), ids=CASES.keys())
def test_a_broken_rule_is_one_problem_in_the_same_words_on_both_sides(broken: dict[str, Any]) -> None:
    (server,), (python,) = both(with_spec(broken))
    _path, _, sentence = server.partition(": ")
    message, _, remedy = sentence.partition("; ")
    assert message in python
    assert python.endswith(remedy)


def rules(schema: dict[str, Any]) -> Iterator[dict[str, str]]:
    yield from schema.get("x-kubernetes-validations", [])
    for inner in [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]:
        if inner is not None:
            yield from rules(inner)


def test_every_rule_of_the_crd_has_a_case_that_breaks_it() -> None:
    seen = {problem.partition(": ")[2] for case in CASES.values() for problem in API_SERVER.create(with_spec(case))}
    assert seen == {rule["message"] for rule in rules(SPEC) if "oldSelf" not in rule["rule"]}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"algorithm": "A2C"}, id="algorithm"),
        pytest.param({"environment": {"id": "ALE/Breakout-v5"}}, id="environment"),
        pytest.param({"environment": {"id": "ALE/Pong-v5", "simulators": 8}}, id="simulators"),
        pytest.param({"environment": {"id": "ALE/Pong-v5", "kwargs": {"a": 1}}}, id="kwargs"),
        pytest.param({"policy": {"recurrent": True}}, id="policy"),
        pytest.param({"topology": {"type": "Complete"}}, id="topology type"),
        pytest.param({"gossip": {"precision": "bfloat16"}}, id="precision on the wire"),
        pytest.param({"gossip": {"mixing": "push-sum"}}, id="mixing"),
        pytest.param({"seed": 2}, id="seed"),
    ],
)
def test_an_api_server_refuses_to_change_what_is_immutable(change: dict[str, Any]) -> None:
    assert API_SERVER.create(with_spec(change)) == []
    (problem,) = API_SERVER.update(MINIMAL, with_spec(change))
    assert "is immutable" in problem


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"learners": 8}, id="learners"),
        pytest.param({"totalSteps": 50_000_000}, id="totalSteps"),
        pytest.param({"topology": {"peers": 2}}, id="peers"),
        pytest.param({"runPolicy": {"suspend": True}}, id="suspend"),
        pytest.param({"runPolicy": {"minLearners": 2}}, id="minLearners"),
        pytest.param({"evaluation": {"minReturn": 18.5}}, id="minReturn"),
        pytest.param({"worker": {"resources": {"limits": {"cpu": 4}}}}, id="resources"),
        pytest.param({"seed": 1, "policy": {}, "algorithm": "GALA-A2C"}, id="defaults written out"),
    ],
)
def test_an_api_server_lets_the_rest_change(change: dict[str, Any]) -> None:
    assert API_SERVER.update(MINIMAL, with_spec(change)) == []


def test_the_default_is_what_python_fills_in_too() -> None:
    served = copy.deepcopy(MINIMAL)
    API_SERVER._default(served, API_SERVER.schema)
    document = spec.parse(MINIMAL).document()["spec"]
    for name in document["hyperparameters"].keys() - served["spec"]["hyperparameters"].keys():
        assert SPEC["properties"]["hyperparameters"]["properties"][name].get("default") is None  # by the algorithm
        del document["hyperparameters"][name]
    assert document == served["spec"]
