"""The world of `small_demos` to play in: move a point to its goal."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from small_demos import SPEED, write_demos
from torch import Tensor

from reverie.agents.configs import RunConfig
from reverie.agents.resolve import resolve
from reverie.agents.runs.checkpoint import load_latest
from reverie.envs.registry import register
from reverie.envs.single import Arrival, Obs
from reverie.envs.specs import Array, EnvSpec

REACHED = 0.1
"""Distance to the target below which the task is solved."""

LIMIT = 24
"""Steps of an episode that is not solved; a straight walk takes at most ten."""

TASKS = ("point/a", "point/b")


class PointWorld:
    """Position and goal as the vector, the position being the robot's own.

    The target is the goal in the first task, and its opposite in the second.
    """

    def __init__(self, task: str) -> None:
        self.sign = 1.0 if task == TASKS[0] else -1.0
        self.spec = EnvSpec(task, 2, False, vector_size=4, proprio_size=2, has_success=True)
        self.vector: Array = np.zeros(4, np.float32)
        self.time = 0

    def reset(self, seed: int) -> Obs:
        self.vector = np.random.default_rng(seed).uniform(-1, 1, 4).astype(np.float32)
        self.time = 0
        return {"vector": self.vector.copy()}

    def step(self, action: Array) -> Arrival:
        self.time += 1
        self.vector[:2] += SPEED * action.clip(-1, 1)
        solved = bool(np.linalg.norm(self.vector[:2] - self.sign * self.vector[2:]) < REACHED)
        last = solved or self.time >= LIMIT
        obs = {"vector": self.vector.copy()}
        return Arrival(obs, float(solved), last, solved, success=solved)

    def close(self) -> None:
        pass


def expert_action(vector: Tensor) -> Tensor:
    """Actions [N, 2] that solve the first task."""
    return ((vector[:, 2:] - vector[:, :2]) / SPEED).clamp(-1, 1)


for _task in TASKS:
    register(_task, functools.partial(PointWorld, _task))


def write_points(folder: Path, **changes: Any) -> Path:
    """Demonstrations of both tasks."""
    settings: dict[str, Any] = {"tasks": TASKS, "episodes": 20, "length": 20}
    return write_demos(folder, **(settings | changes))


def point_tree(run: Path, data: Path, **changes: Any) -> dict[str, Any]:
    """Overrides of a run of 24 updates on one task, over the preset `debug`."""
    own: dict[str, Any] = {
        "agent": "act-jepa",
        "task": "point/a",
        "size": "nano",
        "run": str(run),
        "env": {"workers": "inline"},
        "demos": {"path": str(data), "train_episodes": 16, "held_out_episodes": 4},
    }
    for key, value in changes.items():
        own[key] = {**own.get(key, {}), **value} if isinstance(value, dict) else value
    return own


def point_config(run: Path, data: Path, **changes: Any) -> RunConfig:
    return resolve(point_tree(run, data, **changes), configs=["debug"])


def final_state(run: Path) -> dict[str, Any]:
    """What the last checkpoint holds."""
    found = load_latest(run)
    assert found is not None and found[2] == [], found
    return found[1]
