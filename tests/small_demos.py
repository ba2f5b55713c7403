"""Demonstrations of a point that moves to a goal: small, quick to make, and possible to learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reverie.agents.demos.store import DemoSpec, ShardWriter
from reverie.envs.specs import Array

TASKS = ("toy/a", "toy/b")
SPEED = 0.1
"""Way of a full action."""


def point_spec(*, image_size: int | None = None, discrete: bool = False) -> DemoSpec:
    """Sizes: vector [position, goal], of which the position is the point's own."""
    shape = None if image_size is None else (image_size, image_size, 3)
    return DemoSpec(4 if discrete else 2, discrete, 4, 2, shape, fps=10.0)


def write_demos(
    folder: Path,
    *,
    tasks: Sequence[str] = TASKS,
    episodes: int = 3,
    length: int = 12,
    shard_episodes: int | None = None,
    images: bool = False,
    image_size: int = 16,
    discrete: bool = False,
    constant: bool = False,
    seed: int = 0,
) -> Path:
    """Write shards <folder>/<name of the task>-<number> and return `folder`.

    The point goes to its goal, in every second task to the opposite of it. Episode e has
    `length + e % 3` frames; `images` show position and goal. `constant` hides both.
    """
    spec = point_spec(image_size=image_size if images else None, discrete=discrete)
    size = shard_episodes or episodes
    for place, task in enumerate(tasks):
        for shard, first in enumerate(range(0, episodes, size)):
            path = folder / f"{task.partition('/')[2]}-{shard:03d}"
            with shard_writer(path, task=task, spec=spec, seed=seed) as writer:
                for number in range(first, min(first + size, episodes)):
                    own = 1000 * seed + 100 * place + number
                    columns = walk(spec, length + number % 3, away=place % 2 == 1, seed=own)
                    columns["vector"] *= not constant
                    writer.add(columns, success=bool(columns["success"][-1]), seed=own)
    return folder


def shard_writer(path: Path, *, task: str, spec: DemoSpec, **facts: Any) -> ShardWriter:
    """Writer with the usual facts."""
    usual: dict[str, Any] = {"generator": "straight walk 1", "seed": 0, "protocol": "flat"}
    return ShardWriter(path, task=task, spec=spec, **{**usual, **facts})


def walk(spec: DemoSpec, length: int, *, away: bool = False, seed: int = 0) -> dict[str, Array]:
    """Columns of one episode."""
    rng = np.random.default_rng(seed)
    position, goal = rng.uniform(-1, 1, (2, 2)).astype(np.float32)
    rows = list(_steps(position, goal, -goal if away else goal, length, discrete=spec.discrete))
    vector, action, reward, success = (np.stack(column) for column in zip(*rows, strict=True))
    columns = {
        "vector": vector,
        "action": action,
        "reward": reward,
        "done": np.arange(length) == length - 1,
        "success": success,
    }
    if spec.image_shape is not None:
        columns["image"] = np.stack([_picture(row, spec.image_shape) for row in vector])
    return columns


def _steps(
    position: Array, goal: Array, target: Array, length: int, *, discrete: bool
) -> Iterator[tuple[Array, Array, Any, Any]]:
    for _ in range(length):
        vector = np.concatenate([position, goal])
        action = np.clip((target - position) / SPEED, -1, 1).astype(np.float32)
        moved = action
        if discrete:  # one axis at a time, in full steps
            axis = int(np.abs(target - position).argmax())
            sign = 1.0 if target[axis] > position[axis] else -1.0
            moved = np.float32(sign) * np.eye(2, dtype=np.float32)[axis]
            action = np.eye(4, dtype=np.float32)[2 * axis + int(sign > 0)]
        position = (position + np.float32(SPEED) * moved).astype(np.float32)
        distance = np.float32(np.linalg.norm(position - target))
        yield vector, action, -distance, np.bool_(distance < 0.5 * SPEED)


def _picture(vector: Array, shape: tuple[int, int, int]) -> Array:
    """Black, with the position in red and the goal in green."""
    image = np.zeros(shape, np.uint8)
    for channel, place in enumerate(vector.reshape(2, 2)):
        x, y = np.clip((place + 1.5) / 3 * shape[0], 0, shape[0] - 1).astype(int)
        image[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2, channel] = 255
    return image
