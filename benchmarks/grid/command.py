"""`reverie bench run` and `reverie bench cell`: a grid of runs, on one machine or on many."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from reverie.agents.configs import ConfigError
from reverie.agents.runs.runlock import InUseError, RunDirError, RunLock
from reverie.benchmarks.grid.cells import GRID, Cell, Grid, extend_grid, open_grid, plan
from reverie.benchmarks.grid.driver import Driver, Executor
from reverie.benchmarks.grid.local import LocalExecutor
from reverie.benchmarks.grid.suites import load_suite, suite_names
from reverie.benchmarks.grid.table import GridTable
from reverie.benchmarks.grid.worker import work


@dataclass(frozen=True)
class Request:
    """Run a suite: agents x tasks x seeds, each a run that resumes.

    The same command continues a grid that was stopped or killed: what is finished stays, what was
    interrupted resumes, what failed is tried again. Other --agents, --tasks or --seeds add cells.
    """

    suite: tyro.conf.Positional[str] = ""
    """A suite that --list names, or the path of a TOML file like theirs."""
    agents: tuple[str, ...] = ()
    """Arms of the suite, or any agents; none: the suite's own choice."""
    tasks: tuple[str, ...] = ()
    """Tasks, those of the suite also by their short names; none: all of the suite."""
    seeds: int | None = None
    """Runs of each agent on each task, seeds 0 to N - 1; none: as the suite has it."""
    settings: tuple[str, ...] = ()
    """Further settings of every run, NAME=VALUE, such as train.device=cuda."""
    jobs: int | None = None
    """Runs at once; none: what the GPUs hold, or one per core. With --ray: no limit."""
    ray: str | None = None
    """Address of a Ray cluster: auto, HOST:PORT, or local to start one here."""
    gpus_per_run: float | None = None
    """Share of a GPU that a run gets, or a number of GPUs; none: 0.25 where there are any."""
    retries: int = 1
    """Further attempts of a cell that ends without a new checkpoint."""
    out: Path | None = None
    """Folder of the grid; none: grids/<suite>."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """List the cells and how they stand; write nothing."""
    plan: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write the cells and run none: `reverie bench cell` runs them, as in a SLURM array."""
    list: tyro.conf.FlagCreatePairsOff[bool] = False
    """List the suites."""


@dataclass(frozen=True)
class CellRequest:
    """Run one cell of a grid, here and now: the unit of a SLURM array."""

    grid: tyro.conf.Positional[Path]
    """Folder of the grid."""
    cell: tyro.conf.Positional[str]
    """Id of the cell, or its number from 0."""
    stop_at_eof: tyro.conf.FlagCreatePairsOff[bool] = False
    """Save and end when standard input closes."""


def main(args: Sequence[str]) -> int:
    """Run a grid or one cell: the first of `args` says which; returns the exit status."""
    verb, *rest = args
    if verb == "cell":
        wanted = tyro.cli(CellRequest, args=rest, prog="reverie bench cell")
        grid = open_grid(wanted.grid)
        return work(grid, grid.cell(wanted.cell), stop_at_eof=wanted.stop_at_eof)
    assert verb == "run", verb
    return run(tyro.cli(Request, args=rest, prog="reverie bench run"))


def run(request: Request) -> int:
    """Plan, lock, run, tell; returns 0 when every cell asked for is done."""
    console = Console(highlight=False)
    if request.list:
        return _list_suites(console)
    if not request.suite:
        raise ConfigError([f"expected a suite, one of {', '.join(suite_names())}; see --list"])
    suite = load_suite(request.suite)
    asked = {"agents": request.agents, "tasks": request.tasks, "settings": request.settings}
    cells = plan(suite, seeds=request.seeds, **asked)
    path = request.out or Path("grids", suite.name)
    if request.dry_run:
        grid = open_grid(path) if (path / GRID).exists() else Grid(path, suite.name, ())
        return _dry_run(console, grid, cells)
    lock = lock_grid(path)
    try:
        grid = extend_grid(path, suite.name, cells)
        if request.plan:
            return _planned(console, grid)
        return drive(console, grid, cells, request)
    finally:
        lock.release()


def drive(console: Console, grid: Grid, cells: Sequence[Cell], request: Request) -> int:
    """Run cells of a grid whose lock is held."""
    if request.retries < 0:
        raise ConfigError([f"--retries: expected 0 or more, found {request.retries}"])
    executor: Executor
    if request.ray is None:
        executor = LocalExecutor(grid, jobs=request.jobs, gpus_per_run=request.gpus_per_run)
    else:
        from reverie.benchmarks.grid.ray_cluster import RayExecutor

        executor = RayExecutor(
            grid, address=request.ray, jobs=request.jobs, gpus_per_run=request.gpus_per_run
        )
    driver = Driver(grid, executor, retries=request.retries, table=GridTable(grid))
    code = driver.run(cells)
    tell_end(console, grid, cells)
    return code


def tell_end(console: Console, grid: Grid, cells: Sequence[Cell]) -> None:
    """What is done, what is not and why, where it lies and what to do next."""
    standing = {cell: grid.standing(cell) for cell in cells}
    counts = Counter(standing.values())
    parts = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.print(f"{len(cells)} cells: {parts}", soft_wrap=True)
    for cell, state in standing.items():
        if state == "failed":
            reason = grid.state(cell).get("reason", "")
            line = f"failed: {cell.id}: {reason} (log: {grid.log(cell)})"
            console.print(line, soft_wrap=True, markup=False)
    if counts["done"] < len(cells):
        console.print("the same command continues, and tries again what failed")
    console.print(f"runs: {grid.path / 'runs'}", soft_wrap=True)
    console.print(f"report: reverie bench report {shlex.quote(str(grid.path))}", soft_wrap=True)


def lock_grid(path: Path) -> RunLock:
    """The lock of a grid's driver.

    Raises:
        RunDirError: another driver holds it, or nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        return RunLock(path)
    except InUseError as error:
        raise RunDirError(
            f"another driver works on the grid {path}: process {error.holder.get('pid', '?')} on "
            f"host {error.holder.get('host', '?')}; wait for it, stop it, or choose another --out"
        ) from error
    except OSError as error:
        raise RunDirError(f"cannot write in {path}: {error}; choose another --out") from error


def _list_suites(console: Console) -> int:
    table = Table("suite", "tasks", "agents", "seeds", "what it is")
    for name in suite_names():
        suite = load_suite(name)
        further = [label for label in suite.arms if label not in suite.default]
        arms = ", ".join(suite.default) + (f" ({', '.join(further)})" if further else "")
        table.add_row(name, str(len(suite.tasks)), arms, str(suite.seeds), suite.summary)
    console.print(table)
    return 0


def _dry_run(console: Console, grid: Grid, cells: Sequence[Cell]) -> int:
    for cell in cells:
        words = shlex.join(["reverie", "train", *cell.words])
        console.print(f"{grid.standing(cell)}  {cell.id}  {words}", soft_wrap=True, markup=False)
    for before in dict.fromkeys(cell.prepare for cell in cells if cell.prepare):
        line = f"before: {shlex.join(['reverie', *before])}"
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"{len(cells)} cells in {grid.path}", soft_wrap=True)
    return 0


def _planned(console: Console, grid: Grid) -> int:
    place = shlex.quote(str(grid.path))
    console.print(f"{len(grid.cells)} cells in {grid.path / GRID}", soft_wrap=True)
    console.print(
        f"each runs by: reverie bench cell {place} NUMBER, 0 to {len(grid.cells) - 1}",
        soft_wrap=True,
    )
    return 0
