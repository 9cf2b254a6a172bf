"""Set-up of all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Their asserts explain themselves as those of test files do.
pytest.register_assert_rewrite(*(file.stem for file in (Path(__file__).parent / "support").glob("*.py")))

# One compute thread, here and in every process that a test starts: where others are busy, threads that wait for each
# other at every layer take many times as long.
os.environ["OMP_NUM_THREADS"] = "1"

# No deadline per example: machines are shared, and pytest-timeout catches what hangs. Derandomised: the same commit
# gives the same verdict.
settings.register_profile("gala", deadline=None, derandomize=True)
settings.load_profile("gala")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start real processes come first: of several jobs none is then left with minutes of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("processes")}
    items.sort(key=lambda item: item.path not in slow)
