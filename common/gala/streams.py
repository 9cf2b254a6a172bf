"""What a command does with its standard streams: a caller may have closed them, and not everything can be written."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator


def prepare() -> None:
    """Open the streams that are closed, and have characters that stdout cannot encode written as question marks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # files that are opened next would be taken for it (`>&-`)
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123 - for as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Within it, what stdout does not take costs one line and ends the command with exit code 1."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO) or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what it holds back is flushed at the end
        sys.stderr.write(f"error: the output cannot be written: {error.strerror}\n")
        sys.exit(1)
