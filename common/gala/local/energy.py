"""How much energy the machine has used while a run was running: RAPL for processors, NVML for GPUs.

<run>/energy.jsonl has a line about every 10 s, counted over all sessions of the run, with the Unix time, and null where
nothing can be read:

    {"time": 1795405388.2, "wallSeconds": 120.4, "cpuJoules": 3021.5, "gpuJoules": null}

and run.json says under `energy` what was read, or why not. The counters are the machine's: what other programs use in
that time is in them. A machine that is idle uses energy too, and it is not taken off.

Sources: Linux Documentation/power/powercap/powercap.rst; NVML API reference, nvmlDeviceGetTotalEnergyConsumption.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from gala import answers
from gala.errors import to_install

POWERCAP: Final = Path("/sys/class/powercap")
ZONES: Final = ("package", "dram")
"""RAPL zones to add up, by the beginnings of their names: core and uncore are parts of a package, psys holds all."""
FORGIVEN_SECONDS: Final = 20.0
"""A session that ended so early may have left no line behind; what it used is small."""


class Counter(Protocol):
    """One source of energy readings."""

    source: str
    """What is read, for people."""

    def used(self) -> float | None:
        """Joules since the last call; None when it cannot be read any more."""


@dataclass(kw_only=True, slots=True)
class _Zone:
    file: Path
    range_microjoules: int
    last: int = 0

    def used(self) -> int:
        """Microjoules since the last call. Raises: OSError or ValueError."""
        now = _integer(self.file)
        # The counter starts again at 0 when it has reached its range: minutes to hours under load, never within 10 s.
        delta = now - self.last if now >= self.last else now - self.last + self.range_microjoules
        self.last = now
        return delta


class Rapl:
    """The processors' own counters, as the Linux kernel shows them."""

    def __init__(self, root: Path = POWERCAP) -> None:
        """Raises: OSError or ValueError when a counter cannot be read; LookupError when there is none."""
        self._zones: list[_Zone] = []
        names: list[str] = []
        for folder in _rapl_folders(root):
            name = (folder / "name").read_text().strip()
            if name.startswith(ZONES):
                zone = _Zone(file=folder / "energy_uj", range_microjoules=_integer(folder / "max_energy_range_uj"))
                zone.used()
                self._zones.append(zone)
                names.append(name)
        if not names:
            raise LookupError(f"{root} has no RAPL counter; virtual machines and containers often hide them")
        self.source = f"RAPL: {', '.join(names)}"

    def used(self) -> float | None:
        """See `Counter`."""
        try:
            return sum(zone.used() for zone in self._zones) / 1e6
        except (OSError, ValueError):
            return None


class Nvml:
    """The GPUs' own counters, by nvidia-ml-py."""

    def __init__(self, visible: str | None = None) -> None:
        """`visible`: CUDA_VISIBLE_DEVICES. Raises: LookupError saying why nothing can be read."""
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError as error:
            raise LookupError(f"nvidia-ml-py is not installed; {to_install('energy')}") from error
        try:
            self._nvml.nvmlInit()
            self._handles = list(self._chosen(visible))
            if not self._handles:
                raise LookupError("this machine has no GPU that may be used")
            self._last = [self._read(handle) for handle in self._handles]
            kinds = [self._nvml.nvmlDeviceGetName(handle) for handle in self._handles]
        except self._nvml.NVMLError as error:
            raise LookupError(f"NVML: {error}") from error
        self.source = "NVML: " + ", ".join(kind if isinstance(kind, str) else kind.decode() for kind in kinds)

    def used(self) -> float | None:
        """See `Counter`."""
        try:
            now = [self._read(handle) for handle in self._handles]
        except self._nvml.NVMLError:
            return None
        delta = sum(now) - sum(self._last)
        self._last = now
        return max(0, delta) / 1e3  # below 0: a driver was loaded anew

    def _read(self, handle: Any) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle))  # millijoules

    def _chosen(self, visible: str | None) -> Iterator[Any]:
        if visible is None:
            for index in range(self._nvml.nvmlDeviceGetCount()):
                yield self._nvml.nvmlDeviceGetHandleByIndex(index)
            return
        for name in filter(None, (part.strip() for part in visible.split(","))):
            if name.lstrip("-").isdigit():
                if int(name) < 0:  # as CUDA has it, nothing counts from here on
                    return
                yield self._nvml.nvmlDeviceGetHandleByIndex(int(name))
            else:
                yield self._nvml.nvmlDeviceGetHandleByUUID(name)


@dataclass(kw_only=True)
class _Tally:
    """Joules of one kind."""

    counter: Counter | None
    missing: str = ""
    joules: float = 0.0

    def add(self, *, counts: bool) -> None:
        if self.counter is None:
            return
        used = self.counter.used()
        if used is None:
            # What is not known from here on must not pass for a total.
            self.missing, self.counter = f"{self.counter.source} could not be read any more", None
        elif counts:
            self.joules += used

    @property
    def shown(self) -> float | None:
        return None if self.counter is None else round(self.joules, 3)

    def facts(self) -> dict[str, str]:
        return {"source": self.counter.source} if self.counter is not None else {"missing": self.missing}


@dataclass(kw_only=True)
class EnergyMeter:
    """Writes a run's energy.jsonl."""

    file: Path
    gpus: bool
    """Whether the run may use GPUs: else theirs is not its energy."""
    wall_seconds: float = 0.0
    """That the run has been running before, in earlier sessions."""
    powercap: Path = POWERCAP
    _tallies: dict[str, _Tally] = field(init=False)
    _start: str = field(default="", init=False)
    """What the next line begins with: a line's end, where a launcher was killed in the middle of one."""

    def __post_init__(self) -> None:
        self._tallies = {"cpu": self._processors(), "gpu": self._gpus()}
        before, whole = _last_line(self.file)
        self._start = "" if whole else "\n"
        fresh = 0.0 if self.wall_seconds < FORGIVEN_SECONDS else None
        for kind, tally in self._tallies.items():
            joules = answers.number(before.get(f"{kind}Joules", fresh if not before else None))
            if joules is not None:
                tally.joules = joules
            elif tally.counter is not None:
                tally.counter, tally.missing = None, "an earlier session of the run could not read it"

    def facts(self) -> dict[str, dict[str, str]]:
        """For run.json: per kind the source, or why it is missing."""
        return {kind: tally.facts() for kind, tally in self._tallies.items()}

    def record(self, wall_seconds: float, *, counts: bool = True) -> None:
        """Append a line; `counts` False: what was used since the last call was not used by the run."""
        for tally in self._tallies.values():
            tally.add(counts=counts)
        if not counts or all(tally.counter is None for tally in self._tallies.values()):
            return
        line: dict[str, float | None] = {"time": round(time.time(), 3), "wallSeconds": round(wall_seconds, 3)}
        line |= {f"{kind}Joules": tally.shown for kind, tally in self._tallies.items()}
        # A full disk must not end a training.
        with contextlib.suppress(OSError), self.file.open("a", encoding="utf-8") as file:
            file.write(f"{self._start}{json.dumps(line)}\n")
            self._start = ""

    def _processors(self) -> _Tally:
        try:
            return _Tally(counter=Rapl(self.powercap))
        except PermissionError as error:
            return _Tally(counter=None, missing=f"{error.filename} may be read by root only")
        except (OSError, ValueError, LookupError) as error:
            return _Tally(counter=None, missing=str(error))

    def _gpus(self) -> _Tally:
        if not self.gpus:
            return _Tally(counter=None, missing="the run uses no GPU (spec.worker.gpus: 0)")
        try:
            return _Tally(counter=Nvml(os.environ.get("CUDA_VISIBLE_DEVICES")))
        except LookupError as error:
            return _Tally(counter=None, missing=str(error))


def _rapl_folders(root: Path) -> list[Path]:
    """`intel-rapl:0`, `intel-rapl:0:2` and so on, also on AMD; not `intel-rapl-mmio:0`, the same counter once more."""
    try:
        folders = sorted(entry for entry in root.iterdir() if entry.name.startswith("intel-rapl:"))
    except FileNotFoundError as error:
        raise LookupError(f"there is no {root}") from error
    return [folder for folder in folders if (folder / "energy_uj").exists()]


def _integer(file: Path) -> int:
    return int(file.read_text())


def _last_line(file: Path) -> tuple[dict[str, Any], bool]:
    """The last whole line, empty where there is none; and whether nothing stands behind it."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}, True
    for line in reversed(text.splitlines()):
        if (found := answers.json_object(line)) is not None:
            return found, text.endswith("\n")
    return {}, not text or text.endswith("\n")
