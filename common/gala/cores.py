"""How many cores this process may really use: the smaller of the affinity mask and the cgroup's CPU quota.

`os.cpu_count()` sees the machine, not the container: a learner that starts a thread for each core of a 64-core node
inside a 2-core container is throttled most of the time.

Place in the flow: the local launcher shares the cores out among its workers; a worker that was told nothing takes all.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_cores(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores to count on, at least 1; a quota of 1.5 cores counts as 2."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(proc, cgroups))]))


def threads_per_learner(num_learners: int, cores: int) -> int:
    """GALA_THREADS of each of a number of learners: the cores shared out, at least one."""
    return max(1, cores // max(1, num_learners))


def _quotas(proc: Path, cgroups: Path) -> Iterator[float]:
    """Every CPU quota, in cores, on the way from this process's cgroup up to the root; the tightest one binds."""
    for line in _read(proc / "self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            root, quota_of = cgroups, _quota_v2
        elif "cpu" in controllers.split(","):
            root, quota_of = cgroups / "cpu", _quota_v1
        else:
            continue
        # In a container the path is often the host's, which does not exist inside; then the root is the own group.
        here = root / group.lstrip("/")
        for folder in (here, *here.parents):
            quota = quota_of(folder)
            if quota is not None:
                yield quota
            if folder == root:
                break


def _quota_v2(folder: Path) -> float | None:
    match _read(folder / "cpu.max").split():
        case [quota, cpu_period] if quota != "max":
            return float(quota) / float(cpu_period)
    return None


def _quota_v1(folder: Path) -> float | None:
    quota, cpu_period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
    return float(quota) / float(cpu_period) if quota and cpu_period and float(quota) > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
