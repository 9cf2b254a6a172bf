"""What a run of an experiment is called: the same levels give the same name, always."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

from gala.experiment.index import Level
from gala.names import MAX_RUN_NAME

_ABBREVIATIONS: Final = {"seed": "s", "learners": "l", "simulators": "b", "totalSimulators": "n"}
"""What stands before the number of a factor whose numbers would not say what they count."""
_DIGEST: Final = 8


def slug(level: Level, *, versions: bool = False) -> str:
    """A level in lower-case letters, digits and inner dashes: ALE/Pong-v5 is `pong`, 7e-4 is `0-0007`, -1 is `m1`.

    Args:
        versions: keep an environment's: `pong-v5`.
    """
    text = f"{level:g}" if isinstance(level, float) else str(level)
    if not isinstance(level, str):
        text = re.sub("^-", "m", text)
    text = re.sub(r"^(?:[\w.]+:)?(?:[\w.:-]+/)?([A-Za-z].*)(-v\d+)$", r"\1\2" if versions else r"\1", text)
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def run_name(folder: str, levels: Mapping[str, Level], *, versions: bool = False) -> str:
    """The name of the run with these levels: a DNS label of at most 50 characters, begun by the experiment's name.

    What does not fit is cut off, and a digest of all levels takes its place.
    """
    parts = [
        ("" if isinstance(level, str) else _ABBREVIATIONS.get(factor, "")) + slug(level, versions=versions)
        for factor, level in levels.items()
    ]
    name = "-".join([folder, *(part for part in parts if part)])
    return name if len(name) <= MAX_RUN_NAME else with_digest(name, levels)


def run_names(folder: str, combinations: Sequence[Mapping[str, Level]]) -> list[str]:
    """The names of all runs, without repetition.

    Of levels that read alike, the first have the plain name, so that those that come behind them later do not rename
    runs that are there; the others are told apart by their environments' versions, else by a digest.
    """
    found: dict[str, None] = {}
    for levels in combinations:
        plain = run_name(folder, levels)
        free = (name for name in (plain, run_name(folder, levels, versions=True)) if name not in found)
        found[next(free, with_digest(plain, levels))] = None
    return list(found)


def with_digest(name: str, levels: Mapping[str, Level]) -> str:
    """The name, cut, with a digest of the levels behind it."""
    text = json.dumps(dict(levels), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]
    return f"{name[: MAX_RUN_NAME - _DIGEST - 1].rstrip('-')}-{digest}"
