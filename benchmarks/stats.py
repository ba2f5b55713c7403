"""Statistics over seeds: percentile bootstrap intervals of means and of their differences.

Pure functions of arrays whose first axis is the seed. Another statistic, such as an interquartile
mean, is one more function of the kind of `mean`, handed to `bootstrap`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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
