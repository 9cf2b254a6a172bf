"""A run directory as a tar, streamed: what `gala fetch` unpacks. Next to no memory, and no second copy on the disk."""

from __future__ import annotations

import tarfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from gala import names
from gala_worker.downloads import pieces

_BLOCK: Final = tarfile.BLOCKSIZE
_END: Final = b"\0" * (2 * _BLOCK)
_TOP: Final = (names.SPEC_FILE, names.PLAN_FILE, names.RUN_FILE)
_SUFFIXES: Final = (".yaml", ".json", ".jsonl", ".safetensors")
_FOLDERS: Final = (names.FINAL_DIRECTORY, "learner-*", f"learner-*/{names.FINAL_DIRECTORY}")


class Archive:
    """The files of a finished run as they are now; they must not change while it is in use."""

    def __init__(self, run_dir: Path) -> None:
        """Lists the run's results: no checkpoints, no logs, no folders of others on the same volume."""
        found = [run_dir / name for name in _TOP]
        for pattern in _FOLDERS:
            found += [path for folder in sorted(run_dir.glob(pattern)) for path in sorted(folder.iterdir())]
        self._members = [
            (path, _header(path, path.relative_to(run_dir).as_posix()))
            for path in found
            if path.is_file() and not path.is_symlink() and not path.name.startswith(".") and path.suffix in _SUFFIXES
        ]

    @property
    def num_bytes(self) -> int:
        """Length of the tar."""
        return sum(len(header) + _padded(path.stat().st_size) for path, header in self._members) + len(_END)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The tar, piece by piece."""
        for path, header in self._members:
            yield header
            size = 0
            async for chunk in pieces(path):
                size += len(chunk)
                yield chunk
            yield b"\0" * (_padded(size) - size)
        yield _END


def _header(path: Path, name: str) -> bytes:
    status = path.stat()
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = status.st_size, int(status.st_mtime), 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
