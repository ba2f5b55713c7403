"""Published scores beside ours: what may stand in one table, and what each was measured by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np

from reverie.benchmarks.reference import game, games, method_scores, methods, rows
from reverie.benchmarks.report.aggregate import Row, Summary, normaliser, suite_of
from reverie.benchmarks.stats import iqm, mean_over_games, median_over_games, optimality_gap

STATISTICS = ("mean", "median", "iqm", "optimality_gap")
"""As the files call them."""

MAIN = ""
"""Heading of the table that may hold our own runs."""

AGGREGATE_NAMES = {
    "BBF RR8": "BBF RR8 (paper)",
    "DreamerV3 v1 (as tabulated with MuDreamer)": "DreamerV3 v1 (arXiv 2023)",
}
"""Methods that the files of games and of aggregates call differently."""

KNOWN = {
    ("SPR (paper)", "mean"): "the paper says 0.704, its table, not checked against it, gives 0.703",
    ("DreamerV3 v1 (arXiv 2023)", "mean"): "this transcription has UpNDown 9234, others 7600",
    ("DreamerV3 v1 (arXiv 2023)", "median"): "this transcription has UpNDown 9234, others 7600",
}
"""Where games and printed aggregates are known to disagree, and why."""

TOLERANCE = 0.001
"""How far a recomputed aggregate may be from a printed one of three digits."""

ROUNDING = Decimal("5e-5")
"""What the one decimal of a score moves an aggregate by at most."""

ATARI = "sticky=0,noops=0-29,actions=minimal,lives=unused"
"""Protocol of evaluations that stand beside published ones, but for the view."""

FRAMES = 1_000_000
"""Budget of the published scores of dm_control."""

CUP = {"Cup Catch": "ball_in_cup_catch"}


class Warned(NamedTuple):
    """A rule of what must not be compared."""

    setting: str
    methods: list[str]
    """Patterns of names."""
    omit: list[str]
    """Statistics that must not be shown, or `games`."""
    table: str
    """Heading under which these methods stand apart; empty: among the others."""
    text: str

    def meets(self, method: str) -> bool:
        """Whether it is about `method`."""
        return any(fnmatchcase(method, pattern) for pattern in self.methods)


@dataclass(frozen=True)
class Method:
    """A published method, as far as it may be shown."""

    name: str
    seeds: str
    source: str
    table: str
    statistics: dict[str, str]
    """As printed, or recomputed on fewer tasks; empty where unknown or omitted."""
    scores: dict[str, float] = field(default_factory=dict)
    """Raw score by task; empty where unknown or omitted."""
    protocol: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """What is published of a group's tasks."""

    reasons: list[str]
    """Why our runs may not stand beside it; empty: they may."""
    methods: list[Method]
    warnings: list[str]
    complete: bool
    """Whether the group has all tasks of the benchmark; else aggregates are recomputed."""

    def tables(self) -> dict[str, list[Method]]:
        """Methods by heading, the main table first."""
        found: dict[str, list[Method]] = {MAIN: []}
        for method in self.methods:
            found.setdefault(method.table, []).append(method)
        return found


class Check(NamedTuple):
    """A printed aggregate held against its recomputation."""

    method: str
    statistic: str
    recomputed: float
    printed: str
    agrees: bool
    reason: str
    """Why it is known to disagree."""


def published(summary: Summary) -> Comparison | None:
    """What may be shown beside a group; none where nothing is known."""
    suite = suite_of(summary.group)
    if suite == "atari":
        return _atari(summary)
    if summary.group == "dmc":
        return _dmc(summary, "dmc", "dmc_vision_scores.csv")
    if suite == "dmc":
        return _dmc(summary, "dmc+background", "dmc_background_scores.csv")
    return None


def warnings(setting: str) -> list[Warned]:
    """Rules of a setting: atari, dmc or dmc+background."""
    return [
        Warned(
            row["setting"],
            row["methods"].split(";"),
            row["omit"].split(),
            row["table"],
            row["text"],
        )
        for row in rows("do_not_compare.csv")
        if row["setting"] == setting
    ]


def recompute() -> list[Check]:
    """Aggregates of every method whose games are known, against the printed ones.

    IQM and optimality gap only where the printed ones are over games, too.
    """
    printed = {row["method"]: row for row in rows("atari100k_aggregates.csv")}
    scale = normaliser("atari", [one.task for one in games()])
    over_games = {"iqm": iqm, "optimality_gap": optimality_gap}
    checks = []
    for method in methods():
        row = printed[AGGREGATE_NAMES.get(method, method)]
        scores = scale(np.array([list(method_scores(method).values())]))
        wanted = {"mean": mean_over_games, "median": median_over_games}
        if "over per-game means: not comparable" in row["source"]:
            wanted |= over_games
        for name, statistic in wanted.items():
            if row[name]:
                value = float(statistic(scores))
                reason = KNOWN.get((method, name), "")
                checks.append(
                    Check(method, name, value, row[name], agrees(value, row[name]), reason)
                )
    return checks


def agrees(value: float, printed: str) -> bool:
    """Whether a printed number is `value`: within `TOLERANCE`, or to the fewer digits it has."""
    number = Decimal(printed)
    places = -int(number.as_tuple().exponent)
    half = Decimal((0, (5,), -places - 1)) + ROUNDING
    return abs(Decimal(value) - number) <= (Decimal(str(TOLERANCE)) if places > 2 else half)


# Atari 100k


def _atari(summary: Summary) -> Comparison:
    rules = warnings("atari")
    complete = len(summary.tasks) == len(games())
    known = {AGGREGATE_NAMES.get(m, m): method_scores(m) for m in methods()}
    found = []
    for row in rows("atari100k_aggregates.csv"):
        name = row["method"]
        if "ablation" in row["source"] or not (complete or name in known):
            continue
        scores = {task: known[name][task] for task in summary.tasks} if name in known else {}
        # of one number per game means and medians are the method's own, an IQM is not
        printed = {k: row[k] for k in STATISTICS} if complete else _over(summary, scores)
        found.append(
            _method(rules, name, row["seeds"], row["source"], printed, scores, _protocol(name))
        )
    return Comparison(_unlike_atari(summary.rows), found, _texts(rules, found), complete)


def _unlike_atari(own: Sequence[Row]) -> list[str]:
    reasons = []
    for row in own:
        if row.budget != "100,000 agent steps":
            reasons.append(f"budget: published 100,000 agent steps, here {row.budget}")
        parts = row.protocol.split(",")
        if [part for part in parts if not part.startswith("view=")] != ATARI.split(","):
            reasons.append(f"protocol: published {ATARI}, here {row.protocol}")
    return list(dict.fromkeys(reasons))


def _protocol(name: str) -> dict[str, str]:
    """Protocol of the longest prefix of `name` that is known; {} if nobody stated it."""
    known = {row["method"]: row for row in rows("atari100k_protocols.csv")}
    fits = [method for method in known if re.match(rf"{re.escape(method)}(?![\w-])", name)]
    if not fits or "PyTorch" in name:
        return {}
    found = dict(known[max(fits, key=len)])
    del found["method"]
    return found


# DeepMind Control


def _dmc(summary: Summary, setting: str, file: str) -> Comparison | None:
    rules = warnings(setting)
    table: dict[str, dict[str, float]] = {}
    said: dict[str, dict[str, str]] = {}
    for row in rows(file):
        table.setdefault(row["method"], {})[_dmc_task(row["task"])] = float(row["score"])
        said.setdefault(row["method"], row)
    wanted = [task.partition("+")[0] for task in summary.tasks]
    found = []
    for name, scores in table.items():
        if not set(wanted) <= set(scores):
            continue
        own = {task: scores[plain] for task, plain in zip(summary.tasks, wanted, strict=True)}
        statistics = _over(summary, own)
        found.append(
            _method(rules, name, said[name]["seeds"], said[name]["source"], statistics, own, {})
        )
    complete = len(wanted) == max(map(len, table.values()))
    if complete:
        kind = "background" if "+" in setting else "vision"
        found += [
            _method(rules, row["method"], row["seeds"], row["source"], _thousandths(row), {}, {})
            for row in rows("dmc_aggregates.csv")
            if row["setting"] == kind and "MuDreamer" in row["method"]
        ]
    return (
        Comparison(_unlike_dmc(summary), found, _texts(rules, found), complete) if found else None
    )


def _unlike_dmc(summary: Summary) -> list[str]:
    reasons = []
    for row in summary.rows:
        steps, _, unit = row.budget.partition(" ")
        frames = int(steps.replace(",", "")) * 2
        if frames != FRAMES or unit != "agent steps":
            reasons.append(
                f"budget: published {FRAMES:,} frames, 500,000 agent steps, here {row.budget}"
            )
        parts = row.protocol.split(",")
        if "render=reference" not in parts or "observe=both" in parts:
            reasons.append(
                f"protocol: published from pixels, render=reference, here {row.protocol}"
            )
    _, _, distractor = summary.group.partition("+")
    made = ("procedural", "static", "noise")
    if distractor and (
        distractor != "dreamerpro" or any(w in row.protocol for row in summary.rows for w in made)
    ):
        reasons.append(
            "background: published with Kinetics films of driving cars, protocol dreamerpro, here "
            f"{distractor}, {summary.rows[0].protocol}"
        )
    return list(dict.fromkeys(reasons))


def _dmc_task(name: str) -> str:
    return "dmc/" + CUP.get(name, name.lower().replace(" ", "_"))


def _thousandths(row: dict[str, str]) -> dict[str, str]:
    known = {name: row[name] for name in ("mean", "median") if row[name]}
    return {name: f"{float(text) / 1000:.3f}" for name, text in known.items()}


# both


def _method(
    rules: Sequence[Warned],
    name: str,
    seeds: str,
    source: str,
    statistics: dict[str, str],
    scores: dict[str, float],
    protocol: dict[str, str],
) -> Method:
    """A method without what its warnings forbid."""
    own = [rule for rule in rules if rule.meets(name)]
    omitted = {word for rule in own for word in rule.omit}
    kept = {k: "" if k in omitted else statistics.get(k, "") for k in STATISTICS}
    table = next((rule.table for rule in own if rule.table), MAIN)
    return Method(name, seeds, source, table, kept, {} if "games" in omitted else scores, protocol)


def _over(summary: Summary, scores: dict[str, float]) -> dict[str, str]:
    """Mean and median over the group's own tasks."""
    values = np.array([[scores[task] for task in summary.tasks]])
    scaled = normaliser(summary.group, summary.tasks)(values)
    return {
        "mean": f"{float(mean_over_games(scaled)):.3f}",
        "median": f"{float(median_over_games(scaled)):.3f}",
    }


def _texts(rules: Sequence[Warned], shown: Sequence[Method]) -> list[str]:
    return [rule.text for rule in rules if any(rule.meets(method.name) for method in shown)]


def human_scores(tasks: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Random and human score by Atari task."""
    return {task: (game(task).random, game(task).human) for task in tasks}
