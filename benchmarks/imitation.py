"""`reverie bench imitation`: ACT-JEPA beside its baselines, from demonstrations to one table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.demos.demonstrations import demo_folder, make_command
from reverie.agents.flags import config_from_args
from reverie.agents.intervals import wilson_interval
from reverie.agents.resolve import run_directory
from reverie.agents.runs.files import write_atomic
from reverie.agents.runs.fingerprint import fingerprint
from reverie.agents.runs.jsonl import read_jsonl
from reverie.agents.runs.rundir import read_status
from reverie.benchmarks.demos import main as demos
from reverie.benchmarks.grid import cells as grid_cells
from reverie.benchmarks.grid.command import lock_grid
from reverie.benchmarks.grid.driver import Driver
from reverie.benchmarks.grid.local import LocalExecutor
from reverie.benchmarks.grid.table import GridTable

ARMS: dict[str, tuple[str, ...]] = {
    "act-jepa": ("act-jepa",),
    "w0.3": ("act-jepa", "--act-jepa.model.w-jepa", "0.3"),
    "w3": ("act-jepa", "--act-jepa.model.w-jepa", "3"),
    "act": ("act",),
    "bc": ("bc",),
    "no-stop-gradient": ("act-jepa", "--act-jepa.model.guard", "none"),
}
"""What can be compared: words of the command line. The last one is the negative control."""

GRID = Path("grids", "imitation")
"""States and logs of the runs; the runs themselves are where `reverie train` has them."""

KEPT = ("probe/", "health/", "held_out/", "eval/", "eval_success/", "speed/")
"""First parts of the metrics that the summary holds, each with its last value."""


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    arm: str
    seed: int
    words: tuple[str, ...]
    """Arguments of `reverie train`."""
    cfg: RunConfig
    run: Path

    @property
    def done(self) -> bool:
        """Whether the run is finished."""
        return read_status(self.run).get("state") == "done"


def main(args: Sequence[str]) -> int:
    """Compare from command-line flags; returns the exit status."""
    return tyro.cli(study, args=list(args), prog="reverie bench imitation")


def study(
    settings: tyro.conf.Positional[tuple[str, ...]] = (),
    config: str = "six",
    arms: tuple[str, ...] = ("act-jepa", "act", "bc", "no-stop-gradient"),
    seeds: tuple[int, ...] = (0, 1, 2),
    jobs: int = 1,
    out: Path = Path("imitation.json"),
) -> int:
    """Make demonstrations, train every arm with every seed, and compare: one command that resumes.

    Runs that are finished are not trained again. All arms learn from the same demonstrations for
    the same number of updates, and are scored at the last one, on the same start states.

    Args:
        settings: further settings of every run, NAME=VALUE, such as train.steps=300.
        config: preset that all runs share: `six` (states, minutes on a CPU), `three` (images,
            hours on a CPU) or `fifteen` (images, the paper's tasks, for a GPU).
        arms: of act-jepa, act, bc and no-stop-gradient, which lets the gradient into the targets:
            the control in which the latents must collapse while success does not tell.
        seeds: one run each.
        jobs: runs at once, a process each.
        out: JSON to write; the table is printed.
    """
    console = Console()
    cells = plan(config, arms, seeds, settings)
    folder = demo_folder(cells[0].cfg)
    if not folder.exists() or not all(cell.done for cell in cells):
        console.print(f"demonstrations in {folder}")
        status = demos(["make", *shlex.split(make_command(cells[0].cfg))[3:]])
        if status:
            return status
    status = train(cells, jobs=jobs)
    if status:
        missing = [f"{cell.arm} seed {cell.seed}" for cell in cells if not cell.done]
        console.print(f"not finished: {', '.join(missing)}; the same command continues")
        return status
    record = summary(cells)
    write_atomic(out, (json.dumps(record, indent=1) + "\n").encode())
    console.print(as_table(record))
    for line in record["verdicts"]:
        console.print(line)
    console.print(f"written to {out}")
    return 0


def plan(
    config: str, arms: Sequence[str], seeds: Sequence[int], settings: Sequence[str] = ()
) -> list[Cell]:
    """Every run of the comparison, arm by arm.

    Raises:
        ConfigError: an arm or a setting is wrong, or the preset is of another family.
    """
    problems = [
        f"arms: expected some of {', '.join(ARMS)}, found {a!r}" for a in arms if a not in ARMS
    ]
    problems += [f"settings: expected NAME=VALUE, found {s!r}" for s in settings if "=" not in s]
    if not arms or not seeds:
        problems.append("arms and seeds: expected one or more of each")
    if problems:
        raise ConfigError(problems)
    further = [f"--{setting}" for setting in settings]
    cells = []
    for arm in arms:
        for seed in seeds:
            agent, *own = ARMS[arm]
            words = (agent, "--config", config, "--seed", str(seed), *own, *further)
            cfg = config_from_args(words)
            cells.append(Cell(arm, seed, words, cfg, run_directory(cfg)))
    return cells


def train(cells: Sequence[Cell], *, jobs: int) -> int:
    """Train what is not finished, `jobs` runs at once; returns the exit status of `bench run`."""
    due = [
        grid_cells.Cell(
            id="-".join(cell.run.parts[1:]),  # names the settings: others may come later
            arm=cell.arm,
            task=cell.cfg.task,
            seed=cell.seed,
            words=cell.words,
            run=str(cell.run.absolute()),
        )
        for cell in cells
        if not cell.done
    ]
    lock = lock_grid(GRID)
    try:
        grid = grid_cells.extend_grid(GRID, "imitation", due)
        executor = LocalExecutor(grid, jobs=jobs)
        return Driver(grid, executor, retries=0, table=GridTable(grid)).run(due)
    finally:
        lock.release()


def summary(cells: Sequence[Cell]) -> dict[str, Any]:
    """Numbers of every run and arm, what they say, and on which machine they were made."""
    runs = [_numbers(cell) for cell in cells]
    arms = {
        arm: _arm([run for run in runs if run["arm"] == arm])
        for arm in dict.fromkeys(cell.arm for cell in cells)
    }
    first = cells[0].cfg
    return {
        "task": first.task,
        "settings": {
            "updates": first.train.steps,
            "batch": first.train.batch_size,
            "chunk": first.act_jepa.model.chunk,
            "inputs": list(first.act_jepa.model.inputs),
            "train_episodes": first.demos.train_episodes,
            "held_out_episodes": first.demos.held_out_episodes,
        },
        "commands": [" ".join(("reverie train", *cell.words)) for cell in cells],
        "runs": runs,
        "arms": arms,
        "verdicts": verdicts(arms),
        "machine": fingerprint(),
    }


def _numbers(cell: Cell) -> dict[str, Any]:
    status = read_status(cell.run)
    last: dict[str, float] = {}
    for row in read_jsonl(cell.run / "metrics.jsonl"):
        last |= {k: v for k, v in row.items() if k.startswith(KEPT) and isinstance(v, int | float)}
    played = status["evaluation"]
    trials = int(played.get("episodes", 0))
    return {
        "arm": cell.arm,
        "seed": cell.seed,
        "episodes": trials,
        "solved": round(played["success"] * trials) if "success" in played else None,
        "failed_gates": status.get("health", {}).get("alarms"),
        "metrics": last,
    }


def _arm(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pooled success, and means of the metrics over seeds."""
    found: dict[str, Any] = {"seeds": [run["seed"] for run in runs]}
    if all(run["solved"] is not None for run in runs):
        trials, solved = (sum(run[key] for run in runs) for key in ("episodes", "solved"))
        found |= {"episodes": trials, "success": solved / trials}
        found["interval"] = list(wilson_interval(solved, trials))
        found["success_of_seeds"] = [run["solved"] / run["episodes"] for run in runs]
    shared = set.intersection(*(set(run["metrics"]) for run in runs))
    found["metrics"] = {
        key: float(np.mean([run["metrics"][key] for run in runs])) for key in sorted(shared)
    }
    found["of_seeds"] = {
        key: [run["metrics"][key] for run in runs] for key in sorted(shared) if "probe/" in key
    }
    found["failed_gates"] = [len(run["failed_gates"] or ()) for run in runs]
    return found


def verdicts(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the numbers say about ACT-JEPA, in sentences."""
    found = []
    for arm, own in arms.items():
        if "success" in own:
            low, high = own["interval"]
            n = own["episodes"]
            found.append(f"{arm}: success {own['success']:.1%} [{low:.1%}, {high:.1%}] of {n}")
        seeds = own["failed_gates"]
        if any(seeds):
            bad = sum(count > 0 for count in seeds)
            found.append(f"{arm}: collapse gates fail in {bad} of {len(seeds)} runs")
    if "act-jepa" in arms and "act" in arms:
        for key, values in arms["act-jepa"]["of_seeds"].items():
            base = arms["act"]["of_seeds"].get(key)
            if base is None:
                continue
            change = np.mean(values) / np.mean(base) - 1
            apart = "no overlap of seeds" if max(values) < min(base) else "seeds overlap"
            found.append(f"act-jepa against act: {key} {change:+.0%} ({apart})")
    return found


def as_table(record: Mapping[str, Any]) -> Table:
    """One row per arm."""
    probes = [k for k in _keys(record) if k.startswith("probe/rmse_")]
    title = f"{record['task']}, {record['settings']['updates']:,} updates"
    heads = [f"probe RMSE +{key.rpartition('_')[2]}" for key in probes]
    table = Table("arm", "success [95 %]", "seeds", *heads, "target std", "loss ratio", title=title)
    for arm, own in record["arms"].items():
        success = "-"
        if "success" in own:
            low, high = own["interval"]
            success = f"{own['success']:.0%} [{low:.0%}, {high:.0%}]"
        seeds = " ".join(f"{value:.0%}" for value in own.get("success_of_seeds", ()))
        names = (*probes, "health/target_std", "health/loss_ratio")
        values = (own["metrics"].get(name) for name in names)
        cells = ("-" if value is None else f"{value:.3f}" for value in values)
        table.add_row(arm, success, seeds, *cells)
    return table


def _keys(record: Mapping[str, Any]) -> list[str]:
    every = {key for own in record["arms"].values() for key in own["metrics"]}
    return sorted(every, key=lambda key: (len(key), key))
