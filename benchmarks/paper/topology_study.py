"""How topologies mix: gossip alone for 4 to 1,024 learners, averaging and push-sum, in good and in bad conditions.

    python benchmarks/paper/topology_study.py [--small] [--output docs/results/topology]

Simulates every topology, size, condition and way of mixing over several seeds (`topology_model` says what is
simulated), prints a table, and writes `study.json` and three figures. No environments, no torch; the same seed gives
the same file.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import topology_figures
from topology_model import SYNCHRONOUS, Conditions, Course, Mixing, Shape, simulate

from gala import topology

SHAPES = (Shape("Ring"), Shape("Exponential"), Shape("OnePeerExponential"), Shape("Complete"))
MIXINGS: tuple[Mixing, ...] = ("average", "push-sum")
ASYNCHRONOUS = Conditions("asynchronous", pace_spread=0.25, jitter=0.1, delay=0.1)
LOSSY = Conditions("lossy", pace_spread=0.25, jitter=0.1, delay=0.1, loss=0.05, repair=2.0)
CHURNING = Conditions(
    "churning", pace_spread=0.25, jitter=0.1, delay=0.1, loss=0.05, repair=2.0, death=0.002, away=20.0
)
CONDITIONS = (SYNCHRONOUS, ASYNCHRONOUS, LOSSY, CHURNING)
CONSENSUS = 0.01
"""Time to consensus: until the radius is, and stays, at or below this share of that at the start."""
ENOUGH = 1e-3
"""A simulation ends when every seed's radius has come down to this share."""
MOST_EDGES = 150_000
"""Of all seeds of a simulation together: the complete graph of 1,024 learners gets fewer seeds than the others."""
POINTS = 60
"""Of a course that are written down."""


@dataclass(frozen=True, slots=True)
class Row:
    """One simulation: a line of the table."""

    topology: str
    learners: int
    conditions: str
    mixing: str
    seeds: int
    consensus: float | None
    """Median over the seeds, in updates; None where not every seed got there."""
    consensus_range: tuple[float, float] | None
    predicted: float | None
    """By beta, in lock step: ln(1 / CONSENSUS) / ln(1 / beta), or one period where that averages exactly."""
    drift: float
    """Median over the seeds at the end, as a share of the radius at the start."""
    drift_max: float
    kept: float
    """As `drift_max`, of the weighted mean of everything, on its way or not: what push-sum keeps."""
    radius: float
    """Median at the end."""
    updates: float
    """Of an average learner, until the end of the simulation."""
    weights: tuple[float, float]
    lost: int
    deaths: int
    times: list[float]
    course: list[float]
    """Median radius over the seeds, at `times`."""


def predicted(shape: Shape, size: int) -> float:
    """Rounds of lock step until the radius is at CONSENSUS, from the spectrum of the mixing matrix."""
    beta = topology.beta(shape, size)
    return float(topology.period(shape, size)) if beta == 0 else math.log(CONSENSUS) / math.log(beta)


def summarise(shape: Shape, size: int, mixing: Mixing, conditions: Conditions, course: Course) -> Row:
    """What the table and the figures need of a simulation."""
    reached = course.time_to(CONSENSUS)
    everyone = not np.isnan(reached).any()
    picked = np.unique(np.linspace(0, len(course.times) - 1, POINTS).astype(int))
    return Row(
        shape.type,
        size,
        conditions.name,
        mixing,
        course.radius.shape[1],
        float(np.median(reached)) if everyone else None,
        (float(reached.min()), float(reached.max())) if everyone else None,
        _round(predicted(shape, size)) if conditions == SYNCHRONOUS else None,
        _round(float(np.median(course.drift[-1]))),
        _round(float(course.drift[-1].max())),
        _round(float(course.kept[-1].max())),
        _round(float(np.median(course.radius[-1]))),
        float(course.times[-1]),
        (_round(course.weights[0]), _round(course.weights[1])),
        course.lost,
        course.deaths,
        [_round(float(t)) for t in course.times[picked]],
        [_round(float(r)) for r in np.median(course.radius[picked], axis=1)],
    )


@dataclass(frozen=True, slots=True)
class Task:
    """One simulation to be done."""

    shape: Shape
    size: int
    mixing: Mixing
    conditions: Conditions
    updates: float
    seeds: int

    def run(self) -> Row:
        """Simulates; in a process of its own, perhaps."""
        course = simulate(
            self.shape, self.size, self.mixing, self.conditions, updates=self.updates, seeds=self.seeds, enough=ENOUGH
        )
        return summarise(self.shape, self.size, self.mixing, self.conditions, course)


def tasks(sizes: list[int], updates: float, seeds: int) -> list[Task]:
    """All simulations of a study."""
    found = []
    for conditions, shape, size in itertools.product(CONDITIONS, SHAPES, sizes):
        edges = size * len(topology.all_out_peers(shape, 0, size))
        several = max(1, min(seeds, MOST_EDGES // edges))
        found += [Task(shape, size, mixing, conditions, updates, several) for mixing in MIXINGS]
    return found


def study(work: list[Task], jobs: int) -> Iterator[Row]:
    """Their results, in the order of the work, `jobs` at a time."""
    if jobs == 1:
        yield from (task.run() for task in work)
        return
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(Task.run, work)


def heading() -> str:
    """Of the table's columns."""
    left = f"{'conditions':13} {'topology':19} {'n':>5} {'mixing':9} {'seeds':>5}"
    return f"{left} {'updates to 1 %':>22} {'drift':>8} {'max':>8} {'kept':>8}"


def line(row: Row) -> str:
    """Of the table."""
    if row.consensus is None or row.consensus_range is None:
        reached = f"not in {row.updates:g} ({row.radius:.2g})"
    else:
        low, high = row.consensus_range
        reached = f"{row.consensus:g} ({low:g} to {high:g})"
    who = f"{row.conditions:13} {row.topology:19} {row.learners:5d} {row.mixing:9} {row.seeds:5d}"
    return f"{who} {reached:>22} {row.drift:8.2g} {row.drift_max:8.2g} {row.kept:8.2g}"


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def main() -> None:
    """Prints the table; writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 16, 64, 256, 1024])
    parser.add_argument("--updates", type=float, default=200.0, help="of an average learner, at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="simulations at the same time")
    parser.add_argument("--small", action="store_true", help="4 and 16 learners, 60 updates, 2 seeds")
    parser.add_argument("--output", type=Path, default=Path("docs/results/topology"))
    arguments = parser.parse_args()
    if arguments.small:
        arguments.sizes, arguments.updates, arguments.seeds = [4, 16], 60.0, 2
    began = time.monotonic()
    rows = []
    print(heading())
    for row in study(tasks(arguments.sizes, arguments.updates, arguments.seeds), arguments.jobs):
        rows.append(row)
        print(line(row), flush=True)
    cpu = sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"{len(rows)} simulations in {time.monotonic() - began:.0f} s ({cpu:.0f} s of CPU)")
    arguments.output.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "conditions": [asdict(conditions) for conditions in CONDITIONS],
        "consensus": CONSENSUS,
        "rows": [asdict(row) for row in rows],
    }
    (arguments.output / "study.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")
    for path in topology_figures.draw(document, arguments.output):
        print(path)


if __name__ == "__main__":
    main()
