"""Writing files so that a reader, or a machine that lost power, finds either all of a file or none of it."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Puts `data` at `path` in one step: whoever opens `path`, at any moment, gets all of the old or all of the new.

    `durable`: a loss of power does not change that, nor what is there when this has returned; it costs a wait for the
    disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if durable:
            write_file(temporary, data)
        else:
            temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Writes and flushes to the disk, in place: for files inside a folder that is not yet published."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Makes renames inside `directory` survive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
