"""Where runs lie: in grids, in folders of runs, or alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reverie.agents.configs import ConfigError
from reverie.benchmarks.grid.cells import GRID, Cell, Grid, open_grid

CONFIG = "config.toml"


@dataclass(frozen=True)
class Place:
    """A run directory, and what a grid says of it; a run alone says everything itself."""

    run: Path
    name: str
    """Path below the folder that was named, equal on every machine."""
    cell: Cell | None = None
    state: str = ""
    """How the cell stands; empty outside of grids."""
    reason: str = ""
    seconds: float | None = None
    """What the cell took, over all attempts."""


def find(paths: Sequence[Path], problems: list[str]) -> list[Place]:
    """Every run at or below `paths`, each once, grid by grid and else by name."""
    found: dict[Path, Place] = {}
    for path in paths:
        faults: list[str] = []
        places = list(_below(path, faults))
        if not places and not faults:
            faults.append(
                f"{path}: expected a grid of `reverie bench run`, a run directory, or a folder of "
                f"such, found none; runs hold {CONFIG}, grids {GRID}"
            )
        problems += faults
        for place in places:
            found.setdefault(place.run.resolve(), place)
    return list(found.values())


def is_grid(path: Path) -> bool:
    """Whether `reverie bench run` keeps its cells there."""
    return (path / GRID).is_file()


def _below(top: Path, faults: list[str]) -> Iterator[Place]:
    if top.is_file():
        faults.append(
            f"{top}: expected a directory, found a file; episodes and metrics are read from the "
            "run that they belong to"
        )
    elif not top.is_dir():
        faults.append(f"{top}: expected a directory, found nothing")
    for folder, names, files in os.walk(top):
        names.sort()
        here = Path(folder)
        if GRID in files:
            names.clear()
            try:
                grid = open_grid(here)
            except ConfigError as error:
                faults += error.problems
                continue
            yield from (_place(grid, cell, top) for cell in grid.cells)
        elif CONFIG in files:
            names.clear()
            yield Place(here, _name(here, top))


def _place(grid: Grid, cell: Cell, top: Path) -> Place:
    state, run = grid.state(cell), grid.run(cell)
    seconds = state.get("seconds")
    return Place(
        run=run,
        name=_name(run, top),
        cell=cell,
        state=grid.standing(cell),
        reason=str(state.get("reason") or ""),
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
    )


def _name(run: Path, top: Path) -> str:
    name = run.relative_to(top).as_posix()
    return run.resolve().name if name == "." else name
