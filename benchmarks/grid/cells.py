"""The cells of a grid: which runs there are, and how each of them stands; all of it on disk."""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.flags import config_from_args
from reverie.agents.registry import AGENTS, family
from reverie.agents.runs.files import write_atomic
from reverie.agents.runs.status import read_status
from reverie.benchmarks.grid.suites import Suite, is_task, lay_flags, unknown, unknown_task

SCHEMA = 1
GRID, CELLS, STATE, LOG = "grid.json", "cells", "state.json", "log.txt"

CellState = Literal["waiting", "running", "done", "failed", "interrupted"]


@dataclass(frozen=True)
class Cell:
    """One run of a grid; the same words always continue the same run."""

    id: str
    """<arm>--<task, with - for />--<seed>."""
    arm: str
    task: str
    seed: int
    words: tuple[str, ...]
    """Arguments of `reverie train`, without --run."""
    run: str
    """Run directory, below the grid's folder."""
    prepare: tuple[str, ...] = ()
    """Arguments of a `reverie` command that has to succeed before; equal ones run once."""


@dataclass(frozen=True)
class Grid:
    """A folder of cells; cells are added, never removed, so that their numbers stay."""

    path: Path
    suite: str
    cells: tuple[Cell, ...]

    def folder(self, cell: Cell) -> Path:
        """Where the cell's state and log are."""
        return self.path / CELLS / cell.id

    def run(self, cell: Cell) -> Path:
        """The cell's run directory."""
        return self.path / cell.run

    def log(self, cell: Cell) -> Path:
        """What the cell's processes said, attempt after attempt."""
        return self.folder(cell) / LOG

    def finished(self, cell: Cell) -> bool:
        """Whether the budget of the cell's run is spent."""
        return read_status(self.run(cell)).get("state") == "done"

    def reached(self, cell: Cell) -> int:
        """Step of the newest checkpoint; -1 before the first."""
        folders = (self.run(cell) / "checkpoints").glob("*")
        steps = [path.name.partition("-")[0] for path in folders]
        return max((int(step) for step in steps if step.isdecimal()), default=-1)

    def state(self, cell: Cell) -> dict[str, Any]:
        """Content of state.json; {} if the cell has not begun, or if it cannot be read."""
        try:
            found = json.loads((self.folder(cell) / STATE).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def note(self, cell: Cell, state: Mapping[str, Any]) -> None:
        """Replace state.json."""
        content = json.dumps(state, indent=1) + "\n"
        write_atomic(self.folder(cell) / STATE, content.encode())

    def standing(self, cell: Cell) -> CellState:
        """How the cell stands; one whose process is known to be dead was interrupted."""
        if self.finished(cell):
            return "done"
        record = self.state(cell)
        found: CellState = record.get("state", "waiting")
        if found == "done":  # its run is gone
            return "waiting"
        dead = record.get("host") == socket.gethostname() and not _running(record.get("pid"))
        return "interrupted" if found == "running" and dead else found

    def cell(self, name: str) -> Cell:
        """A cell by its id, or by its number from 0.

        Raises:
            ConfigError: the grid has no such cell.
        """
        named = {cell.id: cell for cell in self.cells}
        if name in named:
            return named[name]
        if name.isdecimal() and int(name) < len(self.cells):
            return self.cells[int(name)]
        numbers = f"or a number below {len(self.cells)}"
        raise ConfigError([unknown("cell", name, named, numbers)])


def _running(pid: object) -> bool:
    """Whether a process of this machine runs; one that has ended and is not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def plan(
    suite: Suite,
    *,
    agents: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: int | None = None,
    settings: Sequence[str] = (),
) -> list[Cell]:
    """Every cell that is asked for, seed by seed: a grid that is stopped has whole tables first.

    Args:
        suite: what runs where nothing else is asked for.
        agents: arms of the suite, or any agents.
        tasks: tasks, those of the suite also without what is before the slash.
        seeds: runs of each arm on each task.
        settings: further settings of every run, NAME=VALUE; they win over all others.

    Raises:
        ConfigError: lists every name and setting that cannot be.
    """
    problems = [f"settings: expected NAME=VALUE, found {s!r}" for s in settings if "=" not in s]
    arms = {label: _arm(suite, label, problems) for label in agents or suite.default}
    chosen = list(dict.fromkeys(_task(suite, task, problems) for task in tasks or suite.tasks))
    count = suite.seeds if seeds is None else seeds
    if count < 1:
        problems.append(f"seeds: expected a number of runs, 1 or more, found {count}")
    if problems:
        raise ConfigError(problems)
    further = [f"--{setting}" for setting in settings]
    return [
        _cell(label, task, seed, lay_flags(suite.settings, words[1:], further), words[0])
        for seed in range(count)
        for task in chosen
        for label, words in arms.items()
    ]


def _arm(suite: Suite, label: str, problems: list[str]) -> tuple[str, ...]:
    if label in suite.arms:
        return suite.arms[label]
    if label not in AGENTS:
        problems.append(unknown("agents", label, dict.fromkeys([*suite.arms, *AGENTS])))
    return (label,)


def _task(suite: Suite, name: str, problems: list[str]) -> str:
    short = {task.partition("/")[2]: task for task in suite.tasks}
    task = short.get(name, name)
    if task not in suite.tasks and not is_task(task):
        expected = f"tasks of the suite {suite.name}, or others that `reverie tasks` lists"
        problems.append(unknown_task(name, expected, [*suite.tasks, *short]))
    return task


def _cell(label: str, task: str, seed: int, flags: tuple[str, ...], agent: str) -> Cell:
    words = (agent, "--task", task, "--seed", str(seed), *flags)
    cfg = config_from_args(words)
    return Cell(
        id=f"{label}--{task.replace('/', '-')}--{seed}",
        arm=label,
        task=task,
        seed=seed,
        words=words,
        run=str(Path("runs", *task.split("/"), label, str(seed))),
        prepare=_prepare(cfg),
    )


def _prepare(cfg: RunConfig) -> tuple[str, ...]:
    if family(cfg.agent) != "act_jepa":
        return ()
    from reverie.agents.demos.demonstrations import make_command  # brings torch

    return tuple(shlex.split(make_command(cfg))[1:])


def open_grid(path: Path) -> Grid:
    """Read a grid from its folder.

    Raises:
        ConfigError: there is none, or it was damaged or made by another version.
    """
    file = path / GRID
    try:
        tree = json.loads(file.read_bytes())
        schema, suite, cells = tree["schema"], str(tree["suite"]), tree["cells"]
        found = tuple(_from_json(cell) for cell in cells) if schema == SCHEMA else None
    except FileNotFoundError as error:
        raise ConfigError(
            [f"{path}: expected the folder of a grid, with {GRID}, found none; see `bench run`"]
        ) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            [
                f"{file} cannot be read ({error!r}): delete it, and the command that made the "
                "grid writes it again; runs are kept"
            ]
        ) from error
    if found is None:
        raise ConfigError([f"{file}: expected schema {SCHEMA}, found {schema!r}; update reverie"])
    return Grid(path, suite, found)


def _from_json(tree: Mapping[str, Any]) -> Cell:
    pieces = {key: tuple(tree[key]) for key in ("words", "prepare")}
    return Cell(**{**tree, **pieces})


def extend_grid(path: Path, suite: str, cells: Iterable[Cell]) -> Grid:
    """Add the cells that the grid lacks, and make it where there is none.

    Raises:
        ConfigError: the grid is another suite's, or has a cell of the same id with other words.
    """
    old = open_grid(path) if (path / GRID).exists() else Grid(path, suite, ())
    if old.suite != suite:
        raise ConfigError(
            [f"{path}: expected a grid of {suite}, found one of {old.suite}; choose another --out"]
        )
    known = {cell.id: cell for cell in old.cells}
    problems, fresh = [], []
    for cell in cells:
        found = known.setdefault(cell.id, cell)
        if found is cell:
            fresh.append(cell)
        elif found != cell:
            problems.append(
                f"{cell.id}: the grid {path} has `{shlex.join(found.words)}`, asked for "
                f"`{shlex.join(cell.words)}`; use the grid's settings, or choose another --out"
            )
    if problems:
        raise ConfigError(problems)
    grid = Grid(path, suite, (*old.cells, *fresh))
    if fresh:
        tree = {"schema": SCHEMA, "suite": suite, "cells": [asdict(cell) for cell in grid.cells]}
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / GRID, (json.dumps(tree, indent=1) + "\n").encode())
    return grid
