"""The numbers behind the report: the bound, curves, spreads and how values are written."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gala.report import formats
from gala.report.ball import pairwise_bound, radius
from gala.report.series import Curve, averaged, downsample, rolling_maximum, spread
from gala.topology import beta, mixing_matrix, period


class Graph:
    def __init__(self, kind: str, peers: int | None = 1) -> None:
        self.type = kind
        self.peers = peers


@pytest.mark.parametrize(
    ("kind", "size"),
    [("Ring", 2), ("Ring", 8), ("Exponential", 6), ("OnePeerExponential", 8), ("OnePeerExponential", 6)],
)
def test_no_sequence_of_bounded_updates_leaves_the_ball(kind: str, size: int) -> None:
    graph = Graph(kind, None if kind == "Exponential" else 1)
    b, p = beta(graph, size), period(graph, size)
    matrices = [np.array(mixing_matrix(graph, size, round)) for round in range(p)]
    generator = np.random.default_rng(0)
    circle = 2 * np.pi * np.arange(size) / size
    farthest = widest = 0.0
    for adversary in (True, False):
        x = np.zeros((size, 2))
        for k in range(200):
            # The adversary pushes every learner further away from the mean; the other pushes at random.
            away = x - x.mean(axis=0) if k else np.stack([np.cos(circle), np.sin(circle)], axis=1)
            push = away + 1e-12 if adversary else generator.normal(size=x.shape)
            x = x + push / np.linalg.norm(push, axis=1, keepdims=True)
            farthest = max(farthest, float(np.linalg.norm(x[:, None] - x[None], axis=2).max()))
            x = matrices[k % p] @ x
            widest = max(widest, float(np.linalg.norm(x - x.mean(axis=0))))
    assert widest <= radius(size, 1.0, b, p) * (1 + 1e-9) + 1e-9
    assert farthest <= pairwise_bound(size, 1.0, b, p)
    if kind == "Ring":  # where the adversary does its worst: the radius is not only large enough, it is right
        assert widest == pytest.approx(radius(size, 1.0, b, p), rel=1e-3, abs=1e-9)


def test_radius_is_the_papers_for_a_static_topology() -> None:
    assert radius(4, 0.5, 0.75) == pytest.approx(math.sqrt(4) * 0.5 * 0.75 / 0.25)


def test_downsampling_keeps_extremes_ends_and_gaps() -> None:
    y = np.sin(np.arange(10_000) / 50)
    y[4321], y[1234], y[7000:7100] = 9.0, -9.0, np.nan
    drawn = downsample(Curve(np.arange(10_000.0), y), 400)
    assert drawn.x.size <= 700
    assert np.nanmax(drawn.y) == 9.0
    assert np.nanmin(drawn.y) == -9.0
    assert (drawn.x[0], drawn.x[-1]) == (0, 9999)
    assert np.isnan(drawn.y[(drawn.x >= 7000) & (drawn.x < 7100)]).all()
    assert (np.diff(drawn.x) > 0).all()


def test_averaging_makes_noise_small_and_keeps_gaps() -> None:
    y = np.random.default_rng(0).normal(3, 1, 8000)
    y[4000:4200] = np.nan
    drawn = averaged(Curve(np.arange(8000.0), y))
    assert np.nanmean(drawn.y) == pytest.approx(3, abs=0.1)
    assert np.nanstd(drawn.y) < 0.2
    assert np.isnan(drawn.y).any()
    few = Curve(np.arange(100.0), np.arange(100.0))
    assert averaged(few) is few


def test_spread_is_over_the_learners_that_run() -> None:
    x = np.arange(0.0, 101.0)
    short = Curve(np.arange(0.0, 51.0), np.full(51, 30.0))
    together = spread([Curve(x, np.full(101, 10.0)), Curve(x, np.full(101, 20.0)), short])
    assert together is not None
    early, late = np.searchsorted(together.x, 25), np.searchsorted(together.x, 90)
    assert together.mean[early] == pytest.approx(20)
    assert (together.low[early], together.high[early], together.total[early]) == pytest.approx((10, 30, 60))
    assert (together.low[late], together.high[late], together.total[late]) == pytest.approx((10, 20, 30))
    assert together.mean[late] == pytest.approx(15)


def test_spread_keeps_a_spike_between_the_points_of_its_grid() -> None:
    y = np.zeros(5000)
    y[2501] = 7.0
    together = spread([Curve(np.arange(5000.0), y), Curve(np.arange(5000.0), np.zeros(5000))])
    assert together is not None
    assert np.nanmax(together.high) == 7.0


def test_spread_of_nothing_is_nothing() -> None:
    empty = Curve(np.empty(0), np.empty(0))
    assert spread([]) is None
    assert spread([empty, Curve(np.arange(3.0), np.full(3, np.nan))]) is None
    one = spread([Curve(np.array([5.0]), np.array([1.0])), empty])
    assert one is not None
    assert one.mean.tolist() == [1.0]


def test_rolling_maximum_forgets_after_its_window() -> None:
    points = Curve(np.array([3.0, 0.0, 1.0, 2.0, 13.0]), np.array([1.0, 5.0, np.nan, 2.0, 0.5]))
    result = rolling_maximum(points, 10.0)
    assert result.x.tolist() == [0, 2, 3, 13]
    assert result.y.tolist() == [5, 5, 5, 1]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"), (7, "7"), (12_345_678, "12.3 M"), (999_960, "1 M"), (1500, "1.5 k"), (0.0712, "0.0712"), (0.5, "0.5"),
        (-21.0, "−21"), (7e-4, "7e−4"), (1.3e-5, "1.3e−5"), (-2500, "−2.5 k"), (math.nan, "–"), (math.inf, "–"),
        (None, "–"), (3.5e12, "3.5 T"), (100, "100"), (2.0, "2"),
    ],
)  # fmt: skip
def test_numbers_are_shortened_with_a_unit(value: float | None, expected: str) -> None:
    assert formats.compact(value).replace(formats.THIN, " ") == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"), (119, "119 s"), (600, "10 min"), (7450, "2 h 4 min"), (7200, "2 h"), (201_600, "2 d 8 h"),
        (172_800, "2 d"), (-1, "–"), (None, "–"),
    ],
)  # fmt: skip
def test_durations_have_at_most_two_units(seconds: float | None, expected: str) -> None:
    assert formats.duration(seconds).replace(formats.THIN, " ") == expected


def test_an_interval_of_returns_is_as_exact_as_its_larger_end() -> None:
    assert formats.interval(0.912, 0.9449) == "0.912 to 0.945"
    assert formats.interval(-0.5, 18.04) == "−0.5 to 18.0"
    assert formats.interval(0.5, 1.0, 2) == "0.50 to 1.00"
    assert formats.interval(math.nan, 1.0) == "–"


@pytest.mark.parametrize(
    ("value", "expected"), [(475.0, "475"), (0.9525, "0.9525"), (-110.5, "−110.5"), (12000.0, "12\u202f000")]
)
def test_a_threshold_is_written_as_it_was_given(value: float, expected: str) -> None:
    assert formats.threshold(value) == expected


def test_sizes_percentages_scores_and_moments() -> None:
    def spaced(text: str) -> str:
        return text.replace(formats.THIN, " ")

    assert [spaced(formats.size(value)) for value in (0, 512, 3_500_000_000, math.nan)] == [
        "0 B",
        "512 B",
        "3.5 GB",
        "–",
    ]
    assert [spaced(formats.percent(value)) for value in (0.256, 12.0, None)] == ["26 %", "1 200 %", "–"]
    assert [spaced(formats.score(value)) for value in (18.44, -20.0, 12345.6, math.nan)] == [
        "18.4",
        "−20.0",
        "12 345.6",
        "–",
    ]
    assert [spaced(formats.score(value)) for value in (0.951, 0.04, -0.0312, 0.0, -1e-9, 5.256)] == [
        "0.951",
        "0.0400",
        "−0.0312",
        "0.0",
        "0.0",
        "5.26",
    ]
    assert formats.moment(1_750_000_000) == "2025-06-15 15:06 UTC"
    assert formats.moment(1e300) == "–"
