"""What a finished learner hands out: its final model and its metrics, to whoever averages them.

Place in the flow: `worker` makes one when it has finished and holds, `http` serves it, `results` fetches from it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

from gala import names

SERVED: Final = (
    f"{names.FINAL_DIRECTORY}/{names.MODEL_FILE}",
    f"{names.FINAL_DIRECTORY}/{names.MODEL_RECORD_FILE}",
    names.METRICS_FILE,
)
"""Relative to the learner's folder. Nothing else leaves it: neither checkpoints nor what else lies on a volume."""
_PIECE_BYTES: Final = 256 << 10
"""Of each file that is being sent two of these may be in memory."""


class Downloads:
    """The served files of one folder, as they were when this was made."""

    def __init__(self, directory: Path) -> None:
        """Reads every file once, for its size and checksum; one that is not there is not served."""
        self._paths = {name: directory / name for name in SERVED if (directory / name).is_file()}
        self._listing = [_entry(name, path) for name, path in self._paths.items()]

    def listing(self) -> list[dict[str, Any]]:
        """`path`, `bytes` and `sha256` of each."""
        return self._listing

    def path(self, name: str) -> Path | None:
        """Where `name` lies; None for everything that is not served. `name` is looked up, never joined to a path."""
        return self._paths.get(name)


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def pieces(path: Path) -> AsyncGenerator[bytes, None]:
    """A file, piece by piece; the disk is read on another thread."""
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
            yield piece


def _entry(name: str, path: Path) -> dict[str, Any]:
    return {"path": name, "bytes": path.stat().st_size, "sha256": checksum(path)}
