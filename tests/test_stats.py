"""Statistics: against every sample there is, theory, rliable's numbers, and their symmetries."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reverie.benchmarks import stats
from reverie.benchmarks.stats import (
    Interval,
    bootstrap,
    bootstrap_difference,
    bootstrap_mean_interval,
    check_matrix,
    human_normalised,
    improvement_probability,
    iqm,
    mean,
    mean_over_games,
    median_over_games,
    optimality_gap,
    percentile_interval,
    performance_profile,
    stratified_bootstrap,
    stratified_interval,
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


# runs x games

I5, I4, J = np.arange(5)[:, None], np.arange(4)[:, None], np.arange(8)[None]
FIVE = ((3 * I5 + 5 * J) % 13) / 10
FOUR = ((3 * I4 + 5 * J + 2 * I4 * J) % 13) / 10
"""Two small matrices [runs, games] that rliable 1.2.0 was asked about."""

MATRICES = st.tuples(st.integers(1, 6), st.integers(1, 7)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-50, 50, width=32))
)
OVER_GAMES = (mean_over_games, median_over_games, iqm, optimality_gap)


@pytest.mark.parametrize(
    ("scores", "median", "middle", "centre", "gap"),
    [(FIVE, 0.57, 0.595, 0.595, 0.4275), (FOUR, 0.5875, 0.65, 0.65, 0.38125)],
)
def test_aggregates_are_those_of_rliable(
    scores: stats.Array, median: float, middle: float, centre: float, gap: float
) -> None:
    found = [float(statistic(scores)) for statistic in OVER_GAMES]
    np.testing.assert_allclose(found, [centre, median, middle, gap], rtol=0, atol=1e-12)


def test_improvement_probability_is_that_of_rliable() -> None:
    assert improvement_probability(FIVE, FOUR) == pytest.approx(0.4375, abs=1e-12)
    assert improvement_probability(FOUR, FIVE) == pytest.approx(0.5625, abs=1e-12)
    assert improvement_probability(FIVE, FIVE) == pytest.approx(0.5, abs=1e-12)


def test_improvement_probability_counts_pairs_by_hand() -> None:
    # first game 1 win, 1 tie, 2 losses of 4; second game all won
    x, y = np.array([[1.0, 9.0], [3.0, 8.0]]), np.array([[3.0, 1.0], [2.0, 2.0]])
    assert improvement_probability(x, y) == pytest.approx((1.5 / 4 + 1.0) / 2)
    many = improvement_probability(np.stack([x, y]), np.stack([y, x]))
    assert many.tolist() == pytest.approx([0.6875, 0.3125])


def test_human_normalised() -> None:
    random, human = np.array([10.0, -20.7]), np.array([30.0, 14.6])
    found = human_normalised(np.array([[10.0, 14.6], [50.0, -20.7]]), random, human)
    np.testing.assert_allclose(found, [[0, 1], [2, 0]], rtol=0, atol=1e-15)
    with pytest.raises(AssertionError, match="measures nothing"):
        human_normalised(random, random, random)


@pytest.mark.parametrize("count", range(1, 13))
def test_iqm_leaves_out_the_floor_of_a_quarter_at_either_end(count: int) -> None:
    values = 2.0 ** np.arange(count)
    cut = int(0.25 * count)
    assert iqm(values[::-1, None]) == pytest.approx(
        sum(values[cut : count - cut]) / (count - 2 * cut)
    )


def test_iqm_is_over_runs_and_not_over_their_means() -> None:
    scores = np.array([[0.0, 1, 1, 1], [10.0, 1, 1, 1]])
    assert iqm(scores) == 1.0 and mean_over_games(scores) == 2.0
    scores[:, 1] = 0.0, 8.0
    # sorted 0 0 1 1 1 1 8 10 against means 1 1 4 5
    assert iqm(scores) == 1.0 and iqm(scores.mean(0, keepdims=True)) == 2.5


def test_optimality_gap_has_any_target() -> None:
    assert optimality_gap(np.array([[0.5, 3.0]])) == 0.25
    assert optimality_gap(np.array([[0.5, 3.0]]), target=2.0) == 0.75


@given(scores=MATRICES, seed=st.integers(0, 99))
def test_aggregates_do_not_see_the_order_of_runs(scores: stats.Array, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permuted(scores, axis=0)  # every game by itself
    for statistic in OVER_GAMES:
        assert statistic(shuffled) == pytest.approx(statistic(scores), rel=0, abs=1e-12)
    assert stratified_interval(shuffled, resamples=20) == stratified_interval(scores, resamples=20)


@given(scores=MATRICES)
def test_iqm_lies_between_the_quartiles(scores: stats.Array) -> None:
    low, high = np.quantile(scores, (0.25, 0.75))
    assert low - 1e-9 <= iqm(scores) <= high + 1e-9


@given(scores=MATRICES)
def test_functions_of_samples_are_those_of_each(scores: stats.Array) -> None:
    both = np.stack([scores, scores[::-1] * 2 + 1])
    for statistic in OVER_GAMES:
        np.testing.assert_allclose(statistic(both), [statistic(s) for s in both], atol=1e-12)


@given(scores=MATRICES)
def test_performance_profile_falls_from_one_to_zero(scores: stats.Array) -> None:
    thresholds = np.linspace(-51, 51, 30)
    shares = performance_profile(scores, thresholds)
    assert shares[0] == 1.0 and shares[-1] == 0.0 and (np.diff(shares) <= 0).all()


def test_performance_profile_is_of_runs_and_strictly_above() -> None:
    scores = np.array([[0.0, 1.0], [1.0, 4.0]])
    assert performance_profile(scores, np.array([-1.0, 0.0, 1.0, 3.0])).tolist() == [
        1,
        0.75,
        0.25,
        0.25,
    ]
    drawn = stratified_bootstrap(
        scores,
        np.random.default_rng(0),
        statistic=lambda s: performance_profile(s, np.array([0.0, 1.0])),
        resamples=50,
    )
    assert drawn.shape == (50, 2)


# their intervals


def test_stratified_bootstrap_has_the_distribution_of_all_samples() -> None:
    scores = np.array([[0.0, 10.0], [1.0, 30.0]])
    rng = np.random.default_rng(0)
    drawn = stratified_bootstrap(scores, rng, statistic=mean_over_games, resamples=20_000)
    # each game by itself: means 0, 1/2, 1 and 10, 20, 30 with shares 1/4, 1/2, 1/4
    shares = {0.0: 0.25, 0.5: 0.5, 1.0: 0.25}
    for (one, p), (two, q) in itertools.product(shares.items(), repeat=2):
        value = (one + 10 + 20 * two) / 2
        assert np.isclose(drawn, value).mean() == pytest.approx(p * q, abs=0.01)


def test_stratified_interval_shrinks_with_the_root_of_the_runs() -> None:
    widths = {}
    for runs in (10, 160):
        scores = normal(runs, shape=(26,))
        widths[runs] = width(stratified_interval(scores, statistic=mean_over_games))
    assert widths[10] / widths[160] == pytest.approx(4.0, rel=0.2)
    assert widths[10] == pytest.approx(2 * 1.96 / np.sqrt(260), rel=0.2)
    assert width(stratified_interval(normal(160, shape=(26,)))) < width(stratified_interval(FIVE))


def test_stratified_interval_of_one_run_is_a_point() -> None:
    low, high = stratified_interval(FIVE[:1])
    assert low == high == iqm(FIVE[:1])


def test_the_seed_decides_the_stratified_interval_and_blocks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = stratified_interval(FIVE, statistic=mean_over_games)
    assert whole == stratified_interval(FIVE, statistic=mean_over_games, seed=0)
    assert whole != stratified_interval(FIVE, statistic=mean_over_games, seed=1)
    monkeypatch.setattr(stats, "BLOCK", 100)
    assert whole == stratified_interval(FIVE, statistic=mean_over_games)


# what is no matrix of runs and games


def test_check_matrix_takes_what_fits() -> None:
    found = check_matrix([[1, 2, 3], [4, 5, 6]], runs=2, games=3)
    assert found.dtype == np.float64 and found.shape == (2, 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((3, 2)), r"found shape \[3, 2\]; the axes are swapped"),
        (np.zeros((200, 3)), "200 rows are 2 runs of 100 episodes"),
        (np.zeros((2, 3, 100)), "episodes or checkpoints are no runs"),
        (np.zeros((2, 4)), r"expected scores \[runs, games\] = \[2, 3\], found shape \[2, 4\]$"),
        (np.zeros((3, 3)), r"found shape \[3, 3\]$"),
        (np.zeros(6), r"found shape \[6\]$"),
        ([[1.0, 2.0, 3.0], [4.0, 5.0]], "ragged rows"),
        ([[1.0, 2.0, [3.0, 4.0]], [4.0, 5.0, 6.0]], "average the episodes"),
        ([["a", "b", "c"], ["d", "e", "f"]], "no numbers"),
        ([[1.0, np.nan, 0.0], [1.0, 2.0, np.inf]], r"finite .* \[\[0, 1\], \[1, 2\]\]"),
    ],
)
def test_check_matrix_says_what_is_wrong(rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_matrix(rows, runs=2, games=3)
