"""The vocabulary that `gala.spec` is written in: sections, numbers, quantities, and rules across fields.

Everything here has two readers: Python, which validates with it, and `gala.crd`, which turns it into the CRD's schema
and CEL. The types therefore accept exactly what an API server's structural schema accepts: no string that looks like a
number, no 1 for true; an integral float for an integer, as JSON Schema has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    SerializerFunctionWrapHandler,
    StrictBool,
    StringConstraints,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from gala.names import GROUP

IMMUTABLE: Final[dict[str, JsonValue]] = {
    "x-kubernetes-validations": [
        {"rule": "self == oldSelf", "message": "is immutable: make a new run with another name to change it"}
    ]
}
"""`json_schema_extra` of a field that may not change once the run exists: a transition rule of the API server."""

DNS_LABEL: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
RFC1035_LABEL: Final = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN: Final = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"
ENVIRONMENT_VARIABLE: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
ABSOLUTE_PATH: Final = r"^(/([^/:.]|\.[^/:.]|\.\.[^/:])[^/:]*)+/?$"
"""Without a part that is empty, `.` or `..`: else /etc//gala would be another text than /etc/gala, and the same place.
Neither reader's engine has look-ahead."""
LABEL_KEY: Final = r"^([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$"
MAX_LABEL_NAME: Final = 63
MAX_LABEL_PREFIX: Final = 253
LABEL_VALUE: Final = r"^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$"
NO_BLANKS: Final = r"^[!-~]+$"
QUANTITY: Final = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]{1,2})?$"
SIMULATOR_ID: Final = r"^([A-Za-z_][A-Za-z0-9_.]*:)?([A-Za-z0-9_:-]+/)?[A-Za-z0-9_:.-]+$"

IN_WORDS: Final[Mapping[str, str]] = {
    DNS_LABEL: "must consist of lower-case letters, digits and inner dashes",
    RFC1035_LABEL: "must consist of lower-case letters, digits and inner dashes, and begin with a letter",
    DNS_SUBDOMAIN: "must consist of lower-case letters, digits, inner dashes and dots",
    ENVIRONMENT_VARIABLE: "must consist of letters, digits and underscores, and not begin with a digit",
    ABSOLUTE_PATH: "must be an absolute path without a colon, and without //, /./ or /../ in it",
    LABEL_KEY: "must be a label key such as example.com/gpu",
    LABEL_VALUE: "must be a label value: letters, digits, inner dashes, underscores and dots",
    NO_BLANKS: "must not contain blanks or characters outside of ASCII",
    QUANTITY: "must be a quantity: digits with an optional suffix, such as 2, 500m or 4Gi;"
    " an exponent has at most two digits",
    SIMULATOR_ID: "must be a Gymnasium id such as CartPole-v1, ALE/Pong-v5 or package.module:Name-v0",
}
"""What each pattern asks for, in the words of an error message."""


def _integral(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole_names(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if item is not None}
    return value


def _label_key(key: str) -> str:
    prefix, _, name = key.rpartition("/")
    if len(name) > MAX_LABEL_NAME or len(prefix) > MAX_LABEL_PREFIX or not re.fullmatch(LABEL_KEY[1:-1], key):
        raise PydanticCustomError("label_key", "{words}", {"words": IN_WORDS[LABEL_KEY]})
    return key


def _quantity(value: object) -> object:
    value = _integral(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError("quantity_type", "must be a whole number, or a quantity in quotes")
    if isinstance(value, int) and value < 0:
        raise PydanticCustomError("quantity_type", "must be at least 0")
    return str(value)


Integer = Annotated[int, BeforeValidator(_integral), Field(strict=True)]
"""An integer; 4.0 and 4e7 are integers too, "4" and true are not."""
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number; an integer will do, a string will not."""
Switch = StrictBool
Quantity = Annotated[
    str,
    StringConstraints(pattern=QUANTITY, max_length=32),
    BeforeValidator(_quantity),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": QUANTITY,
            "minimum": 0,
            "maxLength": 32,
        }
    ),
]
"""A Kubernetes quantity, kept as a string: 2, 500m, 4Gi."""
ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
"""The name of another Kubernetes object."""
LabelKey = Annotated[str, AfterValidator(_label_key)]
"""The key of a label or an annotation. An API server's schema knows nothing of keys, so that one learns only later what
it would say of them: of a run's own at once, of those of its pods when they are made."""
Labels = Annotated[
    dict[LabelKey, Annotated[str, StringConstraints(max_length=63, pattern=LABEL_VALUE)]],
    BeforeValidator(_whole_names),
    Field(max_length=64),
]
Annotations = Annotated[
    dict[LabelKey, Annotated[str, StringConstraints(max_length=4096)]],
    BeforeValidator(_whole_names),
    Field(max_length=64),
]
Quantities = Annotated[dict[str, Quantity], BeforeValidator(_whole_names), Field(max_length=16)]
FreeObject = Annotated[dict[str, JsonValue], Field(max_length=64)]
"""Any JSON object; the CRD preserves what is in it without looking."""


def keyed(key: str) -> tuple[AfterValidator, dict[str, JsonValue]]:
    """For a list whose entries differ in one field: the check, and the same in words for an API server."""

    def each_once(entries: tuple[Section, ...]) -> tuple[Section, ...]:
        values = [
            getattr(entry, name)
            for entry in entries
            for name, field in type(entry).model_fields.items()
            if field.alias == key
        ]
        if repeated := sorted({value for value in values if values.count(value) > 1}):
            raise PydanticCustomError("repeated", "must not repeat", {"key": key, "values": repeated})
        return entries

    return AfterValidator(each_once), {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A condition on several fields of one section: the same sentence for Python and for an API server."""

    path: str
    """The field to blame, relative to the section: `topology.peers`."""
    holds: Callable[[Any], bool]
    """The rule in Python, on the validated section (or on an object with some of its attributes)."""
    cel: str
    """The rule in CEL, on the section as `self`, defaults filled in. Never touches a nullable field: CEL cannot compare
    null with a number."""
    message: str
    """What is wrong when it does not hold: `must be less than spec.learners`."""
    remedy: str


def without_own_keys(part: str) -> Rule:
    """That a map of labels or annotations has none by which the operator finds what is its own."""
    return Rule(
        path=part,
        holds=lambda section: not any(key.startswith(f"{GROUP}/") for key in getattr(section, part)),
        cel=f"self.{part}.all(key, !key.startsWith('{GROUP}/'))",
        message=f"must not have keys under {GROUP}/",
        remedy="use a prefix of your own: those are how the operator finds what is its own",
    )


class Section(BaseModel):
    """One mapping of the document: frozen, closed, camelCase outside and snake_case inside."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _null_means_unset(cls, data: Any) -> Any:
        """An API server reads null as absent, unless the field is nullable; so do we."""
        if not isinstance(data, Mapping):
            return data
        nulls = {key for key, value in data.items() if value is None} & cls._never_null()
        return {key: value for key, value in data.items() if key not in nulls}

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        if broken := [rule for rule in self.rules if not rule.holds(self)]:
            raise PydanticCustomError("gala_rules", "breaks a rule", {"rules": broken})
        return self

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what is null because nobody set it; a null that replaces another default stays."""
        unset = set()
        for name, field in type(self).model_fields.items():
            if getattr(self, name) is None and field.default is None:
                unset |= {name, field.alias}
        return {key: value for key, value in handler(self).items() if key not in unset}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The section's rules are part of its schema, in the API server's form."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        if cls.rules:
            schema["x-kubernetes-validations"] = [
                {"rule": rule.cel, "message": f"{rule.message}; {rule.remedy}"}
                | ({"fieldPath": f".{rule.path}"} if rule.path else {})
                for rule in cls.rules
            ]
        return schema

    @classmethod
    def _never_null(cls) -> set[str]:
        names: set[str] = set()
        for name, field in cls.model_fields.items():
            if not nullable(field.annotation):
                names |= {name, field.alias or name}
        return names


def nullable(annotation: Any) -> bool:
    """Whether None is one of the values that the annotation allows."""
    return type(None) in getattr(annotation, "__args__", ())
