"""The index of a LeRobotDataset v3.0: where the rows of every episode lie, checked by the data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reverie.agents.demos.format import Array
from reverie.agents.demos.lerobot_files import DATA_PATH, read_table, read_tasks, to_rows
from reverie.agents.demos.store import DemoError

COUNTERS = ("episode_index", "frame_index", "index", "task_index")
EPISODE_KEYS = (
    "episode_index",
    "length",
    "dataset_from_index",
    "dataset_to_index",
    "data/chunk_index",
    "data/file_index",
)


@dataclass(frozen=True)
class Span:
    """Where the rows of an episode are."""

    path: Path
    start: int
    length: int
    task: str
    """Its text."""


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file that holds an object."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise DemoError(f"{path}: not found; expected the folder of a LeRobotDataset") from None
    except (OSError, ValueError) as error:
        raise DemoError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(found, dict):
        raise DemoError(f"{path}: expected an object, found {type(found).__name__}")
    return found


def read_info(folder: Path) -> dict[str, Any]:
    """Content of meta/info.json, whose shape is the one of version 3."""
    path = folder / "meta" / "info.json"
    info = read_json(path)
    version = info.get("codebase_version")
    if not str(version).startswith("v3."):
        raise DemoError(
            f"{path}: expected a LeRobotDataset v3, found {version}; convert it with LeRobot's own "
            "convert_dataset_v21_to_v30"
        )
    kinds: dict[str, Any] = {
        "features": dict,
        "fps": int | float,
        "total_episodes": int,
        "total_frames": int,
        "data_path": str,
    }
    for name, kind in kinds.items():
        if not isinstance(info.get(name), kind):
            raise DemoError(f"{path}: expected {name}, found {info.get(name)!r}")
    for name, feature in info["features"].items():
        if not {"dtype", "shape"} <= set(feature):
            raise DemoError(f"{path}: expected dtype and shape of {name}, found {feature}")
    return info


def find_spans(folder: Path, info: Mapping[str, Any]) -> list[Span]:
    """Places of all episodes, in order, after the tables of episodes and of data are compared."""
    tasks = read_tasks(folder / "meta" / "tasks.parquet")
    counters: dict[Path, dict[str, Array]] = {}
    covered: dict[Path, int] = {}
    spans: list[Span] = []
    first = 0
    for number, (source, row) in enumerate(_episode_rows(folder)):
        length = row["length"]
        wanted = (number, first, first + length)
        found = (row["episode_index"], row["dataset_from_index"], row["dataset_to_index"])
        if found != wanted or length < 1:
            raise DemoError(
                f"{source}: expected episode {number} at frames {first} to {first + length}, found "
                f"episode {found[0]} at {found[1]} to {found[2]}"
            )
        path = _data_path(folder, info, row)
        if path not in counters:
            counters[path] = _counters(path)
        start, task = _locate(counters[path], number, first, length, f"{path}: episode {number}")
        if task not in tasks:
            raise DemoError(f"{path}: episode {number}: task {task} is not in meta/tasks.parquet")
        spans.append(Span(path, start, length, tasks[task]))
        covered[path] = covered.get(path, 0) + length
        first += length
    for path, rows in covered.items():
        held = len(counters[path]["index"])
        if held != rows:
            raise DemoError(f"{path}: expected {rows} frames of its episodes, found {held}")
    promised = info["total_episodes"], info["total_frames"]
    if promised != (len(spans), first):
        raise DemoError(
            f"{folder / 'meta' / 'info.json'}: expected {len(spans)} episodes and {first} frames, "
            f"found {promised[0]} and {promised[1]}"
        )
    return spans


def _episode_rows(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    paths = sorted((folder / "meta" / "episodes").glob("*/*.parquet"))
    rows = [(path, row) for path in paths for row in read_table(path, EPISODE_KEYS).to_pylist()]
    if not rows:
        raise DemoError(
            f"{folder / 'meta' / 'episodes'}: expected at least one episode, found none"
        )
    for path, row in rows:
        if not all(isinstance(row[key], int) for key in EPISODE_KEYS):
            raise DemoError(
                f"{path}: episode {row['episode_index']}: expected numbers, found {row}"
            )
    yield from sorted(rows, key=lambda item: item[1]["episode_index"])


def _data_path(folder: Path, info: Mapping[str, Any], row: Mapping[str, Any]) -> Path:
    place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
    try:
        return folder / str(info["data_path"]).format(**place)
    except (KeyError, ValueError, IndexError):
        raise DemoError(
            f"{folder / 'meta' / 'info.json'}: expected a data_path like {DATA_PATH}, found "
            f"{info['data_path']}"
        ) from None


def _locate(
    counters: Mapping[str, Array], number: int, first: int, length: int, where: str
) -> tuple[int, int]:
    """First row of an episode in its file, and its task; all of its counters must agree."""
    start, stop = np.searchsorted(counters["episode_index"], [number, number + 1]).tolist()
    if stop - start != length:
        raise DemoError(f"{where}: expected {length} frames, found {stop - start}")
    rows = slice(start, stop)
    for name, begin in (("frame_index", 0), ("index", first)):
        wrong = np.flatnonzero(counters[name][rows] != begin + np.arange(length))
        if len(wrong):
            frame = wrong[0]
            raise DemoError(
                f"{where}: frame {frame}: expected {name} {begin + frame}, found "
                f"{counters[name][rows][frame]}"
            )
    tasks = counters["task_index"][rows]
    if (tasks != tasks[0]).any():
        raise DemoError(f"{where}: expected one task, found {sorted(set(tasks.tolist()))}")
    return start, int(tasks[0])


def _counters(path: Path) -> dict[str, Array]:
    table = read_table(path, COUNTERS)
    counters = {name: to_rows(table[name], f"{path}: {name}") for name in COUNTERS}
    backwards = np.flatnonzero(np.diff(counters["episode_index"]) < 0)
    if len(backwards):
        before, after = counters["episode_index"][backwards[0] : backwards[0] + 2]
        raise DemoError(f"{path}: episode {after}: expected it before episode {before}")
    return counters
