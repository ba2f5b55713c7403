"""Aggregates of a report: golden values, published self-tests, and what intervals must do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from report_runs import make_grid

from reverie.agents.configs import ConfigError
from reverie.benchmarks.reference import games, method_scores
from reverie.benchmarks.report.aggregate import (
    Estimate,
    Summary,
    aggregates,
    improvement,
    normaliser,
    profiles,
    summarise,
)
from reverie.benchmarks.report.collect import collect
from reverie.benchmarks.stats import Array

MATRICES = arrays(
    np.float64,
    st.tuples(st.integers(2, 6), st.integers(1, 5)),
    elements=st.floats(-2, 3, allow_nan=False, width=32),
)
ORDER = st.permutations(range(5))


def golden(runs: int, step: int) -> Array:
    i, j = np.arange(runs)[:, None], np.arange(8)[None]
    return ((3 * i + 5 * j + step * i * j) % 13) / 10


def values(found: Mapping[str, Estimate]) -> dict[str, float]:
    return {name: one.value for name, one in found.items()}


def report_on(grid: Path) -> Summary:
    study = collect([grid])
    (group,) = study.groups()
    return summarise(study, group)


# golden numbers


def test_aggregates_and_improvement_are_those_of_rliable_1_2_0() -> None:
    a, b = golden(5, 0), golden(4, 2)
    assert values(aggregates(a)) == pytest.approx(
        {"IQM": 0.595, "median": 0.57, "mean": 0.595, "optimality gap": 0.4275}
    )
    assert values(aggregates(b)) == pytest.approx(
        {"IQM": 0.65, "median": 0.5875, "mean": 0.65, "optimality gap": 0.38125}
    )
    assert improvement(a, b).value == pytest.approx(0.4375)


@pytest.mark.slow
def test_a_report_of_the_published_means_of_spr_has_the_published_mean_and_median(
    tmp_path: Path,
) -> None:
    known = method_scores("SPR (rliable 100 runs)")
    scores = {("ours", task): [score] for task, score in known.items()}
    found = report_on(make_grid(tmp_path / "grid", scores))
    numbers = values(found.aggregates["ours"])
    assert numbers["mean"] == pytest.approx(0.616, abs=5e-4)
    assert numbers["median"] == pytest.approx(0.396, abs=5e-4)
    assert numbers["IQM"] == pytest.approx(0.415, abs=5e-4), "of means over runs, not of 100 runs"
    assert found.tasks == [one.task for one in games()]
    assert found.unit == "human-normalised score"


@pytest.mark.parametrize(
    ("method", "want"),
    [
        ("MuZero (EfficientZero re-implementation)", (0.288, 0.227, 0.562, 0.616)),
        ("EfficientZero", (1.047, 1.090, 1.943, 0.367)),
    ],
)
def test_iqm_and_gap_over_game_means(method: str, want: tuple[float, ...]) -> None:
    scale = normaliser("atari", [one.task for one in games()])
    scores = scale(np.array([list(method_scores(method).values())]))
    assert tuple(values(aggregates(scores)).values()) == pytest.approx(want, abs=1e-3)


# properties


@given(scores=MATRICES)
def test_the_iqm_lies_between_the_quartiles_and_intervals_hold_their_number(
    scores: Array,
) -> None:
    found = aggregates(scores)
    low, high = np.quantile(scores, (0.25, 0.75), method="inverted_cdf")
    ends = np.sort(scores, axis=None)
    cut = scores.size // 4
    assert ends[cut] - 1e-9 <= found["IQM"].value <= ends[-cut - 1] + 1e-9
    assert low - 1e-9 <= found["IQM"].value <= max(high, ends[-cut - 1]) + 1e-9
    for one in found.values():
        assert one.low is not None and one.high is not None and one.low <= one.high


@given(scores=MATRICES, seed=st.integers(0, 99))
def test_the_order_of_runs_and_of_tasks_changes_nothing(scores: Array, seed: int) -> None:
    rng = np.random.default_rng(seed)
    other = rng.permuted(scores, axis=0)
    assert aggregates(other) == {
        name: Estimate(
            pytest.approx(one.value, abs=1e-12),
            pytest.approx(one.low, abs=1e-12),
            pytest.approx(one.high, abs=1e-12),
        )
        for name, one in aggregates(scores).items()
    }
    turned = scores[:, rng.permutation(scores.shape[1])]
    assert values(aggregates(turned)) == pytest.approx(values(aggregates(scores)), abs=1e-12)


@given(x=MATRICES, seed=st.integers(0, 99))
def test_improvement_is_a_half_against_itself_and_mirrors(x: Array, seed: int) -> None:
    y = x + np.random.default_rng(seed).normal(size=x.shape).round(1)
    assert improvement(x, x, resamples=20).value == pytest.approx(0.5)
    there, back = improvement(x, y, resamples=20), improvement(y, x, resamples=20)
    assert there.value + back.value == pytest.approx(1.0)
    assert there.low is not None and there.high is not None
    assert 0.0 <= there.low <= there.high <= 1.0


def test_intervals_shrink_with_runs() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=(4, 6)), rng.normal(size=(64, 6))

    def widths(scores: Array) -> dict[str, float]:
        found = aggregates(scores) | {"P": improvement(scores, scores + 0.1, resamples=200)}
        return {k: one.high - one.low for k, one in found.items() if one.high and one.low}

    wide, narrow = widths(few), widths(many)
    assert wide.keys() == narrow.keys() and len(wide) == 5
    assert all(narrow[name] < 0.6 * wide[name] for name in wide), (wide, narrow)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from reverie.benchmarks.report import aggregate

    a, b = golden(5, 0), golden(4, 2)
    want = improvement(a, b, resamples=50)
    monkeypatch.setattr(aggregate, "PAIRED", 300)
    assert improvement(a, b, resamples=50) == want


def test_one_run_has_no_interval() -> None:
    one = golden(1, 0)
    found = aggregates(one)
    assert all(estimate.low is estimate.high is None for estimate in found.values())
    assert improvement(one, golden(5, 0)).low is None
    assert profiles({"a": one})["a"].band is None


# groups


def test_profiles_share_thresholds_up_to_the_best_run_and_fall() -> None:
    found = profiles({"a": golden(5, 0), "b": 2 * golden(4, 2)})
    a, b = found["a"], found["b"]
    assert a.thresholds.tolist() == b.thresholds.tolist()
    assert a.thresholds[-1] == pytest.approx(2 * golden(4, 2).max())
    assert (np.diff(a.share) <= 0).all() and a.share[-1] == b.share[-1] == 0.0
    assert a.band is not None and (a.band.low <= a.share).all() and (a.share <= a.band.high).all()
    assert profiles({}) == {}


def test_units_and_normalisation(tmp_path: Path) -> None:
    assert normaliser("dmc", ["dmc/x"])(np.array([500.0])) == 0.5
    assert normaliser("dmc+dreamerpro", ["dmc/x+dreamerpro"])(np.array([500.0])) == 0.5
    assert normaliser("metaworld", ["metaworld/x"])(np.array([0.5])) == 0.5
    pong = normaliser("atari", ["atari/pong"])
    assert pong(np.array([-20.7, 14.6])).tolist() == pytest.approx([0.0, 1.0])
    with pytest.raises(ConfigError, match=r"26 games, found 'atari/venture'"):
        normaliser("atari", ["atari/venture"])
    scores = {("ours", "toy/catch"): [1.0], ("ours", "toy/dot"): [9.0]}
    found = report_on(make_grid(tmp_path / "grid", scores))
    assert found.unit is None and found.aggregates == {} and found.profiles == {}
    assert found.pairs == [] and list(found.curves) == ["toy/catch", "toy/dot"]


def test_a_summary_has_rows_pairs_and_curves_of_every_label(tmp_path: Path) -> None:
    tasks = ("dmc/walker_walk", "dmc/cheetah_run")
    scores = {("mudreamer", task): [300.0, 500.0] for task in tasks}
    scores |= {("dreamerv3", task): [100.0, 200.0, 300.0] for task in tasks}
    found = report_on(make_grid(tmp_path / "grid", scores))
    assert found.seeds == {"mudreamer": [0, 1], "dreamerv3": [0, 1, 2]}
    assert [(r.task, r.label, r.mean.value) for r in found.rows][:2] == [
        ("dmc/cheetah_run", "mudreamer", 400.0),
        ("dmc/cheetah_run", "dreamerv3", 200.0),
    ]
    assert (found.rows[0].mean.low, found.rows[0].mean.high) == (300.0, 500.0)
    assert found.aggregates["dreamerv3"]["mean"].value == pytest.approx(0.2)
    (pair,) = found.pairs
    # of six pairs of runs 300 beats two and ties with one, 500 beats three
    assert pair.probability.value == pytest.approx(5.5 / 6)
    steps, whole, band = found.curves[""]["dreamerv3"]
    assert whole.tolist() == pytest.approx([0.1, 0.2]) and len(steps) == 2
    assert band is not None and band.low[1] < 0.2 < band.high[1]
    assert found.curves["dmc/walker_walk"]["mudreamer"][1].tolist() == [200.0, 400.0]


def test_further_evaluations_have_rows_of_their_own(tmp_path: Path) -> None:
    evaluation = {"others": {"clean": {"mean": 7.0}}}
    grid = make_grid(tmp_path / "g", {("ours", "toy/catch"): [1.0, 3.0]}, evaluation=evaluation)
    rows = report_on(grid).rows
    assert [(r.view, r.mean.value) for r in rows] == [("", 2.0), ("clean", 7.0)]
