"""Reading a shard of demonstrations: nothing of it is believed before it is checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from reverie.agents.demos.format import (
    FORMAT,
    HEADER,
    IMAGE,
    OFFSET,
    Array,
    DemoError,
    DemoSpec,
    Place,
    check_content,
    check_offset,
    check_shapes,
    episode_of,
    layout,
    span,
    whole_vector,
)
from reverie.agents.demos.writer import digest, header_digest

MAX_HEADER_BYTES = 64 * 2**20
"""A larger header is refused before it is read."""

_FACTS: dict[str, type | tuple[type, ...]] = {
    "task": str,
    "generator": str,
    "seed": int,
    "protocol": str,
    "settings": dict,
    "versions": dict,
    "episodes": list,
    "columns": dict,
    "statistics": dict,
    "action_size": int,
    "discrete": bool,
    "vector_size": int,
    "proprio_size": int,
    "image_shape": (list, type(None)),
    "fps": (int, float),
}
_REMEDY = "restore the folder from a copy, or delete it and make its episodes again"


@dataclass(frozen=True, eq=False)
class Shard:
    """One folder of episodes of a task, as read: it broke no rule."""

    path: Path
    """Its folder."""
    header: dict[str, Any]
    """What is known of it; image_shape is a tuple."""
    spec: DemoSpec
    """Sizes."""
    offset: Array
    """int64 [E + 1]: first frame of every episode, and the number of frames."""
    columns: dict[str, Array]
    """In memory; images are memory-mapped."""

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.offset) - 1

    @property
    def task(self) -> str:
        """Task of all its episodes."""
        return str(self.header["task"])

    @property
    def frames(self) -> int:
        """Frames of all episodes."""
        return int(self.offset[-1])

    @property
    def vector(self) -> Array:
        """float32 [frames, V]: the whole observed vector; V is 0 where there is none."""
        if not self.spec.vector_size:
            return np.zeros((self.frames, 0), np.float32)
        return whole_vector(self.columns, self.spec)

    def episode(self, index: int) -> dict[str, Array]:
        """Views of all columns of an episode."""
        start, stop = self.offset[index], self.offset[index + 1]
        return {name: column[start:stop] for name, column in self.columns.items()}


def read_shard(path: Path, *, verify: bool = True) -> Shard:
    """Read one shard, images memory-mapped; DemoError unless it keeps every rule.

    Without `verify` no checksum is computed, which saves reading images; all else is checked.
    """
    header = _read_header(path / HEADER)
    episodes = len(header["episodes"])
    if verify and header.get("sha256") != header_digest(header):
        raise DemoError(f"{path / HEADER}, {span(0, episodes - 1)}: checksum error; {_REMEDY}")
    spec = _sizes(path / HEADER, header)
    names = {OFFSET, *layout(spec)}
    _check_names(path, header, names)
    for name in sorted(names):
        _check_file(path, header, name, verify=verify)
    offset = np.array(_load(path, OFFSET, episodes))
    columns = {name: _load(path, name, episodes) for name in layout(spec)}
    check_offset(offset, len(next(iter(columns.values()))), episodes, path)
    place = Place(path, offset)
    check_shapes(columns, spec, place)
    columns = {name: c if name == IMAGE else np.array(c) for name, c in columns.items()}
    check_content(columns, spec, place)
    return Shard(path, header, spec, offset, columns)


def _read_header(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_HEADER_BYTES:
            raise DemoError(f"{file}: expected at most {MAX_HEADER_BYTES} bytes, found more")
        header: dict[str, Any] = json.loads(file.read_bytes())
        version = header["format"]
    except OSError as error:
        raise DemoError(f"{file}: cannot be read ({error.strerror}); {_REMEDY}") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DemoError(f"{file}: not the header of a shard ({error!r}); {_REMEDY}") from error
    if version != FORMAT:
        raise DemoError(
            f"{file}: expected format {FORMAT}, found {version!r}; read it with the version of "
            f"reverie that wrote it ({header.get('versions')})"
        )
    wrong = [name for name, kind in _FACTS.items() if not _is(header.get(name, ...), kind)]
    if wrong:
        raise DemoError(f"{file}: missing or malformed: {', '.join(wrong)}; {_REMEDY}")
    if not header["episodes"]:
        raise DemoError(f"{file}: expected episodes, found none; {_REMEDY}")
    for number, facts in enumerate(header["episodes"]):
        known = isinstance(facts, dict) and _is(facts.get("seed"), int)
        if not (known and _is(facts.get("success", ...), (bool, type(None)))):
            raise DemoError(f"{file}, episode {number}: expected seed and success, found {facts!r}")
    for name, record in header["columns"].items():
        if not (isinstance(record, dict) and _is(record.get("bytes"), int)):
            raise DemoError(f"{file}: malformed record of the column {name}; {_REMEDY}")
    return header


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    """`isinstance`, but a truth value is no number."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _sizes(file: Path, header: dict[str, Any]) -> DemoSpec:
    shape = header["image_shape"]
    if shape is not None:
        if len(shape) != 3 or not all(_is(size, int) for size in shape):
            raise DemoError(f"{file}: expected image_shape as three sizes, found {shape}")
        header["image_shape"] = tuple(shape)
    try:
        return DemoSpec(**{field.name: header[field.name] for field in fields(DemoSpec)})
    except DemoError as error:
        raise DemoError(f"{file}: {error}") from None


def _check_names(path: Path, header: Mapping[str, Any], names: set[str]) -> None:
    """The header and the folder have exactly these columns."""
    last = len(header["episodes"]) - 1
    files = {file.name.removesuffix(".npy") for file in path.glob("*.npy")}
    for found, where in ((files, ""), (set(header["columns"]), f" in {HEADER}")):
        for name in sorted(found ^ names):
            kind = "missing" if name in names else "additional"
            raise DemoError(
                f"{path / name}.npy, {span(0, last)}: {kind} column{where}; expected exactly "
                f"{', '.join(sorted(names))}"
            )


def _check_file(path: Path, header: Mapping[str, Any], name: str, *, verify: bool) -> None:
    """A file has as many bytes as were written, and the same ones."""
    file, record = path / f"{name}.npy", header["columns"][name]
    every = span(0, len(header["episodes"]) - 1)
    try:
        size = file.stat().st_size
        same = not verify or size != record["bytes"] or digest(file) == record.get("sha256")
    except OSError as error:
        raise DemoError(f"{file}, {every}: cannot be read ({error.strerror})") from error
    if size != record["bytes"]:
        where = _cut(path, record, name, size) or every
        raise DemoError(
            f"{file}, {where}: expected {record['bytes']} bytes, found {size}; {_REMEDY}"
        )
    if not same:
        raise DemoError(f"{file}, {every}: checksum error; {_REMEDY}")


def _cut(path: Path, record: Mapping[str, Any], name: str, size: int) -> str | None:
    """The first episode that a truncated file does not hold, in words; None: cannot be told."""
    if name == OFFSET or size > record["bytes"]:
        return None
    try:
        frames, *shape = record["shape"]
        offset = np.load(path / f"{OFFSET}.npy", allow_pickle=False)
        check_offset(offset, frames, len(offset) - 1, path)
        row = np.dtype(record["dtype"]).itemsize * int(np.prod(shape, dtype=np.int64))
        left = frames - -(-(record["bytes"] - size) // row)
    except (OSError, ValueError, TypeError, LookupError, EOFError, DemoError):
        return None
    return f"from episode {episode_of(offset, max(0, left))} on"


def _load(path: Path, name: str, episodes: int) -> Array:
    """Memory map of a column; a pickle in it is refused, not opened."""
    file = path / f"{name}.npy"
    try:
        column: Array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, TypeError, EOFError, SyntaxError) as error:
        raise DemoError(
            f"{file}, {span(0, episodes - 1)}: not a complete .npy file of numbers ({error}); "
            f"{_REMEDY}"
        ) from error
    if column.ndim == 0:
        raise DemoError(f"{file}, {span(0, episodes - 1)}: expected rows, found a single number")
    return column
