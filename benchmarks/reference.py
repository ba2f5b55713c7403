"""Published scores that are packaged as data: games, methods, and the spread of SPR's runs.

Sources, units and what must not be compared: `reference_scores/README.md`.
"""

from __future__ import annotations

import csv
import difflib
import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from reverie.agents.configs import ConfigError

FOLDER = Path(__file__).with_name("reference_scores")
"""Folder of the packaged files."""


class Game(NamedTuple):
    """A game of Atari 100k and what its scores are measured by."""

    name: str
    """As the files call it, such as MsPacman."""
    task: str
    """As this package calls it, such as atari/ms_pacman."""
    n_actions: int
    """Size of the minimal action set."""
    random: float
    """Raw score of random play."""
    human: float
    """Raw score of the human."""


class Spread(NamedTuple):
    """Final scores of 100 SPR runs of one game, each the mean of its evaluation."""

    mean: float
    sd: float
    p5: float
    p50: float
    p95: float
    lo3: float
    """Lower end of what the mean of 3 runs spans in 95 % of all cases; hi3 is the upper."""
    hi3: float
    lo5: float
    """The same of 5 runs."""
    hi5: float

    def band(self, runs: int) -> tuple[float, float, float] | None:
        """Low, high and the share of results that lie between, of the mean of `runs` runs."""
        bands = {
            1: (self.p5, self.p95, 0.90),
            3: (self.lo3, self.hi3, 0.95),
            5: (self.lo5, self.hi5, 0.95),
        }
        return bands.get(runs)


def rows(name: str) -> list[dict[str, str]]:
    """Rows of a packaged file, as text; an empty cell is a number that nobody stated.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        with open(FOLDER / name, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            [f"{FOLDER / name}: published scores cannot be read ({error}); reinstall reverie"]
        ) from error


@functools.cache
def games() -> tuple[Game, ...]:
    """The 26 games, in alphabetical order."""
    return tuple(
        Game(
            row["game"],
            _task(row["game"]),
            int(row["n_actions"]),
            float(row["random"]),
            float(row["human"]),
        )
        for row in rows("atari100k_games.csv")
    )


def game(name: str) -> Game:
    """One game, by either of its names.

    Raises:
        ConfigError: Atari 100k has no such game.
    """
    named = {key: found for found in games() for key in (found.task, found.name)}
    if name not in named:
        raise ConfigError([_unknown("game", name, named, "one of Atari 100k's 26 games")])
    return named[name]


def methods() -> list[str]:
    """Names of the methods whose scores on each game are known."""
    return list(_scores())


def method_scores(method: str) -> dict[str, float]:
    """Raw scores of a method by task, in the order of `games`; one number per game.

    Means and medians of them are the method's own; an IQM is not, because it needs every run.

    Raises:
        ConfigError: the files know no such method.
    """
    if method not in _scores():
        raise ConfigError([_unknown("method", method, _scores(), f"one of {', '.join(_scores())}")])
    return {one.task: _scores()[method][one.name] for one in games()}


def spr_spread(name: str) -> Spread:
    """How 100 published runs of SPR spread on a game, by either of its names.

    Raises:
        ConfigError: Atari 100k has no such game.
    """
    return _spreads()[game(name).name]


@functools.cache
def _scores() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows("atari100k_scores.csv"):
        found.setdefault(row["method"], {})[row["game"]] = float(row["score"])
    return found


@functools.cache
def _spreads() -> dict[str, Spread]:
    table = rows("spr_100runs_distribution.csv")
    return {row["game"]: Spread(*(float(row[key]) for key in Spread._fields)) for row in table}


def _task(name: str) -> str:
    """atari/ms_pacman of MsPacman."""
    return "atari/" + re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _unknown(what: str, name: str, known: Iterable[str], expected: str) -> str:
    lower = {key.lower(): key for key in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    hint = f"; did you mean {lower[near[0]]}?" if near else ""
    return f"{what}: expected {expected}, found {name!r}{hint}"
