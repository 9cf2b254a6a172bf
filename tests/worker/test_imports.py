"""What the entry points do around imports that take seconds."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from gala_worker.imports import without_garbage_collection


@pytest.fixture(autouse=True)
def nothing_stays_frozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_garbage_is_not_looked_for_during_imports_and_never_again_among_what_they_made() -> None:
    looks: list[str] = []
    watch = lambda phase, info: looks.append(phase)  # noqa: E731 -- compared by identity when it is removed
    gc.callbacks.append(watch)
    try:
        with without_garbage_collection():
            made = [[n] for n in range(10 * gc.get_threshold()[0])]
        assert not looks
        assert gc.isenabled()
        assert gc.get_freeze_count() >= len(made)
    finally:
        gc.callbacks.remove(watch)


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), without_garbage_collection():
        raise ImportError("no torch here")
    assert gc.isenabled()
