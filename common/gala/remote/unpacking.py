"""Opens the archive that a results pod sends. It comes from another machine, so it is trusted with nothing.

Regular files and folders below the target, and nothing else: no links, no devices, no absolute paths, no `..`, no
owners or permissions, a bounded number of files and bytes. Written by hand over `tarfile`'s reader, since its own
extraction filters are missing from some Python 3.11 that distributions still ship.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, Final

from gala.errors import ClusterError

MAX_FILES: Final = 50_000
MAX_BYTES: Final = 16 * 1024**3
MAX_HEADER_BYTES: Final = 64 * 1024
"""Of one member, with all that may precede it. A results pod sends 512; a header of headers is read by recursion, three
calls for each 512 bytes."""
CHUNK_BYTES: Final = 1024**2
MAX_DEPTH: Final = 16


class _BoundedReads(io.FileIO):
    """A file whose reader cannot be talked into taking in more than `left`, however headers follow one another."""

    left = MAX_HEADER_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0 or size > self.left:
            raise tarfile.ReadError("a header is too large")
        self.left -= size
        return super().read(size) or b""


def unpack(archive: Path, target: Path, *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> int:
    """Unpack a tar file into the empty folder `target`. Returns the number of files.

    Raises: ClusterError for an archive that is damaged or holds what it should not; what was unpacked until then stays.
    """
    num_files, num_bytes = 0, 0
    try:
        with _BoundedReads(archive) as file, tarfile.open(fileobj=file, mode="r:") as members:
            for number, member in enumerate(members):
                if number >= max_files:
                    raise ClusterError(f"the archive holds more than {max_files:,} entries")
                file.left = MAX_HEADER_BYTES  # for the next member's, after this one's content
                path = _inside(target, member)
                if path is None:
                    continue
                num_bytes += member.size
                if num_bytes > max_bytes:
                    raise ClusterError(f"the archive holds more than {max_bytes:,} bytes")
                file.left += member.size
                content = members.extractfile(member)
                assert content is not None, "a regular file has content"
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as copy:
                    _copy(content, copy, member.size)
                num_files += 1
    except FileExistsError as error:
        raise ClusterError(f"the archive holds {Path(error.filename).name} twice") from error
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise ClusterError(f"the archive is damaged: {error}") from error
    except OSError as error:
        raise ClusterError(f"the archive cannot be unpacked to {target}: {error.strerror or error}") from error
    return num_files


def _inside(target: Path, member: tarfile.TarInfo) -> Path | None:
    """Where a member goes; None for a folder, which comes into being with its files.

    Raises: ClusterError for what has no business in a run directory.
    """
    name = PurePosixPath(member.name)
    parts = name.parts
    shown = repr(member.name[:200])
    if name.is_absolute() or ".." in parts or len(parts) > MAX_DEPTH or "\0" in member.name or "\\" in member.name:
        raise ClusterError(f"the archive holds {shown}, which is not below the run's folder")
    if member.isdir():
        return None
    if not member.isreg() or member.issparse() or not parts:
        raise ClusterError(f"the archive holds {shown}, which is not a plain file")
    return target.joinpath(*parts)


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    left = size
    while left:
        chunk = source.read(min(CHUNK_BYTES, left))
        if not chunk:
            raise tarfile.ReadError("it ends too early")
        target.write(chunk)
        left -= len(chunk)
