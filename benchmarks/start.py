"""What a worker's start costs before it can do anything: the imports of its main path, in processes of their own.

    python benchmarks/start.py [--rounds 10] [--json]

CPU seconds (user and system) of `import torch`, of all that a worker imports, and of the same as its entry point does
it, without garbage collection (`gala_worker.imports`); in turn, so that a noisy machine is noisy for all three.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import Final

WORKER: Final = "import gala_worker.worker"
PROGRAMS: Final = {
    "torch alone": "import torch",
    "a worker": WORKER,
    "without collection": (
        "from gala_worker.imports import without_garbage_collection as quiet\nwith quiet():\n    " + WORKER
    ),
}


def cpu_seconds(code: str) -> float:
    """Of a process that runs `code`, from its start to its end.

    Raises:
        CalledProcessError: the code failed.
    """
    process = subprocess.Popen([sys.executable, "-P", "-c", code])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU seconds of what a worker imports.")
    parser.add_argument("--rounds", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds: must be at least 1, got {options.rounds}")
    for code in PROGRAMS.values():
        cpu_seconds(code)  # the first one reads the files from the disk
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(options.rounds):
        for name, code in PROGRAMS.items():
            seconds[name].append(cpu_seconds(code))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    if options.json:
        print(json.dumps({"rounds": options.rounds, "cpuSeconds": seconds}))
        return
    for name, median in medians.items():
        part = f"{median / medians['a worker']:.2f} of a worker's"
        print(f"{name:<20} {median:6.2f} s CPU   {part}   {min(seconds[name]):.2f} to {max(seconds[name]):.2f}")


if __name__ == "__main__":
    main()
