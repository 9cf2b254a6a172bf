"""How many files and connections this process may have open."""

from __future__ import annotations

import contextlib
import resource
import sys


def limit() -> int:
    """As many at the same time."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Takes all that the process may have: what it is born with, often 1,024, is for programs that call `select`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a system may allow less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
