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
from gala.report.series import EMPTY, Curve

KILOJOULES: Final = "kilojoules"
"""Key of train records that `with_energy` adds."""

KINDS: Final = {"cpu": "Processor", "gpu": "GPU"}


def energy(run: Run) -> Curve:
    """Joules of processor and GPU together since the run's first record, over Unix seconds; empty if not readable.

    A kind that could not be read from the beginning is left out; when one that could fails later, the curve ends.
    """
    x: list[float] = []
    y: list[float] = []
    kinds: list[str] = []
    for record in read_lines(run.directory / names.ENERGY_FILE):
        moment = number(record, "time")
        if math.isnan(moment):
            continue
        joules = {kind: value for kind in KINDS if not math.isnan(value := number(record, f"{kind}Joules"))}
        kinds = kinds or list(joules)
        if not kinds or any(kind not in joules for kind in kinds):
            break
        total = sum(joules[kind] for kind in kinds)
        # A launcher that was killed counts on from its last line: neither goes back, unless lines are damaged.
        if not x or (moment > x[-1] and total >= y[-1]):
            x.append(moment)
            y.append(total)
    times = [number(record, "time") for one in run.learners for record in (*one.train[:1], *one.events[:1])]
    start = min((time for time in times if not math.isnan(time)), default=math.nan)
    if len(x) < 2 or not start < x[-1]:
        return EMPTY
    at_start = float(np.interp(start, x, y))
    kept = np.array(x) > start
    return Curve(np.concatenate([[start], np.array(x)[kept]]), np.concatenate([[0.0], np.array(y)[kept] - at_start]))


def with_energy(entry: Entry) -> Entry:
    """The entry with the energy used so far, in kJ, in each train record made while it was measured."""
    if entry.run is None:
        return entry
    used = energy(entry.run)
    if not used:
        return entry

    def measured(record: Record) -> Record:
        moment = number(record, "time")
        if math.isnan(moment) or not used.x[0] <= moment <= used.x[-1] + _BETWEEN_LINES:
            return record
        return {**record, KILOJOULES: float(np.interp(moment, used.x, used.y)) / 1000}

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
