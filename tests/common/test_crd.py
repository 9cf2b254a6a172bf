"""The CRD and the field reference: generated, committed, and of the form that an API server takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gala import crd, reference

ROOT = Path(__file__).parents[2]
DEFINITION = crd.definition()
(VERSION,) = DEFINITION["spec"]["versions"]
SCHEMA: dict[str, Any] = VERSION["schema"]["openAPIV3Schema"]


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if inner in schema:
            yield from nodes(schema[inner], f"{path}[]")


ALL = dict(nodes(SCHEMA))


@pytest.mark.parametrize(
    ("file", "generated"),
    [
        pytest.param("crds/galarun.yaml", crd.render, id="crd"),
        pytest.param("docs/galarun.md", reference.render, id="reference"),
    ],
)
def test_the_committed_file_is_what_the_models_generate(file: str, generated: Any) -> None:
    assert (ROOT / file).read_text() == generated(), "run `make manifests`"


def test_the_file_is_the_definition() -> None:
    assert yaml.safe_load(crd.render()) == DEFINITION


def test_the_schema_is_structural() -> None:
    for path, node in ALL.items():
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert not {"$ref", "$defs", "title", "const", "examples", "uniqueItems", "oneOf", "allOf", "ge", "le"} & set(
            node
        ), path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert "anyOf" not in node or node["anyOf"] == [{"type": "integer"}, {"type": "string"}], path
        assert all(isinstance(node.get(key, True), bool) for key in ("exclusiveMinimum", "exclusiveMaximum")), path


def test_every_field_is_described() -> None:
    assert [path for path, node in ALL.items() if not node.get("description") and path != ".metadata"] == []


def test_every_string_list_map_and_number_of_the_spec_is_bounded() -> None:
    # An API server estimates the cost of CEL rules from these.
    for path, node in ALL.items():
        if not path.startswith(".spec"):
            continue
        match node.get("type"):
            case "string":
                assert "maxLength" in node or "enum" in node, path
            case "array":
                assert "maxItems" in node, path
            case "integer" | "number":
                assert {"minimum", "maximum"} <= set(node), path
            case "object":
                assert "properties" in node or "maxProperties" in node, path


def test_bounds_stand_only_where_they_have_a_meaning() -> None:
    fitting = {"maxLength": "string", "minLength": "string", "maxItems": "array", "maxProperties": "object"}
    for path, node in ALL.items():
        for bound, kind in fitting.items():
            assert bound not in node or node.get("type", "string") == kind, path


def test_null_is_kept_only_where_it_differs_from_leaving_the_field_out() -> None:
    assert [path for path, node in ALL.items() if "nullable" in node] == [".spec.evaluation.everySteps"]


def test_no_rule_reads_a_nullable_field() -> None:
    # CEL cannot compare null with a number: such a rule would not compile in an API server.
    assert not [
        rule
        for node in ALL.values()
        for rule in node.get("x-kubernetes-validations", [])
        if "everySteps" in rule["rule"]
    ]


def test_a_rule_blames_a_field_that_exists() -> None:
    for path, node in ALL.items():
        for rule in node.get("x-kubernetes-validations", []):
            assert path + rule.get("fieldPath", "") in ALL
            assert len(rule["message"]) < 2048
            assert "\n" not in rule["message"]


def test_what_may_not_change_has_a_transition_rule() -> None:
    assert {
        path
        for path, node in ALL.items()
        if any(rule["rule"] == "self == oldSelf" for rule in node.get("x-kubernetes-validations", []))
    } == {
        *(".spec.algorithm", ".spec.environment", ".spec.policy", ".spec.topology.type", ".spec.seed"),
        *(".spec.gossip.precision", ".spec.gossip.mixing"),
    }


def test_what_has_a_transition_rule_is_always_there_so_that_the_rule_always_runs() -> None:
    for path in (
        *(".spec.algorithm", ".spec.policy", ".spec.topology.type", ".spec.topology", ".spec.seed"),
        *(".spec.gossip.precision", ".spec.gossip.mixing", ".spec.gossip"),
    ):
        assert "default" in ALL[path]
    assert ALL[".spec"]["required"] == ["environment"]


def test_names_and_subresources_are_as_documented() -> None:
    names = DEFINITION["spec"]["names"]
    assert DEFINITION["metadata"]["name"] == "galaruns.gala.dev"
    assert (names["kind"], names["shortNames"], names["categories"]) == ("GalaRun", ["gr"], ["all", "gala"])
    assert (VERSION["name"], DEFINITION["spec"]["scope"]) == ("v1alpha1", "Namespaced")
    assert VERSION["subresources"] == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.learners",
            "statusReplicasPath": ".status.learners",
            "labelSelectorPath": ".status.selector",
        },
    }


def test_columns_and_scale_paths_lead_to_fields_of_their_type() -> None:
    for column in VERSION["additionalPrinterColumns"]:
        if not column["jsonPath"].startswith(".metadata"):
            assert ALL[column["jsonPath"]]["type"] == column["type"]
    for path in VERSION["subresources"]["scale"].values():
        assert path in ALL


def test_conditions_are_a_list_keyed_by_type() -> None:
    conditions = ALL[".status.conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_the_definition_fits_into_the_annotation_of_a_client_side_apply() -> None:
    assert len(crd.render()) < 100_000


def test_the_reference_has_a_row_for_every_field() -> None:
    text = reference.render()
    for path in ALL:
        if path.startswith((".spec.", ".status.")) and not path.endswith("[]"):
            assert f"| `{path.rpartition('.')[2]}` |" in text
