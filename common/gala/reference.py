"""docs/galarun.md: the reference of every field of a GalaRun, generated from `gala.spec` like the CRD.

`gala crd --reference` prints it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from gala import names, spec_schema, status_schema
from gala.spec import GalaRun
from gala.spec_base import IMMUTABLE, IN_WORDS
from gala.spec_schema import Schema

_INTRODUCTION: Final = f"""# {names.KIND}: field reference

Generated from `common/gala/spec.py`; edit that, then run `make manifests`.

```yaml
apiVersion: {names.API_VERSION}
kind: {names.KIND}
metadata:
  name: pong
spec:
  environment:
    id: ALE/Pong-v5
```

is a complete run: every other field has a default. `gala validate FILE...` lists everything that is wrong with a file;
an API server with the CRD gives the same verdict, but for the keys of labels and annotations, of which its schema knows
nothing. Unknown fields are errors. `null` is the same as leaving a field out, unless the field says otherwise. A field
marked *fixed* cannot change once the run exists. Of the others, `learners`, `totalSteps`, `topology.peers` and
`runPolicy` act on the running learners, `worker` on new pods, the rest on learners that start.
"""


def render() -> str:
    """The whole reference as Markdown."""
    schema = spec_schema.plain(GalaRun)
    sections = [_INTRODUCTION]
    for name in ("metadata", "spec"):
        sections += _sections(name, schema["properties"][name], fixed=False)
    sections += _status("status", status_schema.schema())
    return "\n".join(sections)


def _sections(path: str, schema: Schema, *, fixed: bool) -> Iterator[str]:
    """A heading, a table and the rules for a section, then the same for each section in it."""
    fixed = fixed or _is_fixed(schema)
    rows = ["| field | type | default | bounds | meaning |", "|---|---|---|---|---|"]
    inner: list[tuple[str, Schema]] = []
    for name, field in schema["properties"].items():
        element = field.get("items", field)
        if "properties" in element:
            suffix = "[]" if element is not field else ""
            inner.append((f"{path}.{name}{suffix}", element))
        default = "**required**" if name in schema.get("required", ()) else _default(field)
        meaning = field.get("description", "") + (" *fixed*" if fixed or _is_fixed(field) else "")
        rows.append(f"| `{name}` | {_type(field)} | {default} | {_bounds(field)} | {meaning} |")
    yield f"## {path}\n\n{schema.get('description', '')}\n\n" + "\n".join(rows) + "\n"
    rules = [rule for rule in schema.get("x-kubernetes-validations", ()) if "oldSelf" not in rule["rule"]]
    if rules:
        yield "Rules:\n\n" + "\n".join(f"- {_rule(rule)}" for rule in rules) + "\n"
    for below, field in inner:
        yield from _sections(below, field, fixed=fixed or _is_fixed(field))


def _status(path: str, schema: Schema) -> Iterator[str]:
    """What is only read: no defaults, no bounds."""
    rows = ["| field | type | meaning |", "|---|---|---|"]
    inner: list[tuple[str, Schema]] = []
    for name, field in schema["properties"].items():
        element = field.get("items", field)
        if "properties" in element:
            inner.append((f"{path}.{name}{'[]' if element is not field else ''}", element))
        rows.append(f"| `{name}` | {_type(field)} | {field['description']} |")
    yield f"## {path}\n\n{schema['description']}\n\n" + "\n".join(rows) + "\n"
    for below, field in inner:
        yield from _status(below, field)


def _is_fixed(schema: Schema) -> bool:
    return any(rule in IMMUTABLE["x-kubernetes-validations"] for rule in schema.get("x-kubernetes-validations", ()))  # type: ignore[operator]


def _rule(rule: dict[str, str]) -> str:
    field = rule.get("fieldPath", "").removeprefix(".")
    message, _, remedy = rule["message"].partition("; ")
    return f"{f'`{field}` ' if field else ''}{message} ({remedy})."


def _type(schema: Schema) -> str:
    if "enum" in schema:
        return " \\| ".join(f"`{option}`" for option in schema["enum"])
    if "x-kubernetes-int-or-string" in schema:
        return "quantity"
    kind = str(schema["type"])
    if kind == "array":
        return f"list of {_type(schema['items'])}"
    if kind == "object":
        if "additionalProperties" in schema:
            return f"map of {_type(schema['additionalProperties'])}"
        return "mapping" if "properties" in schema else "any mapping"
    return f"{kind} or null" if schema.get("nullable") else kind


def _default(schema: Schema) -> str:
    if "properties" in schema and "default" in schema:
        return "see below"
    return f"`{json.dumps(schema['default'])}`" if "default" in schema else "unset"


def _bounds(schema: Schema) -> str:
    parts = []
    if "items" in schema and "properties" not in schema["items"] and (each := _bounds(schema["items"])):
        parts.append(f"each {each}")
    if "x-kubernetes-int-or-string" not in schema and "minimum" in schema:
        low = "(" if schema.get("exclusiveMinimum") else "["
        high = ")" if schema.get("exclusiveMaximum") else "]"
        parts.append(f"{low}{schema['minimum']}, {schema['maximum']}{high}")
    if "maxLength" in schema and "x-kubernetes-int-or-string" not in schema:
        parts.append(f"at most {schema['maxLength']} characters")
    if "pattern" in schema:
        parts.append(IN_WORDS[schema["pattern"]].removeprefix("must "))
    for key, words in (("maxItems", "at most {} entries"), ("maxProperties", "at most {} entries")):
        if key in schema:
            parts.append(words.format(schema[key]))
    return "; ".join(parts)
