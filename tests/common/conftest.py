"""`gala`: the command as a user calls it. `cluster`: an API server for it, which KUBECONFIG leads to. `machine`: where
`gala run` runs, with workers that are played."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gala import cli
from local_machine import Machine
from remote_cluster import SPEC, FakeCluster, Gala


@pytest.fixture
def gala(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Gala:
    """Run a command through the console script's own entry; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gala", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCluster]:
    """A fake API server that is up."""
    with FakeCluster() as fake:
        monkeypatch.setenv("KUBECONFIG", fake.kubeconfig(tmp_path / "kubeconfig"))
        yield fake


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A run called pole."""
    document = {"apiVersion": "gala.dev/v1alpha1", "kind": "GalaRun", "metadata": {"name": "pole"}, "spec": SPEC}
    path = tmp_path / "pole.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """One with nothing on it yet; what still runs on it in the end is killed."""
    made = Machine(tmp_path)
    yield made
    made.clean_up()
