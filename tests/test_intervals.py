"""Wilson's interval of a success rate: values worked out by hand, its ends, and what it refuses."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverie.agents.intervals import wilson_interval

Z = 1.959964  # of 95 %


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # z^2 = 3.841459; 8 of 10: (0.8 + 0.192073 -+ sqrt(0.384146 (0.16 + 0.096036))) / 1.384146
        (8, 10, 0.490162, 0.943318),
        # 50 of 100: 0.5 -+ sqrt(0.038415 (0.25 + 0.009604)) / 1.038415
        (50, 100, 0.403832, 0.596168),
        # none of 10: z^2 / (10 + z^2), and its mirror image
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        # one trial: z^2 / (1 + z^2)
        (0, 1, 0.0, 0.793450),
        (1, 1, 0.206550, 1.0),
    ],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=2e-6)


def test_wilson_interval_of_another_confidence() -> None:
    # z = 1 at 68.268949 %: 1 of 2 gives 0.5 -+ sqrt(0.5 (0.25 + 0.125)) / 1.5
    half = math.sqrt(0.1875) / 1.5
    assert wilson_interval(1, 2, 0.68268949) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_published_protocols_cannot_tell_a_few_points_apart() -> None:
    for successes, trials, half in [(50, 100, 0.095), (25, 50, 0.13), (273, 300, 0.033)]:
        low, high = wilson_interval(successes, trials)
        assert (high - low) / 2 == pytest.approx(half, abs=0.005)


@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0.5, 0.999))
def test_wilson_interval_solves_the_score_equation(
    trials: int, share: float, confidence: float
) -> None:
    successes = round(share * trials)
    low, high = wilson_interval(successes, trials, confidence)
    assert 0 <= low <= successes / trials <= high <= 1
    mirrored = wilson_interval(trials - successes, trials, confidence)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)
    # both ends are rates from which the observed one is equally far, in their standard deviations
    squares = [
        (successes / trials - p) ** 2 * trials / (p * (1 - p)) for p in (low, high) if 0 < p < 1
    ]
    assert squares == pytest.approx([squares[0]] * len(squares), rel=1e-6)


@pytest.mark.parametrize("trials", [1, 3, 7, 49, 50, 1000, 12345])
def test_no_success_and_no_failure_end_exactly_at_the_ends(trials: int) -> None:
    low, high = wilson_interval(0, trials)
    assert low == 0.0 and high == pytest.approx(Z**2 / (trials + Z**2), rel=1e-6)
    low, high = wilson_interval(trials, trials)
    assert high == 1.0 and low == pytest.approx(trials / (trials + Z**2), rel=1e-6)


@pytest.mark.parametrize(
    ("successes", "trials", "confidence", "message"),
    [
        (0, 0, 0.95, "one trial or more, found 0"),
        (-1, 5, 0.95, "0 to 5 successes in 5 trials, found -1"),
        (6, 5, 0.95, "found 6"),
        (1, 5, 1.0, "inside"),
        (1, 5, 95.0, "95 % is 0.95"),
    ],
)
def test_wilson_interval_refuses(
    successes: int, trials: int, confidence: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        wilson_interval(successes, trials, confidence)
