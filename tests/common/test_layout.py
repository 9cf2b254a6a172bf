"""The folders named operator/ and worker/ must never get in the way of Python, and each side runs without the other."""

import operator
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = ("torch", "gymnasium", "ale_py", "grpc", "safetensors")
WITHOUT_KUBERNETES = ("kopf", "kubernetes", "kubernetes_asyncio")


def import_without(absent: tuple[str, ...], *modules: str) -> subprocess.CompletedProcess[str]:
    """Imports `modules` in a fresh interpreter in which `absent` cannot be imported."""
    program = "\n".join(
        ["import sys", *(f"sys.modules[{name!r}] = None" for name in absent), *(f"import {name}" for name in modules)]
    )
    return subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)


def test_operator_is_the_standard_library_s() -> None:
    assert Path(operator.__file__ or "").parent == Path(subprocess.__file__).parent


@pytest.mark.parametrize("folder", ["operator", "worker", "common", "tests"])
def test_a_source_root_is_no_package(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_the_operator_and_the_common_part_import_without_torch() -> None:
    modules = ("gala.spec", "gala.plan", "gala.cli", "gala.crd", "gala.local", "gala_operator.__main__")
    done = import_without(WITHOUT_TORCH, *modules)
    assert done.returncode == 0, done.stderr


def test_the_worker_imports_without_kubernetes() -> None:
    done = import_without(WITHOUT_KUBERNETES, "gala_worker.worker", "gala_worker.evaluate", "gala_worker.finalize")
    assert done.returncode == 0, done.stderr


def test_the_command_line_imports_without_kubernetes_and_aiohttp() -> None:
    done = import_without((*WITHOUT_KUBERNETES, "aiohttp"), "gala.cli", "gala.remote.cluster", "gala.remote.fetching")
    assert done.returncode == 0, done.stderr


def test_an_absent_module_is_really_absent_in_these_tests() -> None:
    done = import_without(WITHOUT_TORCH, "gala_worker.worker")
    assert "ModuleNotFoundError" in done.stderr
