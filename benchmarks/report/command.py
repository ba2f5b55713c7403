"""`reverie bench report`: what finished runs say, with the statistics of the field."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from reverie.agents.configs import ConfigError
from reverie.agents.runs.files import write_atomic
from reverie.benchmarks.report.aggregate import UNITS, Summary, normaliser, suite_of, summarise
from reverie.benchmarks.report.card import write_card
from reverie.benchmarks.report.collect import Study, collect
from reverie.benchmarks.report.document import Document
from reverie.benchmarks.report.markdown import as_markdown, show
from reverie.benchmarks.report.page import as_page
from reverie.benchmarks.report.published import published, recompute
from reverie.benchmarks.report.sections import document
from reverie.benchmarks.stats import LEVEL, RESAMPLES

COLUMNS = (
    *("group", "task", "label", "seed", "view", "metric", "score", "normalised"),
    *("episodes", "budget", "protocol", "run"),
)
"""Of scores.csv; nothing in it depends on the machine or the time."""


def main(args: Sequence[str]) -> int:
    """Report on what `args` name; returns the exit status."""
    return tyro.cli(report, args=list(args), prog="reverie bench report")


def report(
    dirs: tyro.conf.Positional[tuple[Path, ...]],
    out: Path | None = None,
    html: Path | None = None,
    common_seeds: bool = False,
    without: tuple[Path, ...] = (),
) -> int:
    """Tables, statistics and pictures of finished runs, and published scores beside them.

    Writes report.md, report.html (one file, no requests), scores.csv (a line per run), report.json
    (every number) and the pictures into one folder, and card.md into every finished run. What the
    numbers mean: docs/reports.md.

    Refused, with the runs at fault: mixed protocols, budgets or episode numbers on one task; a
    seed that comes twice; seeds that some task lacks; damaged runs. Unfinished runs are listed and
    left out.

    Args:
        dirs: grids of `reverie bench run`, run directories, or folders of runs.
        out: folder to write; none: report in the first DIR.
        html: where else the page goes.
        common_seeds: cut every label to the seeds that it has of all tasks, instead of an error.
        without: runs, or folders of runs, to leave out.
    """
    study = collect(dirs, without=without, common_seeds=common_seeds)
    folder = dirs[0] / "report" if out is None else out
    summaries = [summarise(study, group) for group in study.groups()]
    found = document(study, summaries)
    console = Console()
    show(found, console)
    written = write(folder, study, summaries, found, html)
    cards = [write_card(result.run) for result in study.results]
    told = f"\nwrote {', '.join(map(str, written))}\nwrote card.md into {len(cards)} runs"
    console.print(told, soft_wrap=True, markup=False, highlight=False)
    return 0


def write(
    folder: Path,
    study: Study,
    summaries: Sequence[Summary],
    found: Document,
    html: Path | None = None,
) -> list[Path]:
    """Every file of a report.

    Raises:
        ConfigError: the folder cannot be written.
    """
    content = {
        folder / "report.md": as_markdown(found).encode(),
        folder / "report.html": as_page(found).encode(),
        folder / "scores.csv": scores_csv(study).encode(),
        folder / "report.json": (json.dumps(numbers(study, summaries), indent=1) + "\n").encode(),
        **{folder / f"{figure.name}.png": figure.png for figure in found.figures()},
    }
    if html is not None:
        content[html] = content[folder / "report.html"]
    try:
        for path, data in content.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
    except OSError as error:
        raise ConfigError([f"cannot write {path}: {error}; choose another --out"]) from error
    return list(content)


def scores_csv(study: Study) -> str:
    """One line for every run, and for every further evaluation of it."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(COLUMNS)
    for r in sorted(study.results, key=lambda r: (r.group, r.task, r.label, r.seed)):
        scale = normaliser(r.group, [r.task])
        for view, score in {"": r.score, **r.views}.items():
            scaled = float(scale(np.array([score]))[0]) if suite_of(r.group) in UNITS else ""
            words = (r.group, r.task, r.label, r.seed, view, r.metric, score, scaled)
            lines.writerow([*words, r.terms["episodes"], r.terms["budget"], r.protocol, r.name])
    return file.getvalue()


def numbers(study: Study, summaries: Sequence[Summary]) -> dict[str, Any]:
    """Everything that the report shows, as JSON values."""
    runs = [
        {
            **{k: getattr(r, k) for k in ("name", "group", "label", "task", "seed", "metric")},
            **{k: getattr(r, k) for k in ("score", "views", "terms", "protocol", "seconds")},
            "curve": {"step": r.curve[0].tolist(), "value": r.curve[1].tolist()},
            "made": r.made,
        }
        for r in study.results
    ]
    return {
        "schema": 1,
        "interval": {"level": LEVEL, "resamples": RESAMPLES, "method": "percentile bootstrap"},
        "notes": study.notes,
        "runs": runs,
        "unfinished": [dataclasses.asdict(one) for one in study.unfinished],
        "groups": {summary.group: _group(summary) for summary in summaries},
        "recomputed": [check._asdict() for check in recompute()],
    }


def _group(summary: Summary) -> dict[str, Any]:
    beside = published(summary)
    return {
        **_plain(summary),
        "published": None if beside is None else _plain(beside),
    }


def _plain(value: Any) -> Any:
    """JSON values of nested records and arrays."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value
