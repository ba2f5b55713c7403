"""The files of a LeRobotDataset v3.0: tables of columns, pictures as PNG, tasks, statistics."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from reverie.agents.demos.format import Array
from reverie.agents.demos.store import DemoError

VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
CHUNK_FILES = 1000
"""Files of a folder, after which the next folder begins."""

STATISTICS = ("min", "max", "mean", "std", "count")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Channels of a picture -> what Pillow calls it."""


# columns


def to_column(values: Array) -> Any:
    """Arrow column of an episode: pictures [T, H, W, C], rows [T, size], or numbers [T].

    LeRobot keeps a feature of size one as plain numbers.
    """
    import pyarrow

    if values.ndim == 4:
        names = [f"frame-{number:06d}.png" for number in range(len(values))]
        parts = [pyarrow.array(list(map(_png, values)), pyarrow.binary()), pyarrow.array(names)]
        return pyarrow.StructArray.from_arrays(parts, names=["bytes", "path"])
    flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
    size = int(np.prod(values.shape[1:]))
    return flat if size == 1 else pyarrow.FixedSizeListArray.from_arrays(flat, size)


def to_rows(column: Any, where: str) -> Array:
    """Numbers [T] or [T, size] of an Arrow column; `where` names it in errors."""
    import pyarrow

    column = column.combine_chunks()
    count, size = len(column), 0
    while hasattr(column.type, "value_type"):
        if column.null_count:
            raise DemoError(f"{where}: expected a value in every frame, found an empty one")
        column, size = column.flatten(), -1
    if column.null_count:
        raise DemoError(f"{where}: expected a value in every frame, found an empty one")
    if not (pyarrow.types.is_floating(column.type) or _is_whole(column.type)):
        raise DemoError(f"{where}: expected numbers or truth values, found {column.type}")
    flat: Array = column.to_numpy(zero_copy_only=False)
    if not size:
        return flat
    if count == 0 or len(flat) % count:
        raise DemoError(
            f"{where}: expected rows of one length, found {len(flat)} values in {count}"
        )
    return flat.reshape(count, -1)


def _is_whole(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind))


def _png(image: Array) -> bytes:
    file = io.BytesIO()
    plain = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(plain).save(file, format="PNG")
    return file.getvalue()


def to_pictures(column: Any, shape: tuple[int, int, int], where: str) -> Array:
    """Pictures [T, H, W, C] of an Arrow column of PNG or JPEG bytes."""
    result = np.empty((len(column), *shape), np.uint8)
    for number, cell in enumerate(column.to_pylist()):
        content = cell.get("bytes") if isinstance(cell, dict) else None
        if content is None:
            raise DemoError(
                f"{where}: expected the bytes of a picture in frame {number}, found none"
            )
        try:
            with Image.open(io.BytesIO(content)) as file:
                image = np.asarray(file if file.mode in MODES.values() else file.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise DemoError(
                f"{where}: the picture of frame {number} is damaged ({error})"
            ) from None
        image = image if image.ndim == 3 else image[..., None]
        if image.shape != shape:
            raise DemoError(
                f"{where}: expected pictures {shape}, found {image.shape} in frame {number}"
            )
        result[number] = image
    return result


def require_channels(shape: tuple[int, ...] | None) -> None:
    """Refuse pictures that PNG cannot hold."""
    if shape is not None and shape[-1] not in MODES:
        raise DemoError(
            f"expected pictures of {list(MODES)} channels, which PNG can hold, found {shape[-1]}; "
            "record without stacked frames"
        )


# tables


def read_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    """Parquet file as an Arrow table; only the named columns, if there are any."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            missing = set(columns or ()) - set(file.schema_arrow.names)
            if missing:
                raise DemoError(f"{path}: expected the columns {sorted(missing)}, found none")
            return file.read(columns=None if columns is None else list(columns))
    except (OSError, pyarrow.ArrowException) as error:
        raise DemoError(f"{path}: not a complete Parquet file ({error})") from None


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one Parquet file whose rows have the same keys."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(map(dict, rows))), path)


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """Write the table of tasks, which LeRobot reads with pandas: the text is the row's name."""
    import pyarrow
    from pyarrow import parquet

    def about(name: str, kind: str, numpy_kind: str) -> dict[str, Any]:
        return {
            "name": name,
            "field_name": name,
            "pandas_type": kind,
            "numpy_type": numpy_kind,
            "metadata": None,
        }

    index = about("task", "unicode", "object")
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [about("task_index", "int64", "int64"), index],
        "creator": {"library": "pyarrow", "version": pyarrow.__version__},
        "pandas_version": "2.0.0",
    }
    numbers = pyarrow.array(range(len(tasks)), pyarrow.int64())
    table = pyarrow.table({"task_index": numbers, "task": pyarrow.array(list(tasks))})
    parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def read_tasks(path: Path) -> dict[int, str]:
    """Number of a task -> its text; the column of texts has had several names."""
    import pyarrow

    table = read_table(path)
    texts = [
        field.name
        for field in table.schema
        if pyarrow.types.is_string(field.type) or pyarrow.types.is_large_string(field.type)
    ]
    if "task_index" not in table.column_names or len(texts) != 1:
        raise DemoError(
            f"{path}: expected the column task_index and one of texts, found {table.column_names}"
        )
    numbers = table.column("task_index").to_pylist()
    return dict(zip(numbers, table.column(texts[0]).to_pylist(), strict=True))


# statistics


def statistics(columns: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """Statistics of every column of an episode; pictures by channel, [C, 1, 1] in 0..1."""
    result = {}
    for name, values in columns.items():
        drawn = values.ndim == 4
        rows = values if drawn else values.astype(np.float64).reshape(len(values), -1)
        axes = (0, 1, 2) if drawn else (0,)
        found = {key: getattr(rows, key)(axis=axes) for key in STATISTICS[:-1]}
        if drawn:
            found = {key: value[:, None, None] / 255 for key, value in found.items()}
        result[name] = {**found, "count": np.array([len(values)])}
    return result


def combined(parts: Sequence[Mapping[str, Mapping[str, Array]]]) -> dict[str, dict[str, Array]]:
    """Statistics of all episodes, of those of each one."""
    result = {}
    for name in parts[0]:
        each = {key: np.stack([part[name][key] for part in parts]) for key in STATISTICS}
        counts = each["count"].reshape(-1, *[1] * (each["mean"].ndim - 1))
        share = counts / counts.sum()
        mean = (share * each["mean"]).sum(0)
        variance = (share * (each["std"] ** 2 + (each["mean"] - mean) ** 2)).sum(0)
        result[name] = {
            "min": each["min"].min(0),
            "max": each["max"].max(0),
            "mean": mean,
            "std": np.sqrt(variance),
            "count": each["count"].sum(0),
        }
    return result
