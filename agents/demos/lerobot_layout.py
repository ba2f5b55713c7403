"""Which features of a LeRobotDataset become which columns of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reverie.agents.demos.exchange import Notes, to_float32
from reverie.agents.demos.format import ENVIRONMENT, IMAGE, STATE, Array
from reverie.agents.demos.lerobot_files import read_table, require_channels, to_pictures, to_rows
from reverie.agents.demos.lerobot_index import Span
from reverie.agents.demos.store import DemoError, DemoSpec


@dataclass(frozen=True)
class Layout:
    """Which features become which columns."""

    spec: DemoSpec
    features: dict[str, Any]
    """All features, as info.json has them."""
    image: str | None
    """The feature of the pictures."""
    joined: bool
    """The vector is the state followed by that of the environment, as in LeRobot's own data;
    otherwise the latter, where there is one, begins with the state."""


def find_layout(
    folder: Path,
    info: Mapping[str, Any],
    spans: Sequence[Span],
    notes: Notes | None,
    camera: str | None,
) -> Layout:
    """Choose the columns; our own notes, where there are any, know the sizes."""
    where = folder / "meta" / "info.json"
    features = info["features"]
    image = _camera(features, camera, where)
    sizes = {name: _size(features, name, where) for name in (STATE, ENVIRONMENT, "action")}
    if not sizes["action"]:
        raise DemoError(f"{where}: expected the feature action, found {sorted(features)}")
    if notes is not None:
        return Layout(notes.spec, features, image, joined=False)
    state, environment = sizes[STATE], sizes[ENVIRONMENT]
    joined = bool(state and environment) and not _is_whole(spans)
    spec = DemoSpec(
        action_size=sizes["action"],
        discrete=False,
        vector_size=state + environment if joined else environment or state,
        proprio_size=state if environment else 0,
        image_shape=None if image is None else _shape(features[image], where),
        fps=float(info["fps"]),
    )
    return Layout(spec, features, image, joined)


def _size(features: Mapping[str, Any], name: str, where: Path) -> int:
    """Numbers of a feature; 0 if there is no such feature."""
    if name not in features:
        return 0
    shape, kind = features[name]["shape"], str(features[name]["dtype"])
    if len(shape) != 1 or not kind.startswith("float"):
        raise DemoError(f"{where}: expected {name} as a row of numbers, found {kind} {shape}")
    return int(shape[0])


def _camera(features: Mapping[str, Any], camera: str | None, where: Path) -> str | None:
    cameras = {k: v["dtype"] for k, v in features.items() if v["dtype"] in ("image", "video")}
    if camera is None and len(cameras) > 1:
        raise DemoError(
            f"{where}: expected one feature of pictures, found {sorted(cameras)}; name one with "
            "--camera"
        )
    if camera is not None and camera not in cameras:
        raise DemoError(f"{where}: expected --camera one of {sorted(cameras)}, found {camera}")
    chosen = camera or next(iter(cameras), None)
    if chosen is not None and cameras[chosen] == "video":
        raise DemoError(
            f"{where}: {chosen} is stored as video, which cannot be read here; convert the dataset "
            "to pictures with LeRobot's own tools (dtype image)"
        )
    return chosen


def _shape(feature: Mapping[str, Any], where: Path) -> tuple[int, int, int]:
    """[height, width, channels] of pictures, which some writers note with the channels first."""
    height, width, channels = feature["shape"]
    if str((feature.get("names") or ["height"])[0]).startswith("channel"):
        height, width, channels = width, channels, height
    require_channels((height, width, channels))
    return height, width, channels


def _is_whole(spans: Sequence[Span]) -> bool:
    """Whether the environment's state begins with the robot's own, in every frame."""
    for path in dict.fromkeys(span.path for span in spans):
        table = read_table(path, (STATE, ENVIRONMENT))
        state, whole = (_rows(table, name, str(path)) for name in (STATE, ENVIRONMENT))
        if not np.array_equal(whole[:, : state.shape[1]], state):
            return False
    return True


def _rows(table: Any, name: str, where: str) -> Array:
    values = to_rows(table[name], f"{where}: {name}")
    return to_float32(values).reshape(len(values), -1)


def to_columns(layout: Layout, table: Any, where: str) -> dict[str, Array]:
    """Columns of one episode, of its rows in a data file."""
    missing = set(layout.features) - set(table.column_names)
    if missing:
        raise DemoError(f"{where}: expected the columns {sorted(missing)}, found none")
    count = len(table)
    columns = {
        name: _rows(table, name, where)
        for name in (STATE, ENVIRONMENT, "action")
        if name in layout.features
    }
    if layout.joined:
        columns[ENVIRONMENT] = np.concatenate([columns[STATE], columns[ENVIRONMENT]], 1)
    if STATE not in columns and ENVIRONMENT in columns:
        columns[STATE] = columns.pop(ENVIRONMENT)
    if layout.image is not None:
        shape = layout.spec.image_shape
        assert shape is not None
        pictures = to_pictures(table[layout.image], shape, f"{where}: {layout.image}")
        columns[IMAGE] = pictures
    absent = {
        "next.reward": np.zeros(count, np.float32),
        "next.done": np.arange(count) == count - 1,
        "next.success": np.zeros(count, bool),
    }
    for name, default in absent.items():
        found = to_rows(table[name], f"{where}: {name}") if name in layout.features else default
        columns[name] = found.reshape(count).astype(default.dtype)
    return columns
