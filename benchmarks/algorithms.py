"""Agent decisions per second of GALA-A2C, A2C, A3C and IMPALA, side by side; and with one worker slowed down twofold.

    python benchmarks/algorithms.py [--rounds 3] [--seconds 20] [--only NAME ...] [--output results.json]

The same work for all: Pong, 32 simulators in all, the nature-32 network, on all cores of the machine. GALA-A2C and A2C
are two workers of 16 simulators; A3C and IMPALA are two such workers and rank 0, which has none; Stable-Baselines3's
A2C stands beside them. Rollouts have each algorithm's published length: 5 decisions, IMPALA 20. The contenders take
turns, every round in another order, so that a machine that others use too slows all of them alike; the figures to quote
are the ratios of the medians.

The straggler is one worker that is stopped (SIGSTOP) for half of every 20 ms, as if its processor were half as fast. It
is the last rank, which has simulators in every algorithm. What share of the time it was really stopped is measured and
printed. Needs `pip install -e '.[benchmark]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import throughput

WORKERS = 2
PERIOD_SECONDS = 0.02
SLOWED = ", one worker slowed 2x"
BASELINES = ("A2C", "A3C", "IMPALA")

RUN = """
apiVersion: gala.dev/v1alpha1
kind: GalaRun
metadata: {{name: throughput}}
spec:
  algorithm: {algorithm}
  environment: {{id: {environment}, simulators: {simulators}}}
  learners: {learners}
  totalSteps: 1000000000
  precision: {precision}
  worker: {{gpus: 0}}
  evaluation: {{everySteps: null}}
"""


@dataclass(frozen=True)
class Size:
    """How large the work is, and how long it is watched."""

    environment: str
    simulators: int
    precision: str
    seconds: float


@dataclass
class Result:
    """Of one contender, over the rounds."""

    decisions_per_second: list[float] = field(default_factory=list)
    stopped_share: list[float] = field(default_factory=list)
    """Of the straggler's time."""

    @property
    def median(self) -> float:
        """Decisions per second."""
        return statistics.median(self.decisions_per_second)


Contender = Callable[[Size, Result], None]


def gala(algorithm: str, *, centre: bool = False, slowed: bool = False) -> Contender:
    """A real run: the launcher, its workers, their metrics. `centre`: rank 0 is one more, without simulators."""

    def measure(size: Size, result: Result) -> None:
        learners = WORKERS + centre
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "run.yaml"
            file.write_text(
                RUN.format(
                    algorithm=algorithm,
                    environment=size.environment,
                    simulators=size.simulators // WORKERS,
                    learners=learners,
                    precision=size.precision,
                )
            )
            command = [sys.executable, "-P", "-m", "gala", "run", str(file), "--output", folder]
            with throughput.running(command) as process:
                directory = Path(folder) / "throughput"
                records = throughput.await_training(process, directory, learners)
                straggler = Straggler(worker_pid(directory, learners - 1)) if slowed else contextlib.nullcontext()
                with straggler:
                    rate = throughput.watch(process, records, size.seconds)
                if isinstance(straggler, Straggler):
                    result.stopped_share.append(straggler.stopped_share)
        result.decisions_per_second.append(rate)

    return measure


def stable_baselines3(vectorisation: str) -> Contender:
    """Stable-Baselines3's A2C with its own wrappers, in its default precision and threads; on Pong whatever `size`."""
    measure_once = throughput.stable_baselines3(vectorisation)

    def measure(size: Size, result: Result) -> None:
        result.decisions_per_second.append(measure_once(size.seconds))

    return measure


def worker_pid(directory: Path, rank: int) -> int:
    """Of the worker that has this rank in the run of this directory."""
    wanted = {f"GALA_RANK={rank}".encode(), f"GALA_OUTPUT_DIR={directory}".encode()}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                return int(folder.name)
    raise SystemExit(f"there is no worker of rank {rank}")


class Straggler:
    """While entered, a process is stopped for half of every period."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.stopped_share = 0.0

    def __enter__(self) -> Straggler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        began, stopped = time.perf_counter(), 0.0
        try:
            while not self._end.is_set():
                os.kill(self._pid, signal.SIGSTOP)
                since = time.perf_counter()
                time.sleep(PERIOD_SECONDS / 2)
                os.kill(self._pid, signal.SIGCONT)
                stopped += time.perf_counter() - since
                # What a busy machine made of the sleep is given back, so that the share stays one half.
                time.sleep(max(0.0, 2 * stopped - (time.perf_counter() - began)))
        except ProcessLookupError:
            pass  # the run has ended by itself, which its exit code tells
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGCONT)
            self.stopped_share = stopped / (time.perf_counter() - began)


CONTENDERS: dict[str, Contender] = {
    "GALA-A2C": gala("GALA-A2C"),
    "A2C": gala("A2C"),
    "A3C": gala("A3C", centre=True),
    "IMPALA": gala("IMPALA", centre=True),
    f"GALA-A2C{SLOWED}": gala("GALA-A2C", slowed=True),
    f"A2C{SLOWED}": gala("A2C", slowed=True),
    f"A3C{SLOWED}": gala("A3C", centre=True, slowed=True),
    f"IMPALA{SLOWED}": gala("IMPALA", centre=True, slowed=True),
    "Stable-Baselines3 A2C, in one process": stable_baselines3("dummy"),
    "Stable-Baselines3 A2C, subprocesses": stable_baselines3("subprocess"),
}


def compare(names: list[str], rounds: int, size: Size) -> dict[str, Result]:
    """Measures in turn, and prints every figure as it comes."""
    results = {name: Result() for name in names}
    for number in range(rounds):
        for name in random.Random(number).sample(names, len(names)):
            CONTENDERS[name](size, results[name])
            rate = results[name].decisions_per_second[-1]
            print(f"round {number + 1} of {rounds}: {name}: {rate:,.0f} decisions/s", flush=True)
    return results


def ratios(results: dict[str, Result]) -> dict[str, float]:
    """What the bars are about, as far as it was measured: GALA-A2C in multiples of others."""
    medians = {name: result.median for name, result in results.items()}
    found = {}
    own, slowed = medians.get("GALA-A2C"), medians.get(f"GALA-A2C{SLOWED}")
    baselines: dict[str, float] = {name: medians[name] for name in BASELINES if name in medians}
    yardsticks = [rate for name, rate in medians.items() if name.startswith("Stable")]
    if own:
        for name, rate in baselines.items():
            found[f"GALA-A2C / {name}"] = own / rate
        if baselines:
            found["GALA-A2C / the best of these"] = own / max(baselines.values())
        if yardsticks:
            found["GALA-A2C / Stable-Baselines3 A2C (the faster one)"] = own / max(yardsticks)
    for name in BASELINES:
        if slowed and f"{name}{SLOWED}" in medians:
            found[f"GALA-A2C / {name}, both with one worker slowed 2x"] = slowed / medians[f"{name}{SLOWED}"]
    for name in ("GALA-A2C", *baselines):
        if name in medians and f"{name}{SLOWED}" in medians:
            found[f"{name} with one worker slowed 2x / without"] = medians[f"{name}{SLOWED}"] / medians[name]
    return found


def tell(results: dict[str, Result]) -> None:
    """The table and the ratios."""
    print(f"\n{'agent decisions/s':<42}{'median':>9}{'min':>9}{'max':>9}{'stopped':>9}")
    for name, result in results.items():
        rates = result.decisions_per_second
        share = f"{statistics.mean(result.stopped_share):.0%}" if result.stopped_share else ""
        print(f"{name:<42}{result.median:>9,.0f}{min(rates):>9,.0f}{max(rates):>9,.0f}{share:>9}")
    print()
    for label, ratio in ratios(results).items():
        print(f"{ratio:.2f} = {label}")


def document(results: dict[str, Result], size: Size) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": len(os.sched_getaffinity(0)),
        "processor": next(_processors(), platform.processor()),
        "environment": size.environment,
        "simulators": size.simulators,
        "precision": size.precision,
        "seconds": size.seconds,
        "results": {
            name: {"decisionsPerSecond": result.decisions_per_second, "stoppedShare": result.stopped_share}
            for name, result in results.items()
        },
        "ratios": ratios(results),
    }


def _processors() -> Iterator[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                yield line.partition(":")[2].strip()


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="measured, of each contender in each round")
    parser.add_argument("--only", nargs="*", default=list(CONTENDERS), choices=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--environment", default="ALE/Pong-v5", help="of our own contenders")
    parser.add_argument("--simulators", type=int, default=32, help="in all")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--output", type=Path, help="where to write everything as JSON")
    options = parser.parse_args()
    if reason := throughput.excuse(options.only):
        parser.error(reason)
    size = Size(options.environment, options.simulators, options.precision, options.seconds)
    results = compare(options.only, options.rounds, size)
    tell(results)
    if options.output:
        options.output.write_text(json.dumps(document(results, size), indent=2) + "\n")


if __name__ == "__main__":
    main()
