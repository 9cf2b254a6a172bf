"""A small, independent reading of what an API server does with a custom resource: see `ApiServer`."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator
from typing import Any

import celpy
from celpy.adapter import json_to_cel

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}


class ApiServer:
    """Says what is wrong with a document, as an API server with this CRD would."""

    def __init__(self, definition: dict[str, Any]) -> None:
        (version,) = definition["spec"]["versions"]
        self.schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]

    def create(self, document: dict[str, Any]) -> list[str]:
        """The problems; empty = accepted."""
        if document.get("apiVersion") != "gala.dev/v1alpha1" or document.get("kind") != "GalaRun":
            return ["no matches for kind"]
        document = sent_by_kubectl(document)
        problems = list(self._unknown(document, self.schema, ""))
        self._prune_nulls(document, self.schema)
        self._default(document, self.schema)
        problems += self._schema(document, self.schema, "")
        return problems or list(self._rules(document, None, self.schema, ""))

    def update(self, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
        """The problems of changing an accepted document; the rules about `oldSelf` apply."""
        old, new = sent_by_kubectl(old), sent_by_kubectl(new)
        for document in (old, new):
            self._prune_nulls(document, self.schema)
            self._default(document, self.schema)
        return self.create(new) or list(self._rules(new, old, self.schema, ""))

    def _unknown(self, value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
        if isinstance(value, dict) and "properties" in schema:
            for key, inner in value.items():
                if key in schema["properties"]:
                    yield from self._unknown(inner, schema["properties"][key], f"{path}.{key}")
                else:
                    yield f"{path}.{key}: unknown field"
        elif isinstance(value, dict) and "additionalProperties" in schema:
            for key, inner in value.items():
                yield from self._unknown(inner, schema["additionalProperties"], f"{path}.{key}")
        elif isinstance(value, list) and "items" in schema:
            for inner in value:
                yield from self._unknown(inner, schema["items"], f"{path}[]")

    def _prune_nulls(self, value: Any, schema: dict[str, Any]) -> None:
        for key, inner in self._children(value, schema):
            if isinstance(value, dict) and value[key] is None and not inner.get("nullable") and "default" not in inner:
                del value[key]
            else:
                self._prune_nulls(value[key], inner)

    def _default(self, value: Any, schema: dict[str, Any]) -> None:
        if isinstance(value, dict):
            for key, inner in schema.get("properties", {}).items():
                absent = key not in value or (value[key] is None and not inner.get("nullable"))
                if absent and "default" in inner:
                    value[key] = copy.deepcopy(inner["default"])
        for key, inner in self._children(value, schema):
            self._default(value[key], inner)

    def _children(self, value: Any, schema: dict[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
        if isinstance(value, dict):
            fields, other = schema.get("properties", {}), schema.get("additionalProperties")
            return [(key, fields.get(key, other)) for key in value if fields.get(key, other) is not None]
        if isinstance(value, list) and "items" in schema:
            return [(index, schema["items"]) for index in range(len(value))]
        return []

    def _schema(self, value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
        if value is None and schema.get("nullable"):
            return
        kinds = [schema["type"]] if "type" in schema else [option["type"] for option in schema["anyOf"]]
        if not any(self._is(value, kind) for kind in kinds):
            yield f"{path}: must be of type {kinds}"
            return
        if "enum" in schema and value not in schema["enum"]:
            yield f"{path}: must be one of {schema['enum']}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            low, high = schema.get("minimum", -float("inf")), schema.get("maximum", float("inf"))
            if not (low <= value <= high):
                yield f"{path}: out of bounds"
            if (schema.get("exclusiveMinimum") and value == low) or (schema.get("exclusiveMaximum") and value == high):
                yield f"{path}: at an excluded bound"
        for kind, least, most in ((str, "minLength", "maxLength"), (list, "minItems", "maxItems")):
            if isinstance(value, kind) and not (schema.get(least, 0) <= len(value) <= schema.get(most, len(value))):
                yield f"{path}: wrong length"
        if isinstance(value, dict) and len(value) > schema.get("maxProperties", len(value)):
            yield f"{path}: too many entries"
        if isinstance(value, str) and "pattern" in schema:
            pattern = schema["pattern"]
            assert pattern.endswith("$")
            if not re.search(pattern[:-1] + r"\Z", value):
                yield f"{path}: does not match"
        if isinstance(value, dict):
            yield from (f"{path}.{key}: required" for key in schema.get("required", []) if key not in value)
        if schema.get("x-kubernetes-list-type") == "map":
            (key,) = schema["x-kubernetes-list-map-keys"]
            keys = [entry.get(key) for entry in value if isinstance(entry, dict)]
            if len(set(keys)) < len(keys):
                yield f"{path}: repeated {key}"
        for key, inner in self._children(value, schema):
            yield from self._schema(value[key], inner, f"{path}.{key}")

    @staticmethod
    def _is(value: Any, kind: str) -> bool:
        if isinstance(value, bool):
            return kind == "boolean"
        return isinstance(value, TYPES[kind])

    def _rules(self, value: Any, old: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
        for rule in schema.get("x-kubernetes-validations", []):
            transition = "oldSelf" in rule["rule"]
            if transition and old is None:
                continue
            names = {"self": json_to_cel(value)} | ({"oldSelf": json_to_cel(old)} if transition else {})
            if not compiled(rule["rule"]).evaluate(names):
                yield f"{path}: {rule['message']}"
        for key, inner in self._children(value, schema):
            old_inner = old.get(key) if isinstance(old, dict) else None
            if value[key] is not None:
                yield from self._rules(value[key], old_inner, inner, f"{path}.{key}")


def sent_by_kubectl(value: Any) -> Any:
    """A copy as it goes over the wire: Go writes the float 4e7 as 40000000, which is read as an integer."""
    if isinstance(value, dict):
        return {key: sent_by_kubectl(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [sent_by_kubectl(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@functools.cache
def compiled(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
