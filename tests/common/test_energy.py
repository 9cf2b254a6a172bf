"""The energy meter on a made-up sysfs tree and a made-up NVML: totals, wrap-around, resuming, and what is missing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gala.local.energy import EnergyMeter, Nvml, Rapl

RANGE = 262_143_328_850


class Powercap:
    """A /sys/class/powercap."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()

    def zone(self, folder: str, name: str, microjoules: int) -> None:
        path = self.root / folder
        path.mkdir(exist_ok=True)
        (path / "name").write_text(f"{name}\n")
        (path / "max_energy_range_uj").write_text(f"{RANGE}\n")
        (path / "energy_uj").write_text(f"{microjoules}\n")


@pytest.fixture
def powercap(tmp_path: Path) -> Powercap:
    """A machine with two packages, one with all the zones there are."""
    made = Powercap(tmp_path / "powercap")
    made.zone("intel-rapl:0", "package-0", 1_000_000)
    made.zone("intel-rapl:0:0", "core", 500_000)
    made.zone("intel-rapl:0:1", "dram", 100_000)
    made.zone("intel-rapl:1", "package-1", 2_000_000)
    made.zone("intel-rapl-mmio:0", "package-0", 1_000_000)
    made.zone("intel-rapl:2", "psys", 9_000_000)
    (made.root / "intel-rapl").mkdir()  # the control type itself: no counter
    return made


def meter(tmp_path: Path, powercap: Powercap | None, **options: Any) -> EnergyMeter:
    root = powercap.root if powercap is not None else tmp_path / "nothing"
    return EnergyMeter(file=tmp_path / "energy.jsonl", gpus=False, powercap=root, **options)


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "energy.jsonl").read_text().splitlines()]


class TestProcessors:
    def test_packages_and_memory_count_once_and_their_parts_do_not(self, powercap: Powercap) -> None:
        rapl = Rapl(powercap.root)
        powercap.zone("intel-rapl:0", "package-0", 4_000_000)  # 3 J
        powercap.zone("intel-rapl:0:0", "core", 3_000_000)
        powercap.zone("intel-rapl:0:1", "dram", 600_000)  # 0.5 J
        powercap.zone("intel-rapl:1", "package-1", 2_250_000)  # 0.25 J
        powercap.zone("intel-rapl-mmio:0", "package-0", 4_000_000)
        powercap.zone("intel-rapl:2", "psys", 99_000_000)
        assert rapl.used() == pytest.approx(3.75)
        assert rapl.used() == 0
        assert rapl.source == "RAPL: package-0, dram, package-1"

    def test_a_counter_that_starts_again_at_its_range_goes_on(self, powercap: Powercap) -> None:
        powercap.zone("intel-rapl:0", "package-0", RANGE - 1_000_000)
        rapl = Rapl(powercap.root)
        powercap.zone("intel-rapl:0", "package-0", 2_000_000)
        assert rapl.used() == pytest.approx(3.0)

    def test_what_nobody_has_is_said_to_be_missing(self, tmp_path: Path) -> None:
        made = meter(tmp_path, None)
        made.record(10.0)
        assert "there is no" in made.facts()["cpu"]["missing"]
        assert "uses no GPU" in made.facts()["gpu"]["missing"]
        assert not (tmp_path / "energy.jsonl").exists(), "a line without a number says nothing"

    def test_what_only_root_may_read_is_said_to_be(
        self, tmp_path: Path, powercap: Powercap, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read_text = Path.read_text

        def refusing(path: Path, *arguments: Any, **options: Any) -> str:
            if path.name == "energy_uj":
                raise PermissionError(13, "Permission denied", str(path))
            return read_text(path, *arguments, **options)

        monkeypatch.setattr(Path, "read_text", refusing)  # root, which tests may run as, reads everything
        assert "may be read by root only" in meter(tmp_path, powercap).facts()["cpu"]["missing"]

    def test_a_machine_without_counters_says_so(self, tmp_path: Path) -> None:
        empty = Powercap(tmp_path / "empty")
        assert "has no RAPL counter" in meter(tmp_path, empty).facts()["cpu"]["missing"]


class TestMeter:
    def test_lines_hold_totals_over_the_run(self, tmp_path: Path, powercap: Powercap) -> None:
        before = round(time.time(), 3)
        made = meter(tmp_path, powercap)
        made.record(0.0)
        powercap.zone("intel-rapl:1", "package-1", 3_000_000)
        made.record(10.0)
        powercap.zone("intel-rapl:1", "package-1", 3_500_000)
        made.record(20.0)
        found = lines(tmp_path)
        times = [line.pop("time") for line in found]
        assert before <= times[0] <= times[1] <= times[2] <= round(time.time(), 3)
        assert found == [
            {"wallSeconds": 0.0, "cpuJoules": 0.0, "gpuJoules": None},
            {"wallSeconds": 10.0, "cpuJoules": 1.0, "gpuJoules": None},
            {"wallSeconds": 20.0, "cpuJoules": 1.5, "gpuJoules": None},
        ]

    def test_what_is_used_while_the_run_stands_still_is_not_its_energy(
        self, tmp_path: Path, powercap: Powercap
    ) -> None:
        made = meter(tmp_path, powercap)
        powercap.zone("intel-rapl:1", "package-1", 50_000_000)
        made.record(10.0, counts=False)
        powercap.zone("intel-rapl:1", "package-1", 51_000_000)
        made.record(10.0)
        assert [line["cpuJoules"] for line in lines(tmp_path)] == [1.0]

    def test_a_resumed_run_adds_to_what_it_had_used(self, tmp_path: Path, powercap: Powercap) -> None:
        (tmp_path / "energy.jsonl").write_text(
            '{"time": 5.0, "wallSeconds": 60.0, "cpuJoules": 500.0, "gpuJoules": null}\n{"wal'
        )
        made = meter(tmp_path, powercap, wall_seconds=60.0)
        powercap.zone("intel-rapl:1", "package-1", 3_000_000)
        made.record(70.0)
        assert json.loads((tmp_path / "energy.jsonl").read_text().splitlines()[-1])["cpuJoules"] == 501.0

    @pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'["x"]\n'])
    def test_damaged_lines_do_not_cost_what_was_measured(
        self, tmp_path: Path, powercap: Powercap, damage: bytes
    ) -> None:
        (tmp_path / "energy.jsonl").write_bytes(b'{"wallSeconds": 60.0, "cpuJoules": 500.0}\n' + damage)
        powercap.zone("intel-rapl:1", "package-1", 2_000_000)
        made = meter(tmp_path, powercap, wall_seconds=60.0)
        powercap.zone("intel-rapl:1", "package-1", 3_000_000)
        made.record(70.0)
        written = (tmp_path / "energy.jsonl").read_bytes().splitlines()[-1]
        assert json.loads(written)["cpuJoules"] == 501.0

    def test_what_cannot_be_an_energy_is_as_good_as_none(self, tmp_path: Path, powercap: Powercap) -> None:
        (tmp_path / "energy.jsonl").write_text('{"cpuJoules": 1' + "0" * 400 + "}\n")
        made = meter(tmp_path, powercap, wall_seconds=60.0)
        assert "earlier session" in made.facts()["cpu"]["missing"]

    def test_a_part_does_not_pass_for_the_whole(self, tmp_path: Path, powercap: Powercap) -> None:
        made = meter(tmp_path, powercap, wall_seconds=3600.0)
        assert "earlier session" in made.facts()["cpu"]["missing"]
        made.record(3610.0)
        assert not (tmp_path / "energy.jsonl").exists()

    def test_a_counter_that_goes_away_ends_the_record(self, tmp_path: Path, powercap: Powercap) -> None:
        made = meter(tmp_path, powercap)
        made.record(10.0)
        (powercap.root / "intel-rapl:1" / "energy_uj").unlink()
        made.record(20.0)
        assert len(lines(tmp_path)) == 1
        assert "could not be read any more" in made.facts()["cpu"]["missing"]


class FakeNvml(ModuleType):
    """What of pynvml the meter uses, for a machine with two GPUs."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.millijoules = [1000, 5000]
        self.broken = False

    def nvmlInit(self) -> None:  # noqa: N802
        if self.broken:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.millijoules)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"H{handle}"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        return self.millijoules[handle]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


class TestGpus:
    @pytest.mark.parametrize(
        ("visible", "joules", "source"),
        [
            pytest.param(None, 3.0, "NVML: H0, H1", id="all"),
            pytest.param("1", 2.0, "NVML: H1", id="one"),
            pytest.param("GPU-0", 1.0, "NVML: H0", id="by uuid"),
            pytest.param("0,-1,1", 1.0, "NVML: H0", id="nothing behind a negative number"),
        ],
    )
    def test_the_gpus_that_the_run_may_see_count(
        self, nvml: FakeNvml, visible: str | None, joules: float, source: str
    ) -> None:
        counter = Nvml(visible)
        nvml.millijoules = [2000, 7000]
        assert counter.used() == joules
        assert counter.source == source

    @pytest.mark.parametrize(
        ("broken", "visible", "why"), [(True, None, "Driver Not Loaded"), (False, "", "no GPU that may be used")]
    )
    def test_why_nothing_can_be_read(self, nvml: FakeNvml, broken: bool, visible: str | None, why: str) -> None:
        nvml.broken = broken
        with pytest.raises(LookupError, match=why):
            Nvml(visible)

    def test_without_the_package_the_remedy_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", None)
        with pytest.raises(LookupError, match=r"pip install -e '\.\[energy\]'"):
            Nvml()
