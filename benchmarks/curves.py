"""`reverie bench curves`: one metric of several runs in one picture, and its numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console

from reverie.agents.configs import ConfigError
from reverie.agents.jsonl import read_jsonl

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps [K] and values [K]."""


def main(args: Sequence[str]) -> int:
    """Draw the curves that `args` name."""
    return tyro.cli(draw, args=list(args), prog="reverie bench curves")


def draw(
    groups: tyro.conf.Positional[tuple[str, ...]],
    tag: str = "eval/mean",
    out: Path = Path("curves.png"),
    title: str = "",
    floor: Annotated[tuple[float, ...], tyro.conf.arg(metavar="[FLOAT ...]")] = (),
    until: float = float("inf"),
) -> int:
    """Plot a metric of runs: every seed thin, the mean of each group thick.

    Args:
        groups: LABEL=RUN[,RUN...] for every line; RUN is a run directory.
        tag: metric to plot, a path as in TensorBoard (eval/mean, health/embed_std, ...).
        out: PNG to write; the numbers go beside it as .json.
        title: heading of the picture.
        floor: horizontal lines, such as a blind control or a stated floor.
        until: last agent step to show, for runs of unequal budgets.
    """
    curves = {
        label: [curve(run, tag, until) for run in runs] for label, runs in parse(groups).items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    _plot(curves, tag, out, title, floor)
    numbers = {
        label: [{"step": s.tolist(), "value": v.tolist()} for s, v in seeds]
        for label, seeds in curves.items()
    }
    table = out.with_suffix(".json")
    table.write_text(json.dumps({"tag": tag, "floor": floor, "curves": numbers}, indent=1) + "\n")
    Console().print(f"wrote {out} and {table}")
    return 0


def parse(groups: Sequence[str]) -> dict[str, list[Path]]:
    """Run directories by label; every problem is named at once."""
    problems, found = [], {}
    for group in groups:
        label, sign, names = group.partition("=")
        runs = [Path(name) for name in names.split(",") if name]
        if not sign or not runs:
            problems.append(f"expected LABEL=RUN[,RUN...], found {group!r}")
        problems += [
            f"{run} holds no metrics.jsonl; name the directory that `reverie train` printed"
            for run in runs
            if not (run / "metrics.jsonl").is_file()
        ]
        found[label] = runs
    if not groups:
        problems.append("expected at least one LABEL=RUN[,RUN...]")
    if problems:
        raise ConfigError(problems)
    return found


def curve(run: Path, tag: str, until: float = float("inf")) -> Curve:
    """Steps and values of one metric of one run, up to step `until`."""
    rows = [r for r in read_jsonl(run / "metrics.jsonl") if tag in r and r["step"] <= until]
    if not rows:
        message = f"{run} has no metric {tag!r} up to step {until:g}; its metrics.jsonl lists all"
        raise ConfigError([message])
    return np.array([r["step"] for r in rows], float), np.array([r[tag] for r in rows], float)


def mean_curve(seeds: Sequence[Curve]) -> Curve:
    """Mean over seeds on the first one's steps, as far as all of them reach."""
    end = min(steps[-1] for steps, _ in seeds)
    grid = seeds[0][0][seeds[0][0] <= end]
    return grid, np.mean([np.interp(grid, steps, values) for steps, values in seeds], axis=0)


def _plot(
    curves: dict[str, list[Curve]], tag: str, out: Path, title: str, floor: Sequence[float]
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (label, seeds) in enumerate(curves.items()):
        colour = f"C{index}"
        for steps, values in seeds:
            axes.plot(steps, values, color=colour, alpha=0.35, linewidth=0.9)
        axes.plot(
            *mean_curve(seeds), color=colour, linewidth=2.2, label=f"{label} (n={len(seeds)})"
        )
    for level in floor:
        axes.axhline(level, color="0.4", linestyle="--", linewidth=1)
    axes.set_xlabel("agent steps")
    axes.set_ylabel(tag)
    axes.set_title(title)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(out, dpi=120)
