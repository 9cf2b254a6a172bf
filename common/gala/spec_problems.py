"""From pydantic's errors to Problems that a person can act on: field path, value, bound, remedy.

The one place where pydantic's words are translated; nothing of them reaches a user.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from gala import spec_schema
from gala.errors import MISSING, Problem
from gala.spec_base import IN_WORDS, Rule, Section, nullable

REFUSED: Final = {
    **dict.fromkeys(
        ("hostNetwork", "hostPID", "hostIPC", "hostUsers", "hostPath", "privileged", "capabilities", "hostPort"),
        "it is refused on purpose: whoever may create a GalaRun must not get the node with it",
    ),
    **dict.fromkeys(
        ("containers", "initContainers", "ephemeralContainers", "serviceAccount", "automountServiceAccountToken"),
        "the operator makes the pod's containers itself; spec.worker has the fields that may be set",
    ),
}
"""Fields of a Pod that people try in the overlay, and why they cannot have them."""

_TYPES: Final = {
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "must be text of whole characters, not halves of them",
    "dict_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
}
_BOUNDS: Final = {
    "greater_than_equal": ("must be at least {}", "ge"),
    "greater_than": ("must be greater than {}", "gt"),
    "less_than_equal": ("must be at most {}", "le"),
    "less_than": ("must be less than {}", "lt"),
    "string_too_short": ("must have at least {} character(s)", "min_length"),
    "string_too_long": ("must have at most {} characters", "max_length"),
    "too_short": ("must have at least {} entries", "min_length"),
    "too_long": ("must have at most {} entries", "max_length"),
}


def problems(model: type[Section], data: Any, error: ValidationError) -> list[Problem]:
    """Everything that is wrong with a document, in the document's words.

    A document of another kind gets that one answer, not a list of the fields that a GalaRun would have had.
    """
    details = error.errors(include_url=False)
    # Of a list pydantic counts the valid entries only: what is wrong with the others is said, and is enough.
    details = [each for each in details if each["type"] != "too_short" or not _within(each["loc"], details)]
    found = [problem for detail in details for problem in _translate(model, data, detail)]
    kind = [problem for problem in found if problem.path in ("apiVersion", "kind")]
    return kind or found + _unjudged(model, data, error)


def _within(loc: tuple[int | str, ...], details: Sequence[ErrorDetails]) -> bool:
    return any(len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc for other in details)


def _translate(model: type[Section], data: Any, detail: ErrorDetails) -> Iterator[Problem]:
    loc, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    schema = spec_schema.at(spec_schema.plain(model), loc) or {}
    path = _path(loc)
    if kind == "gala_rules":
        for rule in context["rules"]:
            yield _broken(rule, loc, data)
        return
    message, remedy = detail["msg"], _advice(schema)
    value = detail["input"]
    if kind == "missing":
        message, remedy, value = "is required", f"add it: {schema.get('description', '')}".rstrip(": ."), MISSING
    elif kind == "extra_forbidden":
        message, remedy = f"is not a field of {model.__name__}", _unknown(model, loc)
    elif kind == "literal_error":
        options = [str(option) for option in schema.get("enum", [])]
        message = f"must be {options[0]}" if len(options) == 1 else f"must be one of {', '.join(options)}"
        remedy = _did_you_mean(value, options)
    elif kind in _TYPES:
        message = _TYPES[kind]
        remedy = _unquote(value, kind) or remedy
    elif kind in _BOUNDS:
        text, key = _BOUNDS[kind]
        message = text.format(_shortest(context[key]))
    elif kind == "string_pattern_mismatch":
        message = IN_WORDS[context["pattern"]]
    elif kind == "repeated":
        message = f"must not have two entries with the same {context['key']}"
        value = ", ".join(context["values"])
    # Of a key that is wrong pydantic says so behind it.
    yield Problem(path=path.removesuffix(".[key]"), value=value, message=message, remedy=remedy)


def _unjudged(model: type[Section], data: Any, error: ValidationError) -> list[Problem]:
    """The rules across fields that pydantic did not come to because some field of their section is bad.

    A rule is judged with the fields that are valid; one that asks for another has to wait until that is repaired.
    """
    locs = [detail["loc"] for detail in error.errors()]
    found = []
    for loc in sorted({other[:depth] for other in locs for depth in range(len(other))}, key=str):
        section, given = _section(model, data, loc)
        if section is None or not isinstance(given, Mapping):
            continue
        bad = {other[len(loc)] for other in locs if other[: len(loc)] == loc and len(other) > len(loc)}
        valid = {
            name: _valid(info, given.get(info.alias))
            for name, info in section.model_fields.items()
            if info.alias not in bad and not (info.is_required() and given.get(info.alias) is None)
        }
        for rule in section.rules:
            # AttributeError: the rule looked at a field that is bad.
            with contextlib.suppress(AttributeError):
                if not rule.holds(SimpleNamespace(**valid)):
                    found.append(_broken(rule, loc, data))
    return found


def _valid(field: FieldInfo, given: Any) -> Any:
    """A field's valid value as a rule sees it: a section for a mapping, the default for what is not there."""
    if given is None and not nullable(field.annotation):
        return field.get_default(call_default_factory=True)
    section = _bare(field.annotation)
    if isinstance(given, Mapping) and issubclass(section, Section):
        return section.model_validate(given, by_alias=True, by_name=False)
    return given


def _bare(annotation: Any) -> type:
    """The type inside of X | None, tuple[X, ...] and Annotated[X, ...]."""
    while not isinstance(annotation, type):
        annotation = next((option for option in get_args(annotation) if option not in (type(None), ...)), object)
    return annotation


def _section(model: type, data: Any, loc: tuple[int | str, ...]) -> tuple[type[Section] | None, Any]:
    """The section at a path, and what the document has there; None where there is no section."""
    for part in loc:
        if isinstance(part, str):
            fields = model.model_fields.values() if issubclass(model, Section) else ()
            model = next((_bare(field.annotation) for field in fields if field.alias == part), object)
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None, None
    return (model, data) if issubclass(model, Section) else (None, None)


def _broken(rule: Rule, loc: tuple[int | str, ...], data: Any) -> Problem:
    full = loc + tuple(rule.path.split(".", 1) if rule.path else ())
    value: Any = data
    for part in full:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            value = MISSING
            break
    if not rule.path or isinstance(value, Mapping):
        value = MISSING
    return Problem(path=_path(full), value=value, message=rule.message, remedy=rule.remedy)


def _path(loc: Sequence[int | str]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".") or "document"


def _unknown(model: type[Section], loc: tuple[int | str, ...]) -> str:
    """Where the user may have wanted to go: a field beside it, or a field of the same name elsewhere."""
    name = str(loc[-1])
    if name in REFUSED:
        return REFUSED[name]
    whole = spec_schema.plain(model)
    beside = list((spec_schema.at(whole, loc[:-1]) or {}).get("properties", {}))
    if suggestion := _did_you_mean(name, beside, cutoff=0.75):
        return suggestion
    elsewhere = [path for path in _all_paths(whole, ()) if path[-1] == name]
    if elsewhere:
        return f"did you mean {_path(elsewhere[0])}?"
    return _did_you_mean(name, beside) or f"remove it; the fields here are {', '.join(beside)}"


def _all_paths(schema: spec_schema.Schema, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, field in schema.get("properties", {}).items():
        yield (*path, name)
        yield from _all_paths(field, (*path, name))


def _did_you_mean(value: object, options: Sequence[str], cutoff: float = 0.5) -> str:
    lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(str(value).lower(), lower, n=1, cutoff=cutoff)
    return f"did you mean {lower[close[0]]}?" if close else ""


def _unquote(value: object, kind: str) -> str:
    if isinstance(value, str) and kind in ("int_type", "float_type"):
        try:
            float(value)
        except ValueError:
            return ""
        sign, digits = value[: -len(value.lstrip("+-"))], value.lstrip("+-").lstrip("0")
        if value.lstrip("+-") != digits and digits.isdecimal():
            octal = f", or {sign}0o{digits} if it is octal" if set(digits) <= set("01234567") else ""
            return f"write {sign}{digits}{octal}: a number does not begin with 0"
        return "remove the quotes"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "put it in quotes"
    return ""


def _advice(schema: spec_schema.Schema) -> str:
    """What would be accepted: `give an integer from 1 to 1024 (default 4)`."""
    kind = schema.get("type")
    if kind in ("integer", "number"):
        low, high = schema.get("minimum"), schema.get("maximum")
        above = "above " if schema.get("exclusiveMinimum") else ""
        below = "below " if schema.get("exclusiveMaximum") else ""
        noun = "an integer" if kind == "integer" else "a number"
        text = f"give {noun} from {above}{_shortest(low)} to {below}{_shortest(high)}"
    elif kind == "boolean":
        text = "write true or false"
    elif "x-kubernetes-int-or-string" in schema:
        text = "write 2, '0.5', 500m or 4Gi"
    else:
        return ""
    default = schema.get("default")
    return f"{text} (default {_shortest(default)})" if default is not None else text


def _shortest(number: object) -> str:
    if isinstance(number, bool):
        return str(number).lower()
    return f"{number:g}" if isinstance(number, float) else str(number)
