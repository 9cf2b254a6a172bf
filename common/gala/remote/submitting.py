"""`gala submit`: a document on this machine -> a GalaRun in a cluster."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gala import document, spec
from gala.errors import RunError, UsageError
from gala.remote.cluster import Cluster
from gala.remote.view import Run

DELETION_SECONDS: Final = 300.0
"""The longest time that an earlier run may take to go: its learners write a last checkpoint."""


def read(file: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The document as the user wrote it, with the overrides, found valid.

    Defaults are left to the cluster: what the file does not say stays free for `kubectl scale` and others to set. Left
    out is what a server has added to a document (`kubectl get -o yaml`): it would bind it to a run that may be gone.

    Raises: SpecError.
    """
    data = document.override(document.read(file), overrides)
    spec.parse(data)
    return {
        **{key: value for key, value in data.items() if key != "status"},
        "metadata": {key: value for key, value in data["metadata"].items() if key not in spec.OTHER_METADATA},
    }


def namespace(data: Mapping[str, Any]) -> str | None:
    """The namespace that a document names; None where it leaves it to kubeconfig."""
    found = data["metadata"].get("namespace")
    return str(found) if found else None


def submit(cluster: Cluster, data: Mapping[str, Any], *, force: bool) -> str:
    """Apply the document. Returns what to tell the user.

    Args:
        force: delete an earlier run of this name, with all that it has learned, and start over.

    Raises: UsageError when the name is taken by a run that has ended, or the cluster refuses the document.
    """
    name = data["metadata"]["name"]
    body = {**data, "metadata": {**data["metadata"], "namespace": cluster.namespace}}
    found = cluster.find(name)
    before = Run.of(found) if found is not None else None
    if before is not None and force:
        cluster.delete(name)
        _until_gone(cluster, before)
        before = None
    elif before is not None and before.ended:
        raise UsageError(
            f"run {name} has ended ({before.state}), its results are kept: gala fetch {name}{cluster.options}; "
            f"start over with --force (removes them) or keep both with --name {spec.beside(name, '2')}"
        )
    after = Run.of(cluster.apply(body))
    where = f"in namespace {cluster.namespace}"
    if before is None:
        return f"{name} is submitted {where}"
    if after.generation != before.generation:
        return f"{name} is changed {where}; its learners go on"
    return f"{name} is there already {where}, and unchanged"


def _until_gone(cluster: Cluster, run: Run) -> None:
    deadline = time.monotonic() + DELETION_SECONDS
    while True:
        found = cluster.find(run.name)
        if found is None or Run.of(found).uid != run.uid:
            return
        if time.monotonic() >= deadline:
            raise RunError(f"the earlier run {run.name} is still being deleted; try again later")
        time.sleep(0.2)
