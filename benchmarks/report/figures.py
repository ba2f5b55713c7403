"""Pictures of a group as PNG: intervals, profiles, probabilities of improvement, curves."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from reverie.benchmarks.report.aggregate import STATISTICS, Estimate, Summary
from reverie.benchmarks.report.document import Figure
from reverie.benchmarks.stats import LEVEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 110
WIDTH = 9.0
PANELS = 4
"""Panels beside each other."""

SHADED = f"bars and shades: {100 * LEVEL:.0f} % bootstrap intervals, none of one seed"


def figures(summary: Summary) -> list[Figure]:
    """Everything that can be drawn of a group."""
    found = [_scores(summary)]
    if summary.unit is not None:
        found += [_aggregates(summary), _profiles(summary)]
    if summary.pairs:
        found.append(_improvement(summary))
    return [*found, _curves(summary)]


def _scores(summary: Summary) -> Figure:
    panels, free = _panels(len(summary.tasks), 0.35 + 0.28 * len(summary.labels))
    rows = {(row.task, row.label): row for row in summary.rows if not row.view}
    for axes, task in zip(panels, summary.tasks, strict=True):
        _points(axes, summary.labels, [rows[task, label].mean for label in summary.labels])
        for place, label in enumerate(summary.labels):
            scores = rows[task, label].scores
            axes.plot(scores, [place] * len(scores), "|", color="0.55", markersize=9, zorder=1)
        axes.set_title(_short(task), fontsize=9)
    caption = "Score of the final agent on each task, mean over seeds; strokes: single seeds"
    return Figure(f"scores-{summary.group}", f"{caption}; {SHADED}.", _png(free))


def _aggregates(summary: Summary) -> Figure:
    panels, free = _panels(len(STATISTICS), 0.5 + 0.28 * len(summary.labels))
    for axes, name in zip(panels, STATISTICS, strict=True):
        _points(axes, summary.labels, [summary.aggregates[one][name] for one in summary.labels])
        axes.set_title("gap: less is better" if "gap" in name else name, fontsize=9)
    caption = f"Aggregates over runs x tasks, {summary.unit}; {SHADED}."
    return Figure(f"aggregates-{summary.group}", caption, _png(free))


def _profiles(summary: Summary) -> Figure:
    figure, axes = _figure(WIDTH, 3.4)
    for place, (label, one) in enumerate(summary.profiles.items()):
        if one.band is not None:
            axes.fill_between(one.thresholds, *one.band, color=f"C{place}", alpha=0.15, linewidth=0)
        axes.plot(one.thresholds, one.share, color=f"C{place}", label=label)
    axes.set_xlabel(f"threshold, {summary.unit}")
    axes.set_ylabel("share of runs x tasks above")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    caption = f"Performance profiles: further to the upper right is better; {SHADED}."
    return Figure(f"profiles-{summary.group}", caption, _png(figure))


def _improvement(summary: Summary) -> Figure:
    names = [f"{pair.first} > {pair.second}" for pair in summary.pairs]
    figure, axes = _figure(WIDTH, 0.9 + 0.28 * len(names))
    _points(axes, names, [pair.probability for pair in summary.pairs])
    axes.axvline(0.5, color="0.4", linestyle="--", linewidth=1)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("probability that a run of the first scores higher")
    caption = f"Probability of improvement, averaged over tasks; dashed: no difference; {SHADED}."
    return Figure(f"improvement-{summary.group}", caption, _png(figure))


def _curves(summary: Summary) -> Figure:
    panels, free = _panels(len(summary.curves), 1.9)
    for axes, (task, curves) in zip(panels, summary.curves.items(), strict=True):
        for label, (steps, mean, interval) in curves.items():
            colour = f"C{summary.labels.index(label)}"
            if interval is not None:
                axes.fill_between(steps, *interval, color=colour, alpha=0.15, linewidth=0)
            marker = "o-" if len(steps) == 1 else "-"
            axes.plot(steps, mean, marker, color=colour, label=label, markersize=3)
        axes.set_title(_short(task) if task else f"all: IQM, {summary.unit}", fontsize=9)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=7)
    panels[0].legend(fontsize=7)
    unit = {row.budget.partition(" ")[2] for row in summary.rows}
    caption = (
        f"Evaluations during training against {' or '.join(sorted(unit))}, mean over seeds; "
        f"{SHADED}, point by point."
    )
    return Figure(f"curves-{summary.group}", caption, _png(free))


def _points(axes: Axes, names: Sequence[str], values: Sequence[Estimate]) -> None:
    """One line each: a number and its interval."""
    for place, one in enumerate(values):
        colour = f"C{place % 10}"
        if one.low is not None and one.high is not None:
            axes.plot([one.low, one.high], [place] * 2, color=colour, linewidth=5, alpha=0.4)
        axes.plot([one.value], [place], "o", color=colour, markersize=5)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(labelsize=7)
    axes.grid(axis="x", alpha=0.3)


def _short(task: str) -> str:
    return task.partition("/")[2]


def _figure(width: float, height: float) -> tuple[Any, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _panels(count: int, height: float) -> tuple[list[Axes], Any]:
    """Axes of `count` panels, and the figure that they are in."""
    wide = min(count, PANELS)
    deep = math.ceil(count / wide)
    figure, only = _figure(WIDTH, max(1.6, deep * height + 0.4))
    only.remove()
    grid = np.ravel(figure.subplots(deep, wide, squeeze=False))
    for axes in grid[count:]:
        axes.remove()
    return list(grid[:count]), figure


def _png(figure: Any) -> bytes:
    with io.BytesIO() as file:
        # without the name of the version, equal numbers are equal bytes
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
        return file.getvalue()
