"""Intervals over seeds: against every sample there is, against theory, and their symmetries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from reverie.benchmarks import stats
from reverie.benchmarks.stats import (
    Interval,
    bootstrap,
    bootstrap_difference,
    bootstrap_mean_interval,
    mean,
    percentile_interval,
)

THREE = np.array([1.0, 2.0, 6.0])


def normal(count: int, *, seed: int = 0, shape: tuple[int, ...] = ()) -> stats.Array:
    return np.random.default_rng(seed).normal(size=(count, *shape))


def width(interval: Interval) -> float:
    return float(interval.high - interval.low)


def test_mean_is_over_seeds_and_exact_for_equal_numbers() -> None:
    samples = normal(4, shape=(5, 3))
    np.testing.assert_allclose(mean(samples), samples.mean(1), rtol=0, atol=1e-15)
    for count in range(1, 20):
        assert mean(np.full((2, count), 0.1)).tolist() == [0.1, 0.1]


def test_bootstrap_has_the_distribution_of_all_samples() -> None:
    every = [np.mean(sample) for sample in itertools.product(THREE, repeat=3)]
    drawn = bootstrap(THREE, np.random.default_rng(0), resamples=20_000)
    for value in set(every):
        share = np.isclose(every, value).mean()
        assert np.isclose(drawn, value).mean() == pytest.approx(share, abs=0.01)
    assert np.isclose(drawn[:, None], every).any(1).all()


def test_bootstrap_draws_curves_whole() -> None:
    curves = np.stack([THREE, 10 * THREE], 1)
    drawn = bootstrap(curves, np.random.default_rng(0))
    assert drawn.shape == (stats.RESAMPLES, 2)
    np.testing.assert_allclose(drawn[:, 1], 10 * drawn[:, 0])


def test_bootstrap_takes_any_statistic_and_blocks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = normal(5, shape=(7,))

    def middle(samples: stats.Array) -> stats.Array:
        return np.median(samples, axis=(1, 2))

    whole = bootstrap(values, np.random.default_rng(0), statistic=middle, resamples=101)
    assert whole.shape == (101,)
    for block in (1, 200):
        monkeypatch.setattr(stats, "BLOCK", block)
        parts = bootstrap(values, np.random.default_rng(0), statistic=middle, resamples=101)
        np.testing.assert_array_equal(parts, whole)


def test_percentile_interval_of_known_numbers() -> None:
    resampled = np.stack([np.arange(101.0), -np.arange(101.0)], 1)
    interval = percentile_interval(resampled, level=0.9)
    np.testing.assert_allclose(interval.low, [5, -95])
    np.testing.assert_allclose(interval.high, [95, -5])


def test_contains_includes_the_bounds() -> None:
    interval = Interval(np.array([0.0, -1.0, 0.1]), np.array([1.0, 0.0, 0.2]))
    assert interval.contains(0.0).tolist() == [True, True, False]


def test_bootstrap_mean_interval_of_three_seeds_is_their_range() -> None:
    # a sample of one seed alone has probability 1/27, more than what lies outside on one side
    low, high = bootstrap_mean_interval(THREE)
    assert (low, high) == (1.0, 6.0)


def test_bootstrap_mean_interval_is_that_of_all_samples() -> None:
    values = np.array([0.0, 1.0, 3.0, 7.0, 20.0])
    every = [np.mean(sample) for sample in itertools.product(values, repeat=5)]
    low, high = bootstrap_mean_interval(values, resamples=50_000)
    assert low == pytest.approx(np.quantile(every, 0.025), abs=0.2)
    assert high == pytest.approx(np.quantile(every, 0.975), abs=0.2)


def test_bootstrap_mean_interval_of_a_constant_is_a_point() -> None:
    low, high = bootstrap_mean_interval(np.full((4, 3), 0.1))
    assert low.tolist() == high.tolist() == [0.1, 0.1, 0.1]
    assert bootstrap_mean_interval(np.array([5.0])) == (5.0, 5.0)


def test_bootstrap_mean_interval_agrees_with_the_normal_approximation() -> None:
    values = normal(400) * 3.0 + 10.0
    low, high = bootstrap_mean_interval(values, resamples=20_000)
    error = values.std(ddof=1) / 20.0
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_bootstrap_mean_interval_shrinks_with_the_root_of_the_seeds() -> None:
    few, many = (width(bootstrap_mean_interval(normal(count))) for count in (50, 800))
    assert few / many == pytest.approx(4.0, rel=0.2)


def test_bootstrap_mean_interval_holds_the_mean_as_often_as_it_says() -> None:
    for count, share in ((3, 0.76), (5, 0.83), (10, 0.91)):
        # every column is an experiment of its own
        interval = bootstrap_mean_interval(normal(count, shape=(4000,)), resamples=400)
        assert interval.contains(0.0).mean() == pytest.approx(share, abs=0.03)


def test_the_order_of_seeds_changes_nothing() -> None:
    a, b = normal(6, shape=(4,)), normal(5, seed=1, shape=(4,))
    a[:3, 0] = 0.5  # equal first entries: the later ones decide
    order = np.random.default_rng(2).permutation
    want, got = bootstrap_mean_interval(a), bootstrap_mean_interval(a[order(6)])
    np.testing.assert_array_equal(want, got)
    (gap, want), (other, got) = (
        bootstrap_difference(*pair) for pair in ((a, b), (a[order(6)], b[order(5)]))
    )
    np.testing.assert_allclose(gap, other, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(want, got)


def test_the_seed_decides() -> None:
    values = normal(8)
    assert bootstrap_mean_interval(values) == bootstrap_mean_interval(values)
    assert bootstrap_mean_interval(values) != bootstrap_mean_interval(values, seed=1)
    a, b = normal(8), normal(8, seed=1)
    assert bootstrap_difference(a, b) == bootstrap_difference(a, b)
    assert bootstrap_difference(a, b) != bootstrap_difference(a, b, seed=1)


def test_bootstrap_difference_is_that_of_all_pairs_of_samples() -> None:
    other = np.array([0.0, 1.0, 4.0])
    one, two = (
        [np.mean(sample) for sample in itertools.product(seeds, repeat=3)]
        for seeds in (THREE, other)
    )
    every = np.subtract.outer(one, two)
    gap, (low, high) = bootstrap_difference(THREE, other, resamples=50_000)
    assert gap == pytest.approx(THREE.mean() - other.mean())
    assert low == pytest.approx(np.quantile(every, 0.025), abs=0.05)
    assert high == pytest.approx(np.quantile(every, 0.975), abs=0.05)


def test_bootstrap_difference_resamples_the_groups_independently() -> None:
    values = normal(300)
    gap, interval = bootstrap_difference(values, values + 1.0)
    assert gap == pytest.approx(-1.0) and interval.contains(-1.0)
    # the same draws on both sides would leave no width at all
    error = values.std(ddof=1) * np.sqrt(2 / 300)
    assert width(interval) == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_bootstrap_difference_of_equal_constants_is_zero_for_any_numbers_of_seeds() -> None:
    gap, interval = bootstrap_difference(np.full(3, 0.1), np.full(4, 0.1))
    assert gap == 0.0 and interval == (0.0, 0.0)


def test_bootstrap_difference_takes_any_statistic() -> None:
    gap, interval = bootstrap_difference(
        THREE, np.zeros(2), statistic=lambda samples: samples.max(1)
    )
    assert gap == 6.0 and interval.high == 6.0 and interval.low >= 1.0
