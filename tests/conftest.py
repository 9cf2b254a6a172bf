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
