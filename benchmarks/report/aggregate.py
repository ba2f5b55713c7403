"""Statistics of a group of tasks, over runs and tasks, as `stats` defines them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from reverie.benchmarks.curves import Curve, group
from reverie.benchmarks.reference import game
from reverie.benchmarks.report.collect import Study
from reverie.benchmarks.report.runs import Metric
from reverie.benchmarks.stats import (
    RESAMPLES,
    Array,
    Interval,
    Statistic,
    bootstrap_mean_interval,
    check_matrix,
    human_normalised,
    improvement_probability,
    iqm,
    mean_over_games,
    median_over_games,
    optimality_gap,
    percentile_interval,
    performance_profile,
    stratified_bootstrap,
    stratified_interval,
)

STATISTICS: dict[str, Statistic] = {
    "IQM": iqm,
    "median": median_over_games,
    "mean": mean_over_games,
    "optimality gap": optimality_gap,
}
"""Column -> what it is; less is better in the last one alone."""

UNITS = {
    "atari": "human-normalised score",
    "dmc": "return / 1000",
    "metaworld": "success rate",
}
"""Suites whose scores mean the same on every task, once normalised; of others nothing is averaged
over tasks."""

THRESHOLDS = 101
"""Points of a performance profile."""

PAIRED = 2**24
"""Comparisons that one block of the samples of an improvement probability makes."""


@dataclass(frozen=True)
class Estimate:
    """A number, and where its interval lies; none of one run."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """Runs of a label on a task."""

    task: str
    label: str
    view: str
    """Which evaluation: empty for the one that counts."""
    metric: Metric
    mean: Estimate
    seeds: list[int]
    scores: list[float]
    episodes: str
    budget: str
    protocol: str


@dataclass(frozen=True)
class Profile:
    """Share of runs x tasks above each threshold."""

    thresholds: Array
    share: Array
    band: Interval | None


@dataclass(frozen=True)
class Pair:
    """How often a run of the first label beats one of the second."""

    first: str
    second: str
    probability: Estimate


@dataclass(frozen=True)
class Summary:
    """All statistics of a group."""

    group: str
    unit: str | None
    """None: scores are not normalised, and nothing is averaged over tasks."""
    tasks: list[str]
    labels: list[str]
    seeds: dict[str, list[int]]
    rows: list[Row]
    aggregates: dict[str, dict[str, Estimate]]
    profiles: dict[str, Profile]
    pairs: list[Pair]
    curves: dict[str, dict[str, tuple[Array, Array, Interval | None]]]
    """Task -> label -> steps, mean over seeds and its interval; task "" is the whole group."""


def summarise(study: Study, name: str) -> Summary:
    """Statistics of one group of the study.

    Raises:
        ConfigError: an Atari game without known random and human scores.
    """
    tasks, labels = study.tasks(name), study.labels(name)
    seeds = {label: [r.seed for r in study.of(label, tasks[0])] for label in labels}
    unit = UNITS.get(suite_of(name))
    scale = normaliser(name, tasks)
    raw = {
        label: check_matrix(
            np.transpose([[r.score for r in study.of(label, task)] for task in tasks]).tolist(),
            runs=len(seeds[label]),
            games=len(tasks),
        )
        for label in labels
    }
    scores = {label: scale(matrix) for label, matrix in raw.items()}
    known = scores if unit else {}
    return Summary(
        group=name,
        unit=unit,
        tasks=tasks,
        labels=labels,
        seeds=seeds,
        rows=[row for task in tasks for label in labels for row in _rows(study, label, task)],
        aggregates={label: aggregates(matrix) for label, matrix in known.items()},
        profiles=profiles(known),
        pairs=[
            Pair(a, b, improvement(raw[a], raw[b])) for a, b in itertools.combinations(labels, 2)
        ],
        curves=_curves(study, tasks, labels, scale if unit else None),
    )


def suite_of(name: str) -> str:
    """Suite of a group or of a task."""
    return name.partition("/")[0].partition("+")[0]


def normaliser(name: str, tasks: list[str]) -> Callable[[Array], Array]:
    """From raw scores [..., tasks] to those of `UNITS`.

    Raises:
        ConfigError: an Atari game without known random and human scores.
    """
    if suite_of(name) == "atari":
        known = [game(task) for task in tasks]
        random, human = (np.array([getattr(g, k) for g in known]) for k in ("random", "human"))
        return lambda scores: human_normalised(scores, random, human)
    scale = 1000.0 if suite_of(name) == "dmc" else 1.0
    return lambda scores: scores / scale


def aggregates(scores: Array) -> dict[str, Estimate]:
    """`STATISTICS` of normalised scores [runs, tasks], with stratified bootstrap intervals."""
    found = {}
    for name, statistic in STATISTICS.items():
        value = float(statistic(scores))
        interval = stratified_interval(scores, statistic=statistic) if len(scores) > 1 else None
        found[name] = estimate(value, interval)
    return found


def profiles(scores: dict[str, Array]) -> dict[str, Profile]:
    """Performance profiles of labels at thresholds that all of them share."""
    if not scores:
        return {}
    top = max(float(matrix.max()) for matrix in scores.values())
    thresholds = np.linspace(0.0, max(1.0, top), THRESHOLDS)

    def share(matrix: Array) -> Array:
        return performance_profile(matrix, thresholds)

    return {
        label: Profile(
            thresholds,
            share(matrix),
            stratified_interval(matrix, statistic=share) if len(matrix) > 1 else None,
        )
        for label, matrix in scores.items()
    }


def improvement(x: Array, y: Array, *, resamples: int = RESAMPLES) -> Estimate:
    """P(a run of `x` [n, tasks] beats one of `y` [m, tasks]), with its interval.

    Runs of both are resampled independently inside each task.
    """
    value = float(improvement_probability(x, y))
    if min(len(x), len(y)) < 2:
        return Estimate(value)
    rng = np.random.default_rng(0)
    a, b = (
        stratified_bootstrap(side, rng, statistic=lambda s: s, resamples=resamples)
        for side in (x, y)
    )
    blocks = min(resamples, 1 + resamples * len(x) * y.size // PAIRED)
    parts = zip(np.array_split(a, blocks), np.array_split(b, blocks), strict=True)
    drawn = np.concatenate([improvement_probability(left, right) for left, right in parts])
    return estimate(value, percentile_interval(drawn))


def estimate(value: float, interval: Interval | None) -> Estimate:
    """A number beside its interval."""
    if interval is None:
        return Estimate(value)
    return Estimate(value, float(interval.low), float(interval.high))


def _rows(study: Study, label: str, task: str) -> list[Row]:
    members = study.of(label, task)
    views = [""] + [v for v in members[0].views if all(v in r.views for r in members)]
    found = []
    for view in views:
        scores = [r.views[view] if view else r.score for r in members]
        values = np.array(scores)
        interval = bootstrap_mean_interval(values) if len(values) > 1 else None
        found.append(
            Row(
                task=task,
                label=label,
                view=view,
                metric=members[0].metric,
                mean=estimate(float(values.mean()), interval),
                seeds=[r.seed for r in members],
                scores=scores,
                episodes=members[0].terms["episodes"],
                budget=members[0].terms["budget"],
                protocol=members[0].protocol,
            )
        )
    return found


# during training


def _curves(
    study: Study, tasks: list[str], labels: list[str], scale: Callable[[Array], Array] | None
) -> dict[str, dict[str, tuple[Array, Array, Interval | None]]]:
    found: dict[str, dict[str, tuple[Array, Array, Interval | None]]] = {}
    if scale is not None and len(tasks) > 1:
        pooled = {label: _pooled(study, tasks, label, scale) for label in labels}
        found[""] = {label: curve for label, curve in pooled.items() if curve is not None}
    for task in tasks:
        found[task] = {}
        for label in labels:
            seeds: list[Curve] = [r.curve for r in study.of(label, task)]
            one = group(f"{label} on {task}", seeds)
            found[task][label] = (one.steps, one.mean, one.interval)
    return found


def _pooled(
    study: Study, tasks: list[str], label: str, scale: Callable[[Array], Array]
) -> tuple[Array, Array, Interval | None] | None:
    """IQM over runs x tasks at the steps that all have; intervals hold point by point."""
    members = [study.of(label, task) for task in tasks]
    every = [r.curve for runs in members for r in runs]
    steps = every[0][0]
    for own, _ in every[1:]:
        steps = np.intersect1d(steps, own)
    if not len(steps):
        return None
    values = np.array(
        [[r.curve[1][np.isin(r.curve[0], steps)] for r in runs] for runs in members]
    )  # [tasks, runs, steps]
    scores = [scale(values[..., k].T) for k in range(len(steps))]
    centre = np.array([float(iqm(matrix)) for matrix in scores])
    if values.shape[1] < 2:
        return steps, centre, None
    bands = [stratified_interval(matrix) for matrix in scores]
    return steps, centre, Interval(*(np.array(side) for side in zip(*bands, strict=True)))
