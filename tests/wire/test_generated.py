"""The committed generated modules fit the floors of pyproject.toml, and import without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
WIRE = ROOT / "common" / "gala" / "wire"


def floor(package: str) -> str:
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["worker"]
    return next(r.removeprefix(f"{package}>=") for r in requirements if r.startswith(f"{package}>="))


def test_the_generated_code_asks_for_no_more_than_the_floors_of_the_worker_extra():
    messages = re.search(r"Protobuf Python Version: ([\d.]+)", (WIRE / "gossip_pb2.py").read_text())
    services = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", (WIRE / "gossip_pb2_grpc.py").read_text())
    assert messages is not None
    assert services is not None
    assert messages[1] == floor("protobuf")
    assert services[1].startswith(floor("grpcio") + ".")


def test_the_generated_modules_import_with_warnings_as_errors():
    code = "import gala.wire.gossip_pb2, gala.wire.gossip_pb2_grpc"
    subprocess.run([sys.executable, "-P", "-W", "error", "-c", code], check=True, timeout=60)
