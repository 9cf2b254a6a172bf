"""In which fields two documents of a run differ, and which of them may differ under what circumstances. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from gala import spec
from gala.errors import MISSING

Changes = Mapping[str, tuple[Any, Any]]
"""Dotted path -> the old and the new value; `MISSING` is one that is not there."""

IMMUTABLE: Final = tuple(f"spec.{path}" for path in spec.immutable_fields())
"""Fields that make it another run, as the CRD has it."""
LIVE: Final = ("spec.learners", "spec.totalSteps", "spec.topology.peers", "spec.runPolicy")
"""Fields that may change under a running launcher."""


def changed_fields(old: spec.GalaRun, new: spec.GalaRun) -> dict[str, tuple[Any, Any]]:
    """The fields that differ; a list counts as one field.

    They differ where an environment could tell them apart, which gets `kwargs` as they are: 1 is not true, and null is
    not a key that is left out.
    """
    return dict(_differences(old.document(), new.document()))


def not_live(changes: Changes) -> dict[str, tuple[Any, Any]]:
    """Those of `changes` that running workers cannot follow."""
    return {path: change for path, change in changes.items() if not is_below(path, LIVE)}


def describe(changes: Changes, at_most: int | None = None) -> str:
    """`spec.learners 4 -> 3, spec.seed 1 -> 2`; of more than `at_most` fields how many there are besides."""
    shown = [f"{path} {_shown(old)} -> {_shown(new)}" for path, (old, new) in list(changes.items())[:at_most]]
    more = len(changes) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def is_below(path: str, fields: tuple[str, ...]) -> bool:
    """Whether a dotted path is one of `fields` or inside one."""
    return any(path == name or path.startswith(f"{name}.") for name in fields)


def _differences(old: object, new: object, *above: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**old, **new}:
            yield from _differences(old.get(key, MISSING), new.get(key, MISSING), *above, key)
    elif _written(old) != _written(new):
        yield ".".join(above), (old, new)


def _written(value: object) -> str:
    return "" if value is MISSING else json.dumps(value, sort_keys=True)


def _shown(value: object) -> str:
    if value is MISSING:
        return "unset"
    return "null" if value is None else str(value)
