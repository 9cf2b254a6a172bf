"""Reads run directories for the report. Next in the flow: series.py.

A report is often written while the run is still going, or after a crash: a half-written last line, a missing learner, a
null where a number belongs are ordinary here. They never raise; what cannot be read is left out and counted.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from gala import answers, names
from gala.algorithms import ALGORITHMS, GALA_A2C
from gala.answers import json_file, json_object
from gala.errors import UsageError, reading

Record = Mapping[str, Any]

MAX_NUMBER: Final = 1e150
"""Nothing that is measured is larger, and with this matplotlib's axes and the squares of a variance stay finite."""
RUN_FILES = (names.SPEC_FILE, names.PLAN_FILE, names.RUN_FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What one learner wrote, in the order in which it wrote it, over all its restarts."""

    rank: int
    train: tuple[Record, ...] = ()
    evaluations: tuple[Record, ...] = ()
    events: tuple[Record, ...] = ()
    unreadable_lines: int = 0
    """Whole lines that are not JSON objects. A truncated last line is not counted: it is being written."""

    @property
    def last(self) -> Record:
        """The last train record; empty if there is none yet."""
        return self.train[-1] if self.train else {}

    @property
    def incarnations(self) -> tuple[int, ...]:
        """The process incarnations seen, in order."""
        seen = (integer(record, "incarnation") for record in (*self.events, *self.train))
        return tuple(sorted({value for value in seen if value is not None}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run directory. Every mapping is empty if its file is missing or unreadable."""

    directory: Path
    name: str
    document: Record
    """galarun.yaml"""
    plan: Record
    state: Record
    """run.json"""
    card: Record
    """final/card.json: exists when the run has reached its end"""
    learners: tuple[Learner, ...]

    @property
    def spec(self) -> Record:
        """The spec in camelCase, from the first of galarun.yaml, card.json, plan.json that has one."""
        candidates = (self.document.get("spec"), mapping(self.card, "spec"), mapping(self.plan, "spec"))
        for candidate in candidates:
            if isinstance(candidate, Mapping) and candidate:
                # A card may carry the whole document instead of its spec.
                nested = candidate.get("spec")
                return nested if isinstance(nested, Mapping) else candidate
        return {}

    @property
    def environment(self) -> str:
        """The environment's id, or "" if the spec is unknown."""
        return text(self.spec, "environment", "id")

    @property
    def algorithm(self) -> str:
        """The algorithm's name; that of the first version if the spec does not say."""
        return text(self.spec, "algorithm") or GALA_A2C

    @property
    def gossips(self) -> bool:
        """Whether its learners mix parameters with their neighbours'; taken for granted of unknown algorithms."""
        facts = ALGORITHMS.get(self.algorithm)
        return facts is None or facts.gossips

    @property
    def centre(self) -> str | None:
        """Role of rank 0 where all others depend on it and it has no simulators; else None."""
        facts = ALGORITHMS.get(self.algorithm)
        return None if facts is None else facts.centre

    def role(self, rank: int) -> str:
        """Of one rank, as the plan says, or else as its algorithm has it; "" if neither is known."""
        planned = [text(entry, "role") for entry in objects(self.plan, "learners") if integer(entry, "rank") == rank]
        facts = ALGORITHMS.get(self.algorithm)
        return next(filter(None, planned), facts.role(rank) if facts is not None else "")

    @property
    def ranks(self) -> frozenset[int]:
        """The ranks of the plan, which learners may have left; those seen on disk if there is no plan."""
        planned = {rank for entry in objects(self.plan, "learners") if (rank := integer(entry, "rank")) is not None}
        return frozenset(planned or {learner.rank for learner in self.learners})

    @property
    def num_learners(self) -> int:
        """Learners planned, or seen on disk if there is no plan."""
        return len(self.ranks)

    @property
    def evaluations(self) -> tuple[Record, ...]:
        """Evaluations of all learners, in the order of global steps."""
        found = [record for learner in self.learners for record in learner.evaluations]
        return tuple(sorted(found, key=lambda record: (integer(record, "globalSteps") or 0, number(record, "time"))))

    @property
    def global_steps(self) -> int:
        """Agent decisions of all learners together, the furthest that any record knows of."""
        known = [integer(self.card, "globalSteps")]
        known += [integer(learner.last, "globalSteps") for learner in self.learners]
        return max((value for value in known if value is not None), default=0)


def number(record: object, *path: str) -> float:
    """The number at `path`; NaN if it is missing, null, no number, or beyond MAX_NUMBER."""
    value = answers.number(_at(record, path))
    return value if value is not None and abs(value) <= MAX_NUMBER else math.nan


def integer(record: object, *path: str) -> int | None:
    """The whole number at `path`; None if it is missing or no number."""
    value = number(record, *path)
    return None if math.isnan(value) else int(value)


def text(record: object, *path: str) -> str:
    """The string at `path`; "" if it is missing or no string."""
    return answers.text(_at(record, path))


def mapping(record: object, *path: str) -> Record:
    """The object at `path`; empty if it is missing or no object."""
    return answers.mapping(_at(record, path))


def objects(record: object, *path: str) -> list[Record]:
    """The objects in the list at `path`; empty if there is no such list."""
    return answers.items(_at(record, path))


def numbers(record: object, *path: str) -> list[float]:
    """The numbers in the list at `path`, see `number`."""
    value = _at(record, path)
    found = [number({"x": item}, "x") for item in value] if isinstance(value, list) else []
    return [item for item in found if not math.isnan(item)]


def read_run(directory: Path) -> Run:
    """Reads one run directory.

    Raises:
        UsageError: `directory` does not exist, is not a run or cannot be looked at.
    """
    with reading(directory):
        _demand_run(directory)
    document = _read_yaml(directory / names.SPEC_FILE)
    plan = json_file(directory / names.PLAN_FILE)
    card = json_file(directory / names.FINAL_DIRECTORY / names.CARD_FILE)
    called = (text(document, "metadata", "name"), text(plan, "runName"), text(card, "run"))
    return Run(
        directory=directory,
        name=next((name for name in called if name), directory.resolve().name),
        document=document,
        plan=plan,
        state=json_file(directory / names.RUN_FILE),
        card=card,
        learners=tuple(_read_learner(rank, folder) for rank, folder in sorted(_learner_folders(directory))),
    )


def _demand_run(directory: Path) -> None:
    if not directory.is_dir():
        what = "it is a file" if directory.exists() else "there is no such folder"
        raise UsageError(f"{directory}: not a run directory: {what}; give a folder such as runs/pong")
    if not _is_run(directory):
        inside = sorted(child.name for child in directory.iterdir() if _is_readable_run(child))
        hint = f"; did you mean {', '.join(str(directory / name) for name in inside[:3])}?" if inside else ""
        raise UsageError(f"{directory}: not a run directory: no {', '.join(RUN_FILES)} or learner-<rank>/ in it{hint}")


def _is_readable_run(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        return directory.is_dir() and _is_run(directory)
    return False


def _is_run(directory: Path) -> bool:
    return any((directory / name).is_file() for name in RUN_FILES) or any(_learner_folders(directory))


def _learner_folders(directory: Path) -> Iterator[tuple[int, Path]]:
    for folder in directory.glob("learner-*"):
        rank = folder.name.removeprefix("learner-")
        if folder.is_dir() and rank.isascii() and rank.isdigit():
            yield int(rank), folder


def _read_learner(rank: int, folder: Path) -> Learner:
    kinds: dict[str, list[Record]] = {"train": [], "evaluation": [], "event": []}
    unreadable = 0
    for record in read_lines(folder / names.METRICS_FILE):
        if record is None:
            unreadable += 1
        elif text(record, "kind") in kinds:
            kinds[text(record, "kind")].append(record)
    return Learner(
        rank=rank,
        train=tuple(kinds["train"]),
        evaluations=tuple(kinds["evaluation"]),
        events=tuple(kinds["event"]),
        unreadable_lines=unreadable,
    )


def read_lines(path: Path) -> Iterator[Record | None]:
    """Yields each line's object, None for a whole line that is not one."""
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.strip():
                    continue
                value = json_object(line)
                if value is not None or line.endswith(b"\n"):
                    yield value
    except OSError:
        return


def _read_yaml(path: Path) -> Record:
    try:
        value = yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _at(record: object, path: Sequence[str]) -> object:
    for key in path:
        if not isinstance(record, Mapping):
            return None
        record = record.get(key)
    return record
