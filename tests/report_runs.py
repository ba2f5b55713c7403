"""Runs and grids as training leaves them behind, with scores of one's choice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reverie.agents.resolve import dump, resolve
from reverie.benchmarks.verify import PROTOCOL

Scores = Mapping[tuple[str, str], Sequence[float]]
"""(label, task) -> final score of seeds 0, 1, ..."""

MADE: dict[str, Any] = {
    "promise": "bitwise",
    "time": 1000.0,
    "argv": ["/bin/reverie", "train", "spr", "--task", "x", "--run", "/secret/place"],
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "versions": {"python": "3.11.7", "torch": "2.13.0", "mujoco": None},
    "cpu": "Some CPU",
    "gpu": None,
    "cores": 2,
    "earlier": [],
}


def make_run(
    folder: Path,
    score: float,
    *,
    task: str = "toy/catch",
    seed: int = 0,
    protocol: str | None = None,
    status: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """What a finished run leaves behind, as far as it is looked at."""
    folder.mkdir(parents=True)
    own = {"agent": "spr", "task": task, "seed": seed, "run": str(folder), **settings}
    cfg = resolve(own)
    (folder / "config.toml").write_text(dump(cfg))
    steps, episodes = cfg.train.steps, cfg.train.final_episodes or cfg.train.eval_episodes
    told = (PROTOCOL if task.startswith("atari/") else "") if protocol is None else protocol
    final = {"step": steps, "count": 2, "mean": score, "episodes": episodes, "protocol": told}
    final |= {"success": score} if task.startswith("metaworld/") else {}
    record = {"state": "done", "time": 1090.0, "evaluation": final | dict(evaluation or {})}
    (folder / "status.json").write_text(json.dumps(record | dict(status or {})))
    key = "success" if "success" in final else "mean"
    rows = [{"step": steps // 2, f"eval/{key}": score / 2, "loss/q": 1.0}]
    rows += [{"step": steps, f"eval/{key}": score, "eval/std": 0.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "fingerprint.json").write_text(json.dumps(MADE))
    return folder


def make_grid(path: Path, scores: Scores, **settings: Any) -> Path:
    """A grid all of whose cells are finished; labels that are no agents are spr."""
    cells = []
    for (label, task), values in scores.items():
        agent = label if label in ("rainbow", "dreamerv3", "mudreamer", "bbf") else "spr"
        for seed, score in enumerate(values):
            run = f"runs/{task}/{label}/{seed}"
            make_run(path / run, score, task=task, seed=seed, agent=agent, **settings)
            words = [agent, "--task", task, "--seed", str(seed)]
            name = f"{label}--{task.replace('/', '-')}--{seed}"
            cell = {"id": name, "arm": label, "task": task, "seed": seed, "words": words}
            cells.append({**cell, "run": run, "prepare": []})
            set_state(path, name, state="done", seconds=61.0)
    (path / "grid.json").write_text(json.dumps({"schema": 1, "suite": "own", "cells": cells}))
    return path


def set_state(grid: Path, cell: str, **values: Any) -> None:
    folder = grid / "cells" / cell
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(json.dumps(values))


def edit(path: Path, **values: Any) -> None:
    """Replace some values of a JSON object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
