"""Statistics of a handful of runs: against slow oracles, against exact coverage, and what always holds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gala.report import statistics
from gala.report.statistics import Array

SCORES = st.floats(-50, 50, allow_nan=False, width=32)


def tasks(fewest: int = 1, most: int = 7) -> st.SearchStrategy[list[Array]]:
    """Some tasks with different numbers of runs."""
    one = st.lists(SCORES, min_size=fewest, max_size=most).map(np.array)
    return st.lists(one, min_size=1, max_size=4)


def single(statistic: statistics.Statistic, data: Sequence[Array]) -> float:
    """The statistic of the data as they are."""
    return float(statistic([task[None] for task in data])[0])


def test_iqm_is_the_mean_of_the_middle_half() -> None:
    assert single(statistics.iqm, [np.array([100.0, 1, 2, 3, 4, 5, 6, -100])]) == pytest.approx(3.5)
    assert single(statistics.iqm, [np.array([1.0, 2, 9])]) == 4.0  # too few to cut
    # 10 runs: int(2.5) = 2 cut off at either end, as scipy.stats.trim_mean(range(10), 0.25) has it.
    assert single(statistics.iqm, [np.arange(10.0) ** 2]) == pytest.approx((4 + 9 + 16 + 25 + 36 + 49) / 6)


@settings(max_examples=40)
@given(tasks())
def test_iqm_agrees_with_a_slow_oracle_over_all_runs_of_all_tasks(data: list[Array]) -> None:
    ordered = sorted(Fraction(float(value)) for task in data for value in task)
    cut = math.floor(Fraction(1, 4) * len(ordered))
    middle = ordered[cut : len(ordered) - cut]
    assert single(statistics.iqm, data) == pytest.approx(float(sum(middle) / len(middle)), rel=1e-9, abs=1e-9)


@settings(max_examples=40)
@given(tasks())
def test_mean_median_and_optimality_gap_agree_with_slow_oracles(data: list[Array]) -> None:
    means = [sum(map(float, task)) / len(task) for task in data]
    middle = sorted(means)[(len(means) - 1) // 2], sorted(means)[len(means) // 2]
    gaps = [sum(1 - min(float(value), 1.0) for value in task) / len(task) for task in data]
    assert single(statistics.mean, data) == pytest.approx(sum(means) / len(means), abs=1e-9)
    assert single(statistics.median, data) == pytest.approx(sum(middle) / 2, abs=1e-9)
    assert single(statistics.optimality_gap, data) == pytest.approx(sum(gaps) / len(gaps), abs=1e-9)


@settings(max_examples=40)
@given(tasks(), SCORES)
def test_a_shift_of_all_scores_shifts_the_averages(data: list[Array], shift: float) -> None:
    for statistic in (statistics.iqm, statistics.mean, statistics.median):
        moved = single(statistic, [task + shift for task in data])
        assert moved == pytest.approx(single(statistic, data) + shift, abs=1e-6)


@settings(max_examples=40)
@given(tasks())
def test_a_better_run_never_lowers_an_average_nor_widens_the_gap(data: list[Array]) -> None:
    better = [task.copy() for task in data]
    better[0][0] += 5
    for statistic in (statistics.iqm, statistics.mean, statistics.median):
        assert single(statistic, better) >= single(statistic, data) - 1e-9
    assert single(statistics.optimality_gap, better) <= single(statistics.optimality_gap, data) + 1e-9


def pairs() -> st.SearchStrategy[list[tuple[Array, Array]]]:
    one = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=5).map(np.array)  # with ties
    return st.lists(st.tuples(one, one), min_size=1, max_size=3)


@settings(max_examples=40)
@given(pairs())
def test_probability_of_improvement_counts_pairs_and_half_of_the_ties(data: list[tuple[Array, Array]]) -> None:
    ours, theirs = ([each[i] for each in data] for i in (0, 1))
    shares = []
    for x, y in data:
        wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(x, y))
        shares.append(wins / (len(x) * len(y)))
    value = float(statistics.probability_of_improvement([x[None] for x in ours], [y[None] for y in theirs])[0])
    other = float(statistics.probability_of_improvement([y[None] for y in theirs], [x[None] for x in ours])[0])
    assert value == pytest.approx(sum(shares) / len(shares))
    assert value + other == pytest.approx(1.0)


def test_improvement_is_certain_where_every_run_is_better() -> None:
    better = statistics.improvement([np.array([2.0, 3, 4])], [np.array([0.0, 1, 1])])
    assert better == (1.0, 1.0, 1.0)
    even = statistics.improvement([np.array([0.0, 1, 2, 3])], [np.array([0.0, 1, 2, 3])])
    assert even.value == 0.5
    assert even.low < 0.3 < 0.7 < even.high


def test_improvement_needs_the_same_tasks() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        statistics.improvement([np.ones(3)], [np.ones(3), np.ones(3)])


@settings(max_examples=40)
@given(tasks(), st.lists(SCORES, min_size=6, max_size=6).map(np.sort))
def test_a_performance_profile_falls_from_task_to_task_average_of_shares(data: list[Array], at: Array) -> None:
    profile = statistics.performance_profile([task[None] for task in data], at)[0]
    slow = [sum(sum(v > t for v in task) / len(task) for task in data) / len(data) for t in at]
    assert profile == pytest.approx(slow)
    assert (np.diff(profile) <= 1e-12).all()


def test_a_profile_has_a_band_around_it() -> None:
    generator = np.random.default_rng(3)
    data = [generator.normal(0.5, 0.3, 8) for _ in range(3)]
    value, low, high = statistics.profile_band(data, np.linspace(0, 1, 11))
    assert ((low <= value) & (value <= high)).all()
    assert (high - low).max() > 0.1
    alone = statistics.profile_band([np.ones(1)], np.linspace(0, 1, 3))
    assert alone[0].tolist() == [1.0, 1.0, 0.0]
    assert np.isnan(alone[1]).all()


@settings(max_examples=40)
@given(tasks(fewest=2))
def test_an_interval_lies_within_what_runs_have_shown_and_is_the_same_every_time(data: list[Array]) -> None:
    first = statistics.estimate(statistics.iqm, data, resamplings=200)
    assert first == statistics.estimate(statistics.iqm, data, resamplings=200)
    everything = np.concatenate(data)
    assert everything.min() - 1e-9 <= first.low <= first.high <= everything.max() + 1e-9


def test_a_single_run_per_task_has_no_interval() -> None:
    value, low, high = statistics.estimate(statistics.mean, [np.array([3.0]), np.array([5.0])])
    assert value == 4.0
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize("data", [[], [np.empty(0)], [np.ones(2), np.empty(0)]])
def test_a_task_without_runs_is_refused(data: list[Array]) -> None:
    with pytest.raises(ValueError, match="every task needs a run"):
        statistics.estimate(statistics.iqm, data)


def test_the_bootstrap_is_stratified() -> None:
    """Between two tasks of equal runs there is no uncertainty; were runs drawn across tasks, there would be much."""
    value, low, high = statistics.estimate(statistics.mean, [np.zeros(5), np.full(5, 10.0)])
    assert (value, low, high) == (5.0, 5.0, 5.0)


def test_the_bootstrap_agrees_with_all_resamplings_counted_out() -> None:
    """Four runs have 4^4 = 256 resamplings; their central 95 % is known exactly."""
    runs = np.array([1.0, 2.0, 4.0, 8.0])
    exact = np.sort([np.mean(drawn) for drawn in itertools.product(runs, repeat=4)])
    value, low, high = statistics.estimate(statistics.mean, [runs])
    assert value == 3.75
    assert low == pytest.approx(np.percentile(exact, 2.5), abs=0.26)  # neighbouring means are a quarter apart
    assert high == pytest.approx(np.percentile(exact, 97.5), abs=0.26)


def test_the_bootstrap_covers_what_it_says_with_enough_runs_and_less_with_few() -> None:
    """400 synthetic experiments of three games each, with a fixed seed: how often the interval holds the true mean."""

    def coverage(runs: int) -> float:
        generator = np.random.default_rng(11)
        inside = 0
        for _ in range(400):
            data = [generator.normal(centre, 1.0, runs) for centre in (-1.0, 0.0, 1.0)]
            _, low, high = statistics.estimate(statistics.mean, data, resamplings=500)
            inside += low <= 0.0 <= high
        return inside / 400

    assert 0.92 <= coverage(20) <= 0.98
    assert 0.70 <= coverage(3) <= 0.92  # the docs say that such an interval is too narrow


def test_a_band_is_the_estimate_at_every_point() -> None:
    generator = np.random.default_rng(5)
    values = generator.normal(0, 1, (6, 40))
    value, low, high = statistics.band(values, resamplings=300)
    at = 17
    alone = statistics.estimate(statistics.iqm, [values[:, at]], resamplings=300)
    assert (value[at], low[at], high[at]) == pytest.approx(tuple(alone))
    assert ((low <= value) & (value <= high)).mean() > 0.95


def test_a_band_knows_where_runs_begin_and_end() -> None:
    values = np.array([[1.0, 1.0, 1.0, np.nan], [np.nan, 3.0, 3.0, np.nan], [np.nan, 2.0, np.nan, np.nan]])
    value, low, high = statistics.band(values)
    assert value[:3].tolist() == [1.0, 2.0, 2.0]
    assert math.isnan(value[3])
    assert np.isnan(low).tolist() == [True, False, False, True]
    assert np.isnan(high).tolist() == [True, False, False, True]


@settings(max_examples=40)
@given(st.integers(1, 60), st.data())
def test_wilson_ends_are_the_shares_that_the_score_test_just_does_not_reject(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    share, low, high = statistics.wilson(successes, trials)
    assert 0 <= low <= share <= high <= 1
    z = 1.959963984540054
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / trials), rel=1e-9)
    mirrored = statistics.wilson(trials - successes, trials)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high), abs=1e-12)


def test_wilson_covers_95_percent_on_average_over_shares_with_ten_seeds() -> None:
    """Exactly, by adding up the binomial probabilities of the outcomes whose interval holds the share."""
    intervals = [statistics.wilson(k, 10) for k in range(11)]

    def coverage(p: float) -> float:
        return sum(
            math.comb(10, k) * p**k * (1 - p) ** (10 - k)
            for k, (_, low, high) in enumerate(intervals)
            if low <= p <= high
        )

    shares = np.linspace(0.005, 0.995, 199)
    assert np.mean([coverage(p) for p in shares]) == pytest.approx(0.95, abs=0.01)
    assert min(coverage(p) for p in shares) > 0.83


def test_known_wilson_intervals() -> None:
    """10 of 10 and 0 of 10: z^2 / (n + z^2) from the other end."""
    z2 = 1.959963984540054**2
    assert statistics.wilson(10, 10) == pytest.approx((1.0, 10 / (10 + z2), 1.0))
    assert statistics.wilson(0, 10) == pytest.approx((0.0, 0.0, z2 / (10 + z2)))


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 4)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} of {trials}"):
        statistics.wilson(successes, trials)
