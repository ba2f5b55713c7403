"""Statistics over seeds, and of the field over runs and games, with percentile bootstrap intervals.

Pure functions of arrays: seeds of one task on the first axis, or runs and games on the last two.
Another statistic is one more function of the kind of `mean` or `iqm`, handed to a bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Statistic = Callable[[Array], Array]
"""Samples [R, N, ...] of N seeds -> one value for each of the R samples [R, ...]."""

RESAMPLES = 2_000
"""Samples with replacement behind one interval."""

LEVEL = 0.95
"""Share of the resampled statistics that an interval holds."""

BLOCK = 2**22
"""Numbers that the samples of one block hold: a bound on memory, without effect on results."""


class Interval(NamedTuple):
    """Bounds, both included, of one number or of every point of a curve."""

    low: Array
    high: Array

    def contains(self, value: float) -> NDArray[np.bool_]:
        """Where `value` is inside."""
        return (self.low <= value) & (value <= self.high)


def mean(samples: Array) -> Array:
    """Mean [R, ...] over the seeds of samples [R, N, ...].

    Taken from the first seed on, so that the mean of equal numbers is that number to the last bit.
    """
    first = samples[:, :1]
    centre: Array = first[:, 0] + (samples - first).mean(1)
    return centre


def bootstrap(
    values: Array,
    rng: np.random.Generator,
    *,
    statistic: Statistic = mean,
    resamples: int = RESAMPLES,
) -> Array:
    """Statistic [R, ...] of R samples, with replacement, of the seeds of `values` [N, ...].

    A seed is drawn with all of its trailing entries: curves stay whole. Seeds are sorted first, so
    that their order changes nothing.
    """
    assert len(values) and resamples > 0, (values.shape, resamples)
    ordered = values[np.lexsort(values.reshape(len(values), -1).T[::-1])]
    index = rng.integers(len(values), size=(resamples, len(values)))
    blocks = np.array_split(index, min(resamples, 1 + resamples * values.size // BLOCK))
    return np.concatenate([statistic(ordered[block]) for block in blocks])


def percentile_interval(resampled: Array, *, level: float = LEVEL) -> Interval:
    """What the middle `level` of resampled statistics [R, ...] spans."""
    tail = (1.0 - level) / 2.0
    return Interval(*np.quantile(resampled, (tail, 1.0 - tail), axis=0))


def bootstrap_mean_interval(
    values: Array, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Interval [...] of the mean over the seeds of `values` [N, ...].

    Too narrow for few seeds: of normally distributed scores, 95 % intervals hold the true mean in
    76 % of all cases with 3 seeds (they are the range of the seeds then), in 83 % with 5 and in
    91 % with 10. One seed gives a point, which says nothing.
    """
    rng = np.random.default_rng(seed)
    return percentile_interval(bootstrap(values, rng, resamples=resamples), level=level)


def bootstrap_difference(
    a: Array,
    b: Array,
    *,
    statistic: Statistic = mean,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[Array, Interval]:
    """Statistic of `a` [N, ...] minus that of `b` [M, ...], and the interval of the difference.

    The groups are resampled independently: equal numbers of seeds are not pairs.
    """
    rng = np.random.default_rng(seed)
    left, right = (bootstrap(x, rng, statistic=statistic, resamples=resamples) for x in (a, b))
    difference = statistic(a[None])[0] - statistic(b[None])[0]
    return difference, percentile_interval(left - right, level=level)


# scores of runs x games, as Agarwal et al. 2021 (arXiv 2108.13264) and their library rliable 1.2.0
# define them; every function takes [..., runs, games], so that samples of a bootstrap are one call


def check_matrix(rows: Any, *, runs: int, games: int) -> Array:
    """`rows` as finite numbers [runs, games], one number for each run of each game.

    A run is one trained agent, and its number the mean of its episodes: episodes stacked as runs
    would make every interval too narrow. Hence both sizes have to be said.

    Raises:
        ValueError: another shape, rows of unequal length, episodes in place of runs, or numbers
            that are not finite.
    """
    expected = f"expected scores [runs, games] = [{runs}, {games}]"
    try:
        found = np.asarray(rows, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{expected}, found ragged rows or entries that are no numbers ({error}); cut every "
            "game to the number of runs that all have, and average the episodes of a run"
        ) from error
    if found.shape != (runs, games):
        raise ValueError(f"{expected}, found shape {[*found.shape]}{_advice(found, runs, games)}")
    if not np.isfinite(found).all():
        bad = [place.tolist() for place in np.argwhere(~np.isfinite(found))]
        raise ValueError(f"{expected} of finite numbers, found others at [run, game] {bad}")
    return found


def _advice(found: Array, runs: int, games: int) -> str:
    if found.shape == (games, runs):
        return "; the axes are swapped: runs come first"
    if found.ndim == 3:
        return "; episodes or checkpoints are no runs: average the first, choose one of the second"
    if found.ndim == 2 and found.shape[1] == games and runs and len(found) % runs == 0:
        return (
            f"; {len(found)} rows are {runs} runs of {len(found) // runs} episodes: average those"
        )
    return ""


def human_normalised(scores: Array, random: Array, human: Array) -> Array:
    """(score - random) / (human - random), game by game: [..., games] of raw scores.

    0 is random play and 1 the human (Mnih et al. 2015, as a share instead of per cent).
    """
    assert (human != random).all(), "a human who plays at random measures nothing"
    normalised: Array = (scores - random) / (human - random)
    return normalised


def mean_over_games(scores: Array) -> Array:
    """Mean [...] over games of the means over runs; a few large games decide it."""
    centre: Array = scores.mean(-2).mean(-1)
    return centre


def median_over_games(scores: Array) -> Array:
    """Median [...] over games of the means over runs.

    Biased with few runs: SPR's is 0.361 on average with 5 runs of each game and 0.396 with 100.
    """
    return np.asarray(np.median(scores.mean(-2), axis=-1))


def iqm(scores: Array) -> Array:
    """Interquartile mean [...]: of all runs x games N, without floor(N / 4) at either end.

    Never of means over runs, which are another quantity: 0.415 instead of 0.337 for SPR's 100 runs
    of 26 games (Agarwal et al. 2021).
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    count = flat.shape[-1]
    middle: Array = flat[..., count // 4 : count - count // 4].mean(-1)
    return middle


def optimality_gap(scores: Array, *, target: float = 1.0) -> Array:
    """How far [...] runs fall short of `target`: target - mean of min(score, target).

    Runs beyond it make up for nothing (Agarwal et al. 2021).
    """
    gap: Array = target - np.minimum(scores, target).mean((-2, -1))
    return gap


def improvement_probability(x: Array, y: Array) -> Array:
    """P(a run of `x` [..., n, games] beats one of `y` [..., m, games]), averaged over games.

    Per game the Mann-Whitney U / (n m), in which a tie counts 1/2 (Agarwal et al. 2021). How
    much better is not asked.
    """
    assert x.shape[-1] == y.shape[-1], (x.shape, y.shape)
    a, b = x[..., :, None, :], y[..., None, :, :]
    wins = (a > b).mean((-3, -2)) + 0.5 * (a == b).mean((-3, -2))
    probability: Array = wins.mean(-1)
    return probability


def performance_profile(scores: Array, thresholds: Array) -> Array:
    """Share [..., T] of all runs x games whose score is above each of T thresholds.

    Of runs and not of their means, whose profile is biased (Agarwal et al. 2021).
    """
    shares = [(scores > threshold).mean((-2, -1)) for threshold in thresholds]
    return np.stack(shares, -1).astype(np.float64)


def stratified_bootstrap(
    scores: Array, rng: np.random.Generator, *, statistic: Statistic, resamples: int = RESAMPLES
) -> Array:
    """Statistic [R, ...] of R samples, with replacement, of the runs of `scores` [N, games].

    Runs are drawn anew and independently in every game, the games stay as they are: run i of one
    game has nothing to do with run i of another. The runs of a game are sorted first, so that
    their order changes nothing.
    """
    runs, games = scores.shape
    assert runs and games and resamples > 0, (scores.shape, resamples)
    ordered, columns = np.sort(scores, axis=0), np.arange(games)
    index = rng.integers(runs, size=(resamples, runs, games))
    blocks = np.array_split(index, min(resamples, 1 + resamples * scores.size // BLOCK))
    return np.concatenate([statistic(ordered[block, columns]) for block in blocks])


def stratified_interval(
    scores: Array,
    *,
    statistic: Statistic = iqm,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Interval [...] of a statistic of `scores` [runs, games], by stratified percentile bootstrap.

    One run gives a point, which says nothing. rliable draws 50,000 samples, from a generator that
    its `random_state` does not reach; here `seed` decides.
    """
    rng = np.random.default_rng(seed)
    resampled = stratified_bootstrap(scores, rng, statistic=statistic, resamples=resamples)
    return percentile_interval(resampled, level=level)
