"""What `gala validate` says of files: whether they hold a GalaRun or a GalaExperiment that can be run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gala import document, spec
from gala.errors import SpecError
from gala.experiment import definition, matrix


def check_files(paths: Sequence[str | Path]) -> dict[str, SpecError | None]:
    """The verdict on each file, in the order given: None where it is valid."""
    return {str(path): _verdict(path) for path in paths}


def _verdict(path: str | Path) -> SpecError | None:
    try:
        data = document.read(path)
        if data.get("kind") == "GalaExperiment":
            matrix.expand(definition.parse(data))  # at every scale, every run of it
        else:
            spec.parse(data)
    except SpecError as error:
        return error
    return None
