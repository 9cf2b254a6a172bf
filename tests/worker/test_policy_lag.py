"""The benchmark of lagged actors, at toy size."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

PAPER = Path(__file__).parents[2] / "benchmarks" / "paper"


@pytest.fixture(scope="module")
def policy_lag() -> Iterator[ModuleType]:
    sys.path.insert(0, str(PAPER))
    try:
        yield importlib.import_module("policy_lag")
    finally:
        sys.path.remove(str(PAPER))


@pytest.mark.parametrize("task", ["fork", "cartpole"])
def test_without_a_lag_the_correction_changes_nothing_and_with_one_it_does(policy_lag: ModuleType, task: str) -> None:
    for lag, same in ((0, True), (4, False)):
        corrected, plain = (policy_lag.train(task, arm, lag, 1, 6400) for arm in policy_lag.ARMS)
        assert (corrected == replace(plain, arm=corrected.arm)) is same


def test_equal_seeds_give_equal_numbers_and_the_table_has_them(policy_lag: ModuleType) -> None:
    first, again, other = (policy_lag.train("fork", "V-trace", 2, seed, 3200) for seed in (1, 1, 2))
    assert first == again
    assert other.mean_return != first.mean_return
    lines = policy_lag.table([first, other]).splitlines()
    assert len(lines) == 3
    assert f"{first.last_return:.2f}, {other.last_return:.2f}" in lines[-1]


@pytest.mark.learning
@pytest.mark.timeout(300)
def test_v_trace_learns_under_a_lag_of_100_updates_where_uncorrected_targets_do_not(policy_lag: ModuleType) -> None:
    corrected, plain = (policy_lag.train("fork", arm, 100, 1, 60_000) for arm in policy_lag.ARMS)
    assert corrected.last_return > 0.95
    assert plain.last_return < 0.55
