"""Grids for tests: cells that count, drivers that may be killed, an executor without processes.

As a script it is both the command of a cell (`bench cell ...`) and a driver (`drive GRID SLOTS`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from children import environment

from reverie.agents.runs.files import write_atomic
from reverie.agents.runs.runlock import RunLock
from reverie.agents.runs.status import read_status
from reverie.agents.stop_signals import StopRequest
from reverie.benchmarks import cli, train
from reverie.benchmarks.grid.cells import Cell, Grid, extend_grid, open_grid
from reverie.benchmarks.grid.driver import Driver, Executor, Handle
from reverie.benchmarks.grid.local import LocalExecutor
from reverie.benchmarks.grid.table import GridTable

COMMAND = (sys.executable, str(Path(__file__).resolve()))
"""Stands for `reverie` where cells shall only count."""

EVERY = 5
"""Steps between two checkpoints of a counting cell."""


def counting(seed: int, *words: str, arm: str = "count", prepare: tuple[str, ...] = ()) -> Cell:
    """A cell whose words are read by `count`."""
    run = f"runs/toy/count/{arm}/{seed}"
    return Cell(f"{arm}--toy-count--{seed}", arm, "toy/count", seed, words, run, prepare)


def make_grid(path: Path, cells: Sequence[Cell]) -> Grid:
    return extend_grid(path, "counting", cells)


def result(seed: int, steps: int) -> dict[str, Any]:
    """What a counting cell scores, however often it was interrupted."""
    return {"step": steps, "mean": (seed * 7919 + steps) % 101 / 10}


def results(grid: Grid) -> dict[str, Any]:
    """Final evaluation of every cell, as reports read it."""
    return {cell.id: read_status(grid.run(cell)).get("evaluation") for cell in grid.cells}


def count(args: Sequence[str]) -> int:
    """`reverie train` for tests: [steps=N] [pause=S] [kill=N] [fail=N] [exit=N], --run DIR.

    `kill` and `fail` strike at that step, once per checkpoint it had started from: with `always`
    at every attempt.
    """
    run = Path(args[args.index("--run") + 1])
    flags = dict(word.split("=") for word in args if "=" in word)
    if "exit" in flags:
        sys.stderr.write("reverie: 1 problem in the configuration:\n  - size: expected S\n")
        return int(flags["exit"])
    steps, pause = int(flags.get("steps", 20)), float(flags.get("pause", 0.01))
    run.mkdir(parents=True, exist_ok=True)
    lock = RunLock(run)
    saved = sorted(int(path.name) for path in (run / "checkpoints").glob("*"))
    start = saved[-1] if saved else 0
    with StopRequest() as stop:
        for step in range(start, steps):
            status(run, "running", step, steps)
            if stop:
                save(run, step)
                status(run, "preempted", step, steps)
                return stop.code or 1
            time.sleep(pause)
            struck = run / f"struck-{step}"
            if flags.get("kill") == str(step) and not struck.exists():
                struck.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if flags.get("fail") == str(step) and ("always" in args or not struck.exists()):
                struck.touch()
                sys.stderr.write(f"reverie: the world broke at step {step}\n")
                return 1
            if (step + 1) % EVERY == 0:
                save(run, step + 1)
    seed = int(run.name)
    status(run, "done", steps, steps, evaluation=result(seed, steps))
    with open(run / "finishes", "a") as file:
        file.write(f"{os.getpid()}\n")
    lock.release()
    return 0


def save(run: Path, step: int) -> None:
    (run / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)


def status(run: Path, state: str, step: int, steps: int, **values: Any) -> None:
    record = {"state": state, "step": step, "steps": steps, **values}
    write_atomic(run / "status.json", json.dumps(record).encode())


def prepare(args: Sequence[str]) -> int:
    """`reverie demos make FILE` for tests: leaves a line; fails while FILE.fail exists."""
    file = Path(args[-1])
    if file.with_suffix(".fail").exists():
        sys.stderr.write("reverie: no expert\n")
        return 1
    time.sleep(0.2)
    with open(file, "a") as lines:
        lines.write("made\n")
    return 0


class Scripted:
    """An executor without processes: `play` says how each attempt of a cell ends."""

    def __init__(self, play: Callable[[Cell, int], int | str], *, slots: int = 2) -> None:
        self.slots, self.play = slots, play
        self.order: list[str] = []
        self.most = 0
        self.stopped = self.closed = False

    def submit(self, cell: Cell) -> Handle:
        self.order.append(cell.id)
        return Handle(cell)

    def wait(self, handles: Sequence[Handle], seconds: float) -> list[Handle]:
        self.most = max(self.most, len(handles))
        first = handles[0]
        answer = self.play(first.cell, self.order.count(first.cell.id))
        if isinstance(answer, str):
            first.lost = answer
        else:
            first.code = answer
        return [first]

    def stop(self, handles: Sequence[Handle]) -> None:
        self.stopped = True

    def close(self) -> None:
        self.closed = True


def drive(grid: Path, where: str) -> int:
    """Drive all cells of a grid as `bench run` does, in so many slots or on the Ray cluster."""
    opened = open_grid(grid)
    lock = RunLock(grid)
    executor: Executor
    if where.isdecimal():
        executor = LocalExecutor(opened, jobs=int(where), command=COMMAND)
    else:
        from reverie.benchmarks.grid.ray_cluster import RayExecutor

        executor = RayExecutor(opened, address=where, gpus_per_run=0.5, command=COMMAND)
    try:
        return Driver(opened, executor, retries=1, table=GridTable(opened)).run(opened.cells)
    finally:
        lock.release()


def start_driver(grid: Grid, where: str = "2") -> subprocess.Popen[str]:
    """A driver in a process of its own."""
    return start(*COMMAND, "drive", str(grid.path), where)


def start(*words: str) -> subprocess.Popen[str]:
    """A process with a group of its own, whose output `ends` returns."""
    return subprocess.Popen(
        words,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ends(process: subprocess.Popen[str], seconds: float = 200) -> tuple[int, str]:
    """Exit status and output of a process, which must end in time."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return process.returncode, output


def running(grid: Grid) -> dict[str, int]:
    """Process of every cell that has begun and whose run moves."""
    records = {cell: grid.state(cell) for cell in grid.cells}
    return {
        cell.id: record["pid"]
        for cell, record in records.items()
        if record.get("state") == "running"
        and alive(record["pid"])
        and read_status(grid.run(cell)).get("step", 0) > 0
    }


def finishes(grid: Grid, cell: Cell) -> int:
    """How often a counting cell came to its end."""
    return len((grid.run(cell) / "finishes").read_text().splitlines())


def expected(grid: Grid, steps: int) -> dict[str, Any]:
    """The table of a grid of counting cells that nothing interrupts."""
    return {cell.id: result(cell.seed, steps) for cell in grid.cells}


def until(happens: Callable[[], Any], seconds: float = 60) -> Any:
    """What `happens` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := happens():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def alive(pid: int) -> bool:
    """Whether a process runs (one that nobody has waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main() -> int:
    if sys.argv[1] == "drive":
        return drive(Path(sys.argv[2]), sys.argv[3])
    train.main = count
    demos = ModuleType("demos")
    demos.main = prepare  # type: ignore[attr-defined]
    sys.modules["reverie.benchmarks.demos"] = demos
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
