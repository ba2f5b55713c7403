"""Demonstrations as a LeRobotDataset v3.0 and back, without the package lerobot.

Both formats hold pairs: row t has what was seen and the action taken then. Pictures are PNG in the
Parquet files; video is neither written nor read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reverie.agents.demos.exchange import (
    Imported,
    Notes,
    Origin,
    describe,
    new_folder,
    read_notes,
    require_packages,
    require_task,
    write_shards,
)
from reverie.agents.demos.format import Array
from reverie.agents.demos.lerobot_files import (
    CHUNK_FILES,
    DATA_PATH,
    EPISODES_PATH,
    VERSION,
    combined,
    read_table,
    require_channels,
    statistics,
    to_column,
    write_rows,
    write_tasks,
)
from reverie.agents.demos.lerobot_index import (
    COUNTERS,
    Span,
    find_spans,
    read_info,
    read_json,
)
from reverie.agents.demos.lerobot_layout import Layout, find_layout, to_columns
from reverie.agents.demos.store import DemoDataset, DemoError

NOTES = "meta/reverie.json"


# to LeRobot


def to_lerobot(dataset: DemoDataset, folder: Path, *, file_megabytes: int = 100) -> Path:
    """Write all episodes as a LeRobotDataset into the new `folder`, which is returned.

    `observation.environment_state` is the whole vector, with `observation.state` as its beginning.
    What LeRobot has no place for goes to meta/reverie.json.
    """
    require_packages("lerobot-io", "pyarrow")
    require_channels(dataset.spec.image_shape)
    with new_folder(folder) as temporary:
        (temporary / "meta").mkdir()
        write_tasks(temporary / "meta" / "tasks.parquet", dataset.tasks)
        columns = dataset.episode(0)
        with _DataFiles(temporary, file_megabytes * 2**20) as files:
            rows, total = _write_episodes(dataset, files)
        write_rows(temporary / EPISODES_PATH.format(chunk_index=0, file_index=0), rows)
        info = _info(dataset, columns, file_megabytes)
        for name, content in (("info", info), ("stats", total), ("reverie", describe(dataset))):
            text = json.dumps(content, indent=4, default=_plain)
            (temporary / "meta" / f"{name}.json").write_text(text)
    return folder


class _DataFiles:
    """Data files of many episodes each, one row group per episode."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._number, self._bytes = 0, 0
        self._writer: Any = None

    def __enter__(self) -> _DataFiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, table: Any) -> dict[str, int]:
        """Append an episode and say where it is."""
        from pyarrow import parquet

        if self._writer is not None and self._bytes + table.nbytes > self._limit:
            self._writer.close()
            self._writer, self._bytes, self._number = None, 0, self._number + 1
        chunk, file = divmod(self._number, CHUNK_FILES)
        if self._writer is None:
            path = self._folder / DATA_PATH.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = parquet.ParquetWriter(path, table.schema)
        self._writer.write_table(table)
        self._bytes += table.nbytes
        return {"data/chunk_index": chunk, "data/file_index": file}


def _write_episodes(
    dataset: DemoDataset, files: _DataFiles
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Write the data; returns the rows of the table of episodes, and all statistics."""
    import pyarrow

    rows, parts, first = [], [], 0
    for number, episode in enumerate(dataset.episodes):
        count = np.arange(episode.length)
        columns = dataset.episode(number)
        columns["timestamp"] = (count / dataset.spec.fps).astype(np.float32)
        columns["frame_index"] = count
        columns["episode_index"] = np.full_like(count, number)
        columns["index"] = first + count
        columns["task_index"] = np.full_like(count, dataset.tasks.index(episode.task))
        found = statistics(columns)
        place = files.add(
            pyarrow.table({name: to_column(values) for name, values in columns.items()})
        )
        rows.append(
            {
                "episode_index": number,
                "tasks": [episode.task],
                "length": episode.length,
                **place,
                "dataset_from_index": first,
                "dataset_to_index": first + episode.length,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                **{
                    f"stats/{name}/{key}": value.tolist()
                    for name, group in found.items()
                    for key, value in group.items()
                },
            }
        )
        parts.append(found)
        first += episode.length
    return rows, combined(parts)


def _info(dataset: DemoDataset, columns: Mapping[str, Array], megabytes: int) -> dict[str, Any]:
    features: dict[str, dict[str, Any]] = {}
    for name, values in columns.items():
        drawn = values.ndim == 4
        features[name] = {
            "dtype": "image" if drawn else str(values.dtype),
            "shape": list(values.shape[1:]) or [1],
            "names": ["height", "width", "channels"] if drawn else None,
        }
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for name in COUNTERS:
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    fps = dataset.spec.fps
    return {
        "codebase_version": VERSION,
        "robot_type": None,
        "total_episodes": len(dataset.episodes),
        "total_frames": sum(episode.length for episode in dataset.episodes),
        "total_tasks": len(dataset.tasks),
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": megabytes,
        "video_files_size_in_mb": megabytes,
        "fps": int(fps) if float(fps).is_integer() else fps,
        "splits": {"train": f"0:{len(dataset.episodes)}"},
        "data_path": DATA_PATH,
        "video_path": None,
        "features": features,
    }


def _plain(value: Any) -> Any:
    return value.tolist()


# from LeRobot


def from_lerobot(
    folder: Path,
    out: Path,
    *,
    task_names: Mapping[str, str] | str | None = None,
    camera: str | None = None,
) -> list[Path]:
    """Write the episodes of a LeRobotDataset v3.0 as shards below `out`.

    Without a column next.reward rewards are 0; without next.success nobody knows what was solved.

    Args:
        folder: the dataset's folder, the one with meta/ and data/.
        out: folder of the shards, one for every task (of our own exports: those there were).
        task_names: text of a task -> its name here; or one name "suite/name" for all; or only
            the suite, where their names follow from the texts; none: the texts are names already.
        camera: feature of the pictures, where there are several.

    Raises:
        DemoError: the files are damaged or contradict each other, or hold what shards cannot.
    """
    require_packages("lerobot-io", "pyarrow")
    info = read_info(folder)
    spans = find_spans(folder, info)
    notes = None
    if (folder / NOTES).exists():
        notes = read_notes(read_json(folder / NOTES), len(spans), folder / NOTES)
    layout = find_layout(folder, info, spans, notes, camera)
    if notes is None:
        names = {span.task: "" for span in spans}
        names = {text: _task_name(text, task_names, folder) for text in names}
        tasks = list(dict.fromkeys(names.values()))
        generator = f"LeRobotDataset {folder.resolve().name}"
        origins = [Origin(task, generator, 0, "unknown", {}) for task in tasks]
        shards = [tasks.index(names[span.task]) for span in spans]
    else:
        origins, shards = notes.origins, [one["shard"] for one in notes.episodes]
        for number, (span, shard) in enumerate(zip(spans, shards, strict=True)):
            if span.task != origins[shard].task:
                raise DemoError(
                    f"{folder / NOTES}: episode {number}: expected the task {span.task}, found "
                    f"{origins[shard].task}; remove this file to read a dataset that was changed"
                )
    return write_shards(out, layout.spec, origins, _episodes(layout, spans, shards, notes))


def _task_name(text: str, names: Mapping[str, str] | str | None, folder: Path) -> str:
    where = f"{folder}: the task {text!r}"
    if isinstance(names, Mapping):
        if text not in names:
            raise DemoError(f"{where} has no name; expected one of {sorted(names)}")
        return require_task(names[text], where)
    if names and "/" in names:
        return require_task(names, where)
    if names:
        plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
        return require_task(f"{names}/{plain}", where)
    return require_task(text, where)


def _episodes(
    layout: Layout, spans: Sequence[Span], shards: Sequence[int], notes: Notes | None
) -> Iterator[Imported]:
    """Decode one episode after the other; every data file is read once."""
    held: tuple[Path, Any] | None = None
    for number, span in enumerate(spans):
        if held is None or held[0] != span.path:
            held = span.path, read_table(span.path)
        table = held[1].slice(span.start, span.length)
        where = f"{span.path}: episode {number}"
        columns = to_columns(layout, table, where)
        success, seed = None, number
        if notes is not None:
            success, seed = notes.episodes[number]["success"], notes.episodes[number]["seed"]
        elif "next.success" in layout.features:
            success = bool(columns["next.success"].any())
        yield Imported(columns, shards[number], success, seed, where)
