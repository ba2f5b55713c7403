"""What a shard of demonstrations holds: sizes, columns under LeRobot's names, and their rules."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverie.agents.replay.storage import Schema
from reverie.envs.specs import EnvSpec

Array = NDArray[Any]

FORMAT = 1
"""Version of the shards that this code writes and reads."""

HEADER = "header.json"
OFFSET = "ep_offset"
STATE = "observation.state"
ENVIRONMENT = "observation.environment_state"
IMAGE = "observation.image"
ACTION, REWARD, DONE, SUCCESS = "action", "next.reward", "next.done", "next.success"

_PLAIN = {"image": IMAGE, "reward": REWARD, "done": DONE, "success": SUCCESS}


class DemoError(RuntimeError):
    """Demonstrations are missing, damaged or contradict each other; names file and episode."""


@dataclass(frozen=True)
class DemoSpec:
    """Sizes of demonstrations, the same for all their tasks."""

    action_size: int
    """Number of discrete actions, or of continuous dimensions in [-1, 1]."""
    discrete: bool
    """True: actions are one-hot rows."""
    vector_size: int
    """Length of the observed vector; 0: none."""
    proprio_size: int
    """Leading entries of the vector that belong to the robot itself; 0: no such split."""
    image_shape: tuple[int, int, int] | None
    """(height, width, channels) of the uint8 images; None: none."""
    fps: float
    """Frames per second of the task's own time."""

    def __post_init__(self) -> None:
        """Refuse sizes that nothing can have."""
        image = self.image_shape is None or min(self.image_shape) > 0
        sizes = self.action_size > 0 and 0 <= self.proprio_size <= self.vector_size and image
        seen = self.vector_size > 0 or self.image_shape is not None
        if not (sizes and seen and math.isfinite(self.fps) and self.fps > 0):
            raise DemoError(
                "expected positive sizes and fps, and a vector (no shorter than its proprioceptive "
                f"part) or images, found {self}"
            )

    def env_spec(self, task: str) -> EnvSpec:
        """What an agent needs to know of `task`."""
        return EnvSpec(
            task,
            self.action_size,
            self.discrete,
            image_shape=self.image_shape,
            vector_size=self.vector_size,
            proprio_size=self.proprio_size,
        )


def layout(spec: DemoSpec) -> Schema:
    """Columns of a shard: name -> (shape of one frame, NumPy dtype name)."""
    columns: Schema = {}
    if spec.vector_size:
        columns[STATE] = ((spec.proprio_size or spec.vector_size,), "float32")
    if spec.proprio_size:
        columns[ENVIRONMENT] = ((spec.vector_size,), "float32")
    if spec.image_shape is not None:
        columns[IMAGE] = (spec.image_shape, "uint8")
    columns[ACTION] = ((spec.action_size,), "float32")
    columns[REWARD] = ((), "float32")
    return {**columns, DONE: ((), "bool"), SUCCESS: ((), "bool")}


def whole_vector(columns: Mapping[str, Array], spec: DemoSpec) -> Array:
    """Column of the observed vector, proprioception first."""
    return columns[ENVIRONMENT if spec.proprio_size else STATE]


def stored_columns(columns: Mapping[str, Any], spec: DemoSpec) -> dict[str, Array]:
    """Columns under the names of a shard; those an environment uses ("vector") are renamed."""
    found = {_PLAIN.get(name, name): np.asarray(values) for name, values in columns.items()}
    if "vector" in found:
        vector = found.pop("vector")
        found[STATE] = vector[:, : spec.proprio_size] if spec.proprio_size else vector
        if spec.proprio_size:
            found[ENVIRONMENT] = vector
    return found


# rules


@dataclass(frozen=True)
class Place:
    """Where in a shard something is found, for messages."""

    folder: Path
    offset: Array
    """First frame of every episode, and the number of frames."""
    first: int = 0
    """Number of the first episode."""

    def file(self, name: str) -> str:
        """Name of a column's file, and the episodes in it."""
        last = self.first + len(self.offset) - 2
        return f"{self.folder / name}.npy, {span(self.first, last)}"

    def frame(self, name: str, frame: int) -> str:
        """The same for a single frame."""
        episode = int(np.searchsorted(self.offset, frame, side="right")) - 1
        within = frame - int(self.offset[episode])
        return f"{self.folder / name}.npy, episode {self.first + episode}, frame {within}"


def span(first: int, last: int) -> str:
    """Episodes in words."""
    return f"episode {first}" if first == last else f"episodes {first} to {last}"


def check_offset(offset: Array, frames: int, episodes: int, folder: Path) -> None:
    """Refuse anything but rising starts of `episodes` episodes that cover all frames."""
    file = f"{folder / OFFSET}.npy"
    if offset.dtype != np.int64 or offset.shape != (episodes + 1,):
        raise DemoError(
            f"{file}, {span(0, episodes - 1)}: expected int64 [{episodes + 1}], found "
            f"{offset.dtype} {list(offset.shape)}"
        )
    if offset[0] != 0:
        raise DemoError(f"{file}, episode 0: expected its start at frame 0, found {offset[0]}")
    falling = np.flatnonzero(offset[1:] <= offset[:-1])
    if len(falling):
        episode = int(falling[0])
        raise DemoError(
            f"{file}, episode {episode}: expected its end behind its start at frame "
            f"{offset[episode]}, found {offset[episode + 1]}"
        )
    if offset[-1] != frames:
        raise DemoError(
            f"{file}, episode {episode_of(offset, frames)}: expected the last episode to end at "
            f"frame {frames}, found {offset[-1]}"
        )


def episode_of(offset: Array, frame: int) -> int:
    """Number of the episode that holds a frame, the last one for frames behind all."""
    inside = int(np.searchsorted(offset, frame, side="right")) - 1
    return min(inside, len(offset) - 2)


def check_shapes(columns: Mapping[str, Array], spec: DemoSpec, place: Place) -> None:
    """Refuse a missing or additional column, and any dtype or shape but that of the sizes."""
    expected = layout(spec)
    frames = int(place.offset[-1])
    for name in sorted(expected.keys() ^ columns.keys()):
        kind = "missing" if name in expected else "additional"
        raise DemoError(
            f"{place.file(name)}: {kind} column; expected exactly {', '.join(sorted(expected))}"
        )
    for name, (shape, dtype) in expected.items():
        column = columns[name]
        if column.dtype != np.dtype(dtype) or column.shape != (frames, *shape):
            raise DemoError(
                f"{place.file(name)}: expected {dtype} {[frames, *shape]}, found {column.dtype} "
                f"{list(column.shape)}"
            )


def check_content(columns: Mapping[str, Array], spec: DemoSpec, place: Place) -> None:
    """Refuse values that would poison learning; images are not looked at."""
    for name, (_, dtype) in layout(spec).items():
        if dtype == "float32":
            column = columns[name]
            finite = np.isfinite(column)
            _require(finite, name, place, functools.partial(_not_finite, column))
    action = columns[ACTION]
    if spec.discrete:
        hot = ((action == 0) | (action == 1)).all(1) & (action.sum(1) == 1)
        _require(hot, ACTION, place, lambda frame: f"a one-hot action, found {action[frame]}")
    else:
        inside = np.abs(action) <= 1
        _require(inside, ACTION, place, lambda frame: f"actions in [-1, 1], found {action[frame]}")
    if spec.proprio_size:
        begins = columns[ENVIRONMENT][:, : spec.proprio_size] == columns[STATE]
        _require(begins, STATE, place, lambda _: f"the beginning of {ENVIRONMENT}, found another")
    ends = np.isin(np.arange(len(action)), place.offset[1:] - 1)
    _require(~columns[DONE] | ends, DONE, place, lambda _: "no end within an episode, found one")


def _not_finite(column: Array, frame: int) -> str:
    return f"finite values, found {column[frame]}"


def _require(good: Array, name: str, place: Place, expected: Callable[[int], str]) -> None:
    """Raise for the first frame that is not good in all its entries."""
    if not good.all():
        frame = int(np.argmin(good.reshape(len(good), -1).all(1)))
        raise DemoError(f"{place.frame(name, frame)}: expected {expected(frame)}")
