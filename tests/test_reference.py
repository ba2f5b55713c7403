"""Published scores: the packaged files agree with one another, with the emulator and the papers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from reverie.agents.configs import ConfigError
from reverie.benchmarks import reference
from reverie.benchmarks.reference import FOLDER, game, games, method_scores, methods, spr_spread
from reverie.benchmarks.stats import (
    Array,
    human_normalised,
    iqm,
    mean_over_games,
    median_over_games,
    optimality_gap,
)

AGGREGATES = {row["method"]: row for row in reference.rows("atari100k_aggregates.csv")}
OTHER_NAMES = {
    "BBF RR8": "BBF RR8 (paper)",
    "DreamerV3 v1 (as tabulated with MuDreamer)": "DreamerV3 v1 (arXiv 2023)",
}
"""Methods that the two files call differently."""

EXCEPTIONS = {
    "SPR (paper)": (0.703, 0.415),
    "DreamerV3 v1 (arXiv 2023)": (1.130, 0.560),
}
"""What two tables recompute to, against a printed mean of 0.704, and 1.12 and 0.49."""

ROUNDING = Decimal("5e-5")
"""Scores have one decimal, or none, which moves an aggregate by this much at most."""


def normalised(method: str) -> Array:
    """Human-normalised scores [1, games]: one number of each game."""
    table = games()
    scores, random, human = (
        np.array(column)
        for column in (
            list(method_scores(method).values()),
            [one.random for one in table],
            [one.human for one in table],
        )
    )
    return human_normalised(scores, random, human)[None]


def as_printed(value: float, text: str) -> bool:
    """Whether `text` is `value` rounded to the digits that it has."""
    printed = Decimal(text)
    half = Decimal((0, (5,), int(printed.as_tuple().exponent) - 1))
    return abs(Decimal(float(value)) - printed) <= half + ROUNDING


# games


def test_games_have_two_names_and_constants() -> None:
    assert len(games()) == 26 and [one.name for one in games()] == sorted(
        one.name for one in games()
    )
    pacman = game("atari/ms_pacman")
    assert pacman == game("MsPacman") == ("MsPacman", "atari/ms_pacman", 9, 307.3, 6951.6)
    assert game("atari/up_n_down").name == "UpNDown" and game("Pong").random == -20.7
    assert all(one.human > one.random for one in games())


@pytest.mark.atari
def test_games_are_those_of_the_environment_with_its_actions() -> None:
    from reverie.envs import make_vec
    from reverie.envs.atari import ATARI_100K

    assert [one.task for one in games()] == [f"atari/{name}" for name in ATARI_100K]
    for one in (game("Freeway"), game("KungFuMaster"), game("Gopher")):
        env = make_vec(one.task, 1, seed=0)
        try:
            assert env.spec.action_size == one.n_actions
        finally:
            env.close()


@pytest.mark.parametrize(
    ("name", "hint"),
    [("mspacman", "MsPacman"), ("atari/mspacman", "atari/ms_pacman"), ("dmc/walker", "26 games")],
)
def test_an_unknown_game_is_named_with_a_suggestion(name: str, hint: str) -> None:
    for ask in (game, spr_spread):
        with pytest.raises(ConfigError, match=f"expected one of Atari.*found '{name}'") as caught:
            ask(name)
        assert hint in str(caught.value)


# methods


def test_methods_have_a_score_of_every_game() -> None:
    assert len(methods()) == 21
    for method in methods():
        assert list(method_scores(method)) == [one.task for one in games()]
    assert method_scores("BBF RR8")["atari/ms_pacman"] == 2008.3


def test_an_unknown_method_is_named_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"method: expected one of SPR.*did you mean DIAMOND"):
        method_scores("Diamnd")


@pytest.mark.parametrize("method", methods())
def test_mean_and_median_of_every_method_are_as_printed(method: str) -> None:
    found = [float(f(normalised(method))) for f in (mean_over_games, median_over_games)]
    row = AGGREGATES[OTHER_NAMES.get(method, method)]
    printed = [as_printed(v, row[k]) for v, k in zip(found, ("mean", "median"), strict=True)]
    if method in EXCEPTIONS:
        assert found == pytest.approx(EXCEPTIONS[method], abs=5.5e-4) and not all(printed)
    else:
        assert all(printed), (found, row)


@pytest.mark.parametrize(
    ("method", "middle", "gap"),
    [
        ("MuZero (EfficientZero re-implementation)", "0.288", "0.616"),
        ("EfficientZero", "1.047", "0.367"),
    ],
)
def test_iqm_and_gap_over_game_means(method: str, middle: str, gap: str) -> None:
    row = AGGREGATES[method]
    assert (row["iqm"], row["optimality_gap"]) == (middle, gap)
    assert as_printed(float(iqm(normalised(method))), middle)
    assert as_printed(float(optimality_gap(normalised(method))), gap)


@pytest.mark.parametrize(
    ("method", "over_means", "over_runs"),
    [
        ("SPR (rliable 100 runs)", "0.415", "0.337"),
        ("BBF RR8", "1.139", "1.045"),
        ("SR-SPR RR16", "0.700", "0.632"),
    ],
)
def test_iqm_over_game_means_is_not_the_iqm(method: str, over_means: str, over_runs: str) -> None:
    assert as_printed(float(iqm(normalised(method))), over_means)
    assert AGGREGATES[OTHER_NAMES.get(method, method)]["iqm"] == over_runs


# the spread of SPR


def test_spr_spreads_have_the_means_of_its_100_runs() -> None:
    means = {one.task: spr_spread(one.task).mean for one in games()}
    assert means == method_scores("SPR (rliable 100 runs)")


@pytest.mark.parametrize("name", [one.name for one in games()])
def test_spr_bands_are_ordered_and_narrower_with_more_runs(name: str) -> None:
    found = spr_spread(name)
    assert found.p5 <= found.p50 <= found.p95
    assert found.lo3 <= found.lo5 < found.mean < found.hi5 <= found.hi3
    assert found == spr_spread(game(name).task)


def test_bands_are_for_one_three_and_five_runs() -> None:
    found = spr_spread("Alien")
    bands = {runs: found.band(runs) for runs in range(8)}
    assert {runs: band for runs, band in bands.items() if band} == {
        1: (639.9, 1222.6, 0.90),
        3: (680.1, 1101.4, 0.95),
        5: (710.0, 1032.4, 0.95),
    }


# files


def test_every_file_is_explained_and_rectangular() -> None:
    manual = (FOLDER / "README.md").read_text()
    names = sorted(path.name for path in FOLDER.glob("*.csv"))
    assert len(names) == 10
    for name in names:
        assert f"`{name}`" in manual
        table: list[dict[Any, Any]] = list(reference.rows(name))
        assert table and all(None not in row and None not in row.values() for row in table), name
