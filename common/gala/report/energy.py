"""What a run has used in energy, from energy.jsonl beside its run.json; missing where the machine tells nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import numpy as np

from gala.report.experiment import Entry
from gala.report.read import Record, Run, number, read_lines
from gala.report.series import EMPTY, Curve

ENERGY_FILE: Final = "energy.jsonl"

KILOJOULES: Final = "kilojoules"
"""Key of train records that `with_energy` adds."""


def energy(run: Run) -> Curve:
    """Joules used since the run's beginning over Unix seconds; empty if they were not readable."""
    records = [record for record in read_lines(run.directory / ENERGY_FILE) if record is not None]
    points = sorted(
        (moment, joules)
        for record in records
        if not math.isnan(moment := number(record, "time")) and not math.isnan(joules := number(record, "joules"))
    )
    if len(points) < 2:
        return EMPTY
    x, y = (np.array(values) for values in zip(*points, strict=True))
    # A counter that begins again, after a restart of the launcher, has used nothing in between that is known.
    return Curve(x, np.concatenate([[0.0], np.maximum(np.diff(y), 0.0).cumsum()]))


def with_energy(entry: Entry) -> Entry:
    """The entry with the energy used so far, in kJ, in each train record that has a time within the measured ones."""
    if entry.run is None:
        return entry
    used = energy(entry.run)
    if not used:
        return entry

    def measured(record: Record) -> Record:
        moment = number(record, "time")
        if math.isnan(moment) or not used.x[0] <= moment <= used.x[-1]:
            return record
        return {**record, KILOJOULES: float(np.interp(moment, used.x, used.y)) / 1000}

    learners = tuple(replace(one, train=tuple(map(measured, one.train))) for one in entry.run.learners)
    return replace(entry, run=replace(entry.run, learners=learners))
