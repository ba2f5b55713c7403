"""Interval of a success rate, from counts."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a success rate (Wilson 1927).

    `(p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n)`: unlike `p +- z s`, it stays
    inside [0, 1] and keeps a width at 0 and at n successes.
    """
    if trials < 1:
        raise ValueError(f"a success rate needs one trial or more, found {trials}: evaluate first")
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 to {trials} successes in {trials} trials, found {successes}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be inside (0, 1), found {confidence}: 95 % is 0.95")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, excess = successes / trials, z * z / trials
    centre = rate + excess / 2
    half = math.sqrt(excess * (rate * (1 - rate) + excess / 4))
    low, high = (centre - half) / (1 + excess), (centre + half) / (1 + excess)
    # rounding leaves the lower end of 0 successes at 0, but not this one at 1
    return low, 1.0 if successes == trials else high
