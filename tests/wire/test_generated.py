"""The committed generated modules fit the floors of pyproject.toml, and import without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIRE = ROOT / "common" / "gala" / "wire"
WIRES = sorted(file.stem for file in WIRE.glob("*.proto"))


def floor(package: str) -> str:
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["worker"]
    return next(r.removeprefix(f"{package}>=") for r in requirements if r.startswith(f"{package}>="))


@pytest.mark.parametrize("wire", WIRES)
def test_the_generated_code_asks_for_no_more_than_the_floors_of_the_worker_extra(wire):
    messages = re.search(r"Protobuf Python Version: ([\d.]+)", (WIRE / f"{wire}_pb2.py").read_text())
    services = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", (WIRE / f"{wire}_pb2_grpc.py").read_text())
    assert messages is not None
    assert services is not None
    assert messages[1] == floor("protobuf")
    assert services[1].startswith(floor("grpcio") + ".")


def test_the_generated_modules_import_with_warnings_as_errors():
    code = "import " + ", ".join(f"gala.wire.{wire}_pb2, gala.wire.{wire}_pb2_grpc" for wire in WIRES)
    subprocess.run([sys.executable, "-P", "-W", "error", "-c", code], check=True, timeout=60)
