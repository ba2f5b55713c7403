"""Demonstrations in our format, and data of LeRobot and of Minari that our writers never touched.

An off-by-one in both directions would cancel in a round trip; here every number is written down.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pyarrow
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from PIL import Image
from pyarrow import parquet

from reverie.agents.demos.format import ENVIRONMENT as WHOLE
from reverie.agents.demos.format import STATE
from reverie.agents.demos.store import DemoDataset, DemoSpec, ShardWriter, open_dataset

# Minari takes pictures from 32 pixels on for such as may lose something in JPEG
BOTH = DemoSpec(3, False, vector_size=4, proprio_size=2, image_shape=(32, 33, 3), fps=12.5)


def small_demos(folder: Path, spec: DemoSpec = BOTH) -> DemoDataset:
    """Three shards of two tasks, with episodes that end well, badly, at a limit and in a cut."""
    rng = np.random.default_rng(3)
    for name, task, seed in (("a", "walk/far", 0), ("b", "walk/far", 7), ("c", "walk/home", 7)):
        about: dict[str, Any] = {"generator": f"walker {task}", "protocol": "flat", "seed": seed}
        with ShardWriter(
            folder / name, task=task, spec=spec, settings={"limit": 3}, **about
        ) as writer:
            for length, success in ((1, None), (3, True), (2, False)):
                columns = small_episode(rng, length, spec, solved=bool(success))
                columns["done"][-1] = success is not None
                writer.add(columns, success=success, seed=int(rng.integers(2**62)))
    return open_dataset(folder)


def small_episode(
    rng: np.random.Generator, length: int, spec: DemoSpec, *, solved: bool
) -> dict[str, Any]:
    action = rng.uniform(-1, 1, (length, spec.action_size))
    if spec.discrete:
        action = np.eye(spec.action_size)[rng.integers(spec.action_size, size=length)]
    columns = {
        "action": action.astype(np.float32),
        "reward": rng.normal(size=length).astype(np.float32),
        "done": np.zeros(length, bool),
        "success": np.zeros(length, bool),
    }
    columns["success"][-1] = solved
    if spec.vector_size:
        columns["vector"] = rng.normal(size=(length, spec.vector_size)).astype(np.float32)
    if spec.image_shape is not None:
        columns["image"] = rng.integers(256, size=(length, *spec.image_shape), dtype=np.uint8)
    return columns


FRAMES = {
    STATE: [[0, 1], [2, 3], [10, 11], [12, 13], [14, 15], [20, 21]],
    WHOLE: [-1, -2, -3, -4, -5, -6],  # LeRobot keeps rows of one number as numbers
    "action": [0.0, 0.25, -0.5, 0.75, 1.0, -1.0],
    "next.reward": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5],
    "next.done": [False, True, False, False, True, True],
    "next.success": [False, False, False, True, True, False],
    "frame_index": [0, 1, 0, 1, 2, 0],
    "episode_index": [0, 0, 1, 1, 1, 2],
    "index": [0, 1, 2, 3, 4, 5],
    "task_index": [1, 1, 0, 0, 0, 1],
}
EPISODES = [
    {"episode_index": 0, "length": 2, "dataset_from_index": 0, "dataset_to_index": 2, "file": 0},
    {"episode_index": 1, "length": 3, "dataset_from_index": 2, "dataset_to_index": 5, "file": 0},
    {"episode_index": 2, "length": 1, "dataset_from_index": 5, "dataset_to_index": 6, "file": 1},
]
TASKS = ["Push it.", "Pull it!"]


def picture(frame: int) -> np.ndarray:
    """Two rows of three pixels, no two alike."""
    return np.arange(18, dtype=np.uint8).reshape(2, 3, 3) + np.uint8(20 * frame)


def encoded(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def handmade_lerobot(
    folder: Path,
    *,
    frames: dict[str, Any] | None = None,
    episodes: list[dict[str, int]] | None = None,
    info: dict[str, Any] | None = None,
    whole: int = 1,
    broken: int | None = None,
) -> Path:
    """Three episodes in two data files, with nothing but pyarrow."""
    wide = {STATE: 2} | ({WHOLE: whole} if whole > 1 else {})
    frames = {**FRAMES, **(frames or {})}
    for name in ("meta/episodes/chunk-000", "data/chunk-000"):
        (folder / name).mkdir(parents=True)
    columns = {}
    for name, values in frames.items():
        numeric = name.startswith(("observation", "action", "next.reward"))
        kind = pyarrow.float32() if numeric else None
        columns[name] = pyarrow.array(
            values, pyarrow.list_(kind, wide[name]) if name in wide else kind
        )
    cells = [{"bytes": encoded(picture(frame)), "path": None} for frame in range(6)]
    if broken is not None:
        cells[broken]["bytes"] = b"no picture"
    columns["observation.images.top"] = pyarrow.array(
        cells, pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    )
    table = pyarrow.table(columns)
    parquet.write_table(table.slice(0, 5), folder / "data/chunk-000/file-000.parquet")
    parquet.write_table(table.slice(5), folder / "data/chunk-000/file-001.parquet")
    rows = [dict(row) for row in episodes or EPISODES]
    for row in rows:
        row |= {"data/chunk_index": 0, "data/file_index": row.pop("file")}
    parquet.write_table(
        pyarrow.Table.from_pylist(rows), folder / "meta/episodes/chunk-000/file-000.parquet"
    )
    tasks = pyarrow.table({"task_index": [0, 1], "__index_level_0__": TASKS})
    parquet.write_table(tasks, folder / "meta/tasks.parquet")
    features = {name: {"dtype": "float32", "shape": [1]} for name in FRAMES}
    features |= {name: {"dtype": "float32", "shape": [size]} for name, size in wide.items()}
    features["observation.images.top"] = {"dtype": "image", "shape": [2, 3, 3]}
    usual = {
        "codebase_version": "v3.0",
        "fps": 20,
        "total_episodes": 3,
        "total_frames": 6,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "features": features,
    }
    (folder / "meta/info.json").write_text(json.dumps({**usual, **(info or {})}))
    return folder


def handmade_minari(**changes: Any) -> Path:
    """Two episodes of three and of one action, as Minari's own functions write them."""
    space = spaces.Dict(
        {
            "pose": spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "view": spaces.Box(0, 255, (2, 3, 3), np.uint8),
            "goal": spaces.Box(-9, 9, (1,), np.float32),
        }
    )

    def observations(frames: list[int]) -> dict[str, Any]:
        return {
            "pose": np.array([[frame, frame + 0.5] for frame in frames], np.float64),
            "view": np.stack([picture(frame) for frame in frames]),
            "goal": np.array([[-frame] for frame in frames], np.float32),
        }

    long: dict[str, Any] = {
        "observations": observations([1, 2, 3, 4]),
        "actions": np.array([[-2.0, 1.0], [0.0, 2.0], [2.0, 3.0]]),
        "rewards": [0.5, 1.5, 2.5],
        "terminations": [False, False, True],
        "truncations": [False, False, False],
        "infos": {"success": np.array([False, False, True, True])},
    }
    short: dict[str, Any] = {
        "observations": observations([7, 8]),
        "actions": np.array([[1.0, 3.0]]),
        "rewards": [9.0],
        "terminations": [False],
        "truncations": [True],
        "infos": {"success": np.array([True, False])},
    }
    buffers = [EpisodeBuffer(seed=11, **(long | changes)), EpisodeBuffer(**short)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # advice on what to tell about a dataset
        minari.create_dataset_from_buffers(
            "hand-v0",
            buffers,
            observation_space=space,
            action_space=spaces.Box(np.array([-2.0, 1.0]), np.array([2.0, 3.0]), dtype=np.float64),
        )
    return Path(os.environ["MINARI_DATASETS_PATH"]) / "hand-v0"
