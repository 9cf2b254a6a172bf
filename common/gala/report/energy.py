"""What a run has used in energy: energy.jsonl, which `gala.local.energy` writes where the machine can be asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from gala import names
from gala.report.experiment import Entry
from gala.report.read import Record, Run, mapping, number, read_lines, text
from gala.report.series import EMPTY, Array, Curve

KILOJOULES: Final = "kilojoules"
"""Key of train records that `with_energy` adds."""

KINDS: Final = {"cpu": "Processor", "gpu": "GPU"}


def energy(run: Run) -> Curve:
    """Joules of processor and GPU together, over seconds since the launcher started the run; empty if not readable.

    A kind that could not be read from the beginning is left out; when one that could fails later, the curve ends.
    """
    x: list[float] = []
    y: list[float] = []
    kinds: list[str] = []
    for record in read_lines(run.directory / names.ENERGY_FILE):
        wall = number(record, "wallSeconds")
        if math.isnan(wall):
            continue
        joules = {kind: value for kind in KINDS if not math.isnan(value := number(record, f"{kind}Joules"))}
        kinds = kinds or list(joules)
        if not kinds or any(kind not in joules for kind in kinds):
            break
        total = sum(joules[kind] for kind in kinds)
        # A launcher that was killed counts on from its last line: neither goes back, unless lines are damaged.
        if not x or (wall > x[-1] and total >= y[-1]):
            x.append(wall)
            y.append(total)
    return Curve(np.array(x), np.array(y)) if len(x) > 1 else EMPTY


def since_first_record(run: Run) -> tuple[Curve, float]:
    """(joules over seconds since the run's first record, which is the report's wall-clock; their mean in watts).

    The launcher counts from its own start on: what it took until the first record is cut off, as in wall-clock.
    """
    used = energy(run)
    if not used:
        return EMPTY, math.nan
    start = _first_record(run) - number(run.state, "startTime")
    start = start if 0 <= start <= used.x[-1] else 0.0
    at_start = float(np.interp(start, used.x, used.y))
    kept = used.x > start
    x: Array = np.concatenate([[0.0], used.x[kept] - start])
    y: Array = np.concatenate([[0.0], used.y[kept] - at_start])
    return Curve(x, y), float(y[-1] / x[-1]) if x[-1] > 0 else math.nan


def with_energy(entry: Entry) -> Entry:
    """The entry with the energy used so far, in kJ, in each train record made while it was measured."""
    if entry.run is None:
        return entry
    used, _ = since_first_record(entry.run)
    if not used:
        return entry

    def measured(record: Record) -> Record:
        wall = number(record, "wallSeconds")
        if math.isnan(wall) or not 0 <= wall <= used.x[-1] + _BETWEEN_LINES:
            return record
        return {**record, KILOJOULES: float(np.interp(wall, used.x, used.y)) / 1000}

    learners = tuple(replace(one, train=tuple(map(measured, one.train))) for one in entry.run.learners)
    return replace(entry, run=replace(entry.run, learners=learners))


def sources(runs: Iterable[Run]) -> str:
    """What was read, or why nothing was, as the launcher of the runs has noted it: sentences without repetition."""
    found: dict[str, None] = {}
    for run in runs:
        for kind, what in KINDS.items():
            facts: Mapping[str, object] = mapping(run.state, "energy", kind)
            if source := text(facts, "source"):
                found[f"{what}: {source}."] = None
            elif missing := text(facts, "missing"):
                found[f"{what}: not measured, {missing}."] = None
    return " ".join(list(found)[:_MOST_SOURCES])


_BETWEEN_LINES: Final = 15.0
"""Seconds: the last records of a run are younger than the last line."""

_MOST_SOURCES: Final = 6


def _first_record(run: Run) -> float:
    """Unix seconds; NaN if nothing is recorded."""
    times = [number(record, "time") for one in run.learners for record in (*one.train[:1], *one.events[:1])]
    return min((time for time in times if not math.isnan(time)), default=math.nan)
