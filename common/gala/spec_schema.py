"""The models' JSON schema in the plain form that the CRD, the field reference and the error messages share.

Plain means: no `$ref`, no `anyOf` with null (a `nullable` in its place where null says something that leaving the
field out does not), no titles, and booleans for exclusive bounds, as OpenAPI v3.0 has it.
"""

from __future__ import annotations

import functools
import json
from typing import Any, Final

from pydantic import BaseModel

Schema = dict[str, Any]

BY_ALGORITHM: Final = "x-gala-by-algorithm"
"""Marks a field whose default depends on the algorithm: the schema then has none."""

_RULES: Final = "x-kubernetes-validations"
_NUMBER: Final = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_LEFT_OVER: Final = {
    "integer": _NUMBER,
    "number": _NUMBER,
    "string": {"min_length": "minLength", "max_length": "maxLength"},
    "array": {"min_length": "minItems", "max_length": "maxItems", "minLength": "minItems", "maxLength": "maxItems"},
    "object": {"max_length": "maxProperties", "maxLength": "maxProperties"},
}
"""Bounds under the name that pydantic gives them where a validator of ours stands before them."""


@functools.cache
def _cached(model: type[BaseModel]) -> str:
    raw = model.model_json_schema(by_alias=True, mode="validation")
    return json.dumps(_plain(raw, raw.get("$defs", {})))


def plain(model: type[BaseModel]) -> Schema:
    """The schema of a section, everything under it included. The caller may change it."""
    schema: Schema = json.loads(_cached(model))
    return schema


def at(schema: Schema, path: tuple[str | int, ...]) -> Schema | None:
    """The part of a plain schema that describes the value at a path; None where the schema says nothing of it."""
    for part in path:
        if isinstance(part, int):
            following = schema.get("items")
        else:
            following = schema.get("properties", {}).get(part, schema.get("additionalProperties"))
        if not isinstance(following, dict):
            return None
        schema = following
    return schema


def _plain(node: Schema, definitions: Schema) -> Schema:
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        rules = target.get(_RULES, []) + node.get(_RULES, [])
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
        if rules:
            node[_RULES] = rules
    node = {key: value for key, value in node.items() if key not in ("title", "$defs")}
    if node.pop(BY_ALGORITHM, False):
        del node["default"]
    options = node.get("anyOf", [])
    if {"type": "null"} in options:
        (inner,) = [option for option in options if option != {"type": "null"}]
        rest = {key: value for key, value in node.items() if key != "anyOf"}
        # The field's own words come last: they say more than its type's.
        node = {**_plain(inner, definitions), **rest}
        if node.get("default") is None:
            node.pop("default", None)
        else:
            node["nullable"] = True
        return node
    for key, bound in _LEFT_OVER.get(node.get("type", ""), {}).items():
        if key in node:
            node[bound] = node.pop(key)
    for key, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if key in node:
            node |= {bound: node[key], key: True}
    if "const" in node:
        node = {"enum": [node.pop("const")], **node}
    if "properties" in node:
        node["properties"] = {name: _plain(field, definitions) for name, field in node["properties"].items()}
        node.pop("additionalProperties", None)  # an API server prunes or refuses unknown fields by itself
    elif node.get("type") == "object":
        # Of keys that must match a pattern an API server's schema knows nothing, but of what they stand for.
        keyed = node.pop("patternProperties", {})
        values = node.pop("additionalProperties", None) or next(iter(keyed.values()), None)
        if values := isinstance(values, dict) and _plain(values, definitions):
            node["additionalProperties"] = values
        else:
            node["x-kubernetes-preserve-unknown-fields"] = True
    if "items" in node:
        node["items"] = _plain(node["items"], definitions)
    return node
