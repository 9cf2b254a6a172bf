"""For the entry points of this package: imports that take seconds, torch's above all."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Nothing that imports make is garbage, and to look for it takes a tenth of their time.

    What they made stays until the process ends, so that no later look has to go through it either.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
