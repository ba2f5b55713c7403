"""Writing a shard of demonstrations: it appears whole, or not at all."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from reverie.agents.demos.format import (
    FORMAT,
    HEADER,
    OFFSET,
    Array,
    DemoError,
    DemoSpec,
    Place,
    check_content,
    check_shapes,
    layout,
    stored_columns,
)
from reverie.agents.runs.files import fsync, write_synced

PACKAGES = ("reverie", "torch", "numpy", "gymnasium", "mujoco", "dm_control", "metaworld", "ale_py")
"""Their versions go into the header, as far as they are installed."""

TEMPORARY = re.compile(r"\..*\.tmp-(\d+)")
"""Name of the folder of an unfinished shard; the number is that of its process."""


class ShardWriter:
    """Collects episodes of one task and publishes them as a folder by one rename.

    Every episode goes to the disk as it comes, so that memory holds one. In a `with` block the
    shard is published at its end unless `close` did that; after an exception nothing is left.
    """

    def __init__(
        self,
        folder: Path,
        *,
        task: str,
        spec: DemoSpec,
        generator: str,
        seed: int,
        protocol: str,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin the shard `folder`, which must not be there yet.

        `generator` names who played, with its version; `settings` are further JSON values.
        """
        self.folder, self.spec = folder, spec
        self._facts = {"task": task, "generator": generator, "seed": seed, "protocol": protocol}
        self._settings = dict(settings or {})
        self._episodes: list[dict[str, Any]] = []
        self._offset = [0]
        self._closed = False
        self._columns: dict[str, _ColumnFile] = {}
        self._temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
        if folder.exists():
            raise DemoError(
                f"{folder}: expected a folder that is not there yet, found one; delete it or "
                "choose another"
            )
        with self._all_or_nothing():
            folder.parent.mkdir(parents=True, exist_ok=True)
            _clean(folder)
            self._temporary.mkdir()
            for name, (shape, dtype) in layout(spec).items():
                file = self._temporary / f"{name}.npy"
                self._columns[name] = _ColumnFile(file, shape, dtype)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._discard()
        elif not self._closed:
            self.close()

    def add(self, columns: Mapping[str, Any], *, success: bool | None, seed: int) -> None:
        """Append one episode of pairs: row t has what was seen and the action taken at it.

        Names are those of the shard, or "vector", "image", "reward", "done", "success".

        Args:
            columns: [length, ...] each.
            success: whether the task was solved; None: it knows no success.
            seed: that of the episode's start.

        Raises:
            DemoError: the episode breaks a rule, which leaves the shard as it was, or it could not
                be written, which ends the shard.
        """
        self._require_open()
        found = stored_columns(columns, self.spec)
        length = len(found["action"]) if "action" in found and found["action"].ndim else 0
        number = len(self._episodes)
        if length == 0:
            raise DemoError(f"{self.folder}, episode {number}: expected a frame, found none")
        place = Place(self.folder, np.array([0, length]), first=number)
        check_shapes(found, self.spec, place)
        check_content(found, self.spec, place)
        with self._all_or_nothing():
            for name, file in self._columns.items():
                file.append(found[name])
        self._offset.append(self._offset[-1] + length)
        known = None if success is None else bool(success)
        self._episodes.append({"success": known, "seed": int(seed)})

    def close(self, **settings: Any) -> Path:
        """Publish the shard and return its folder; `settings` add to those it began with.

        Raises:
            DemoError: it has no episode, or could not be written; nothing is left then.
        """
        self._require_open()
        with self._all_or_nothing():
            if not self._episodes:
                raise DemoError(f"{self.folder}: expected an episode before close, found none")
            self._settings |= settings
            for file in self._columns.values():
                file.finish()
            with open(self._temporary / f"{OFFSET}.npy", "wb") as output:
                np.save(output, np.array(self._offset, np.int64), allow_pickle=False)
            fsync(self._temporary / f"{OFFSET}.npy")
            text = json.dumps(self._header(), indent=1, allow_nan=False)
            write_synced(self._temporary / HEADER, text.encode())
            fsync(self._temporary)
            os.rename(self._temporary, self.folder)
            fsync(self.folder.parent)
        self._closed = True
        return self.folder

    def _header(self) -> dict[str, Any]:
        files = {name: self._temporary / f"{name}.npy" for name in [*self._columns, OFFSET]}
        loaded = {name: np.load(file, mmap_mode="r") for name, file in files.items()}
        header: dict[str, Any] = {
            "format": FORMAT,
            **self._facts,
            **asdict(self.spec),
            "settings": self._settings,
            "versions": _versions(),
            "episodes": self._episodes,
            "columns": {
                name: {
                    "dtype": loaded[name].dtype.name,
                    "shape": list(loaded[name].shape),
                    "bytes": file.stat().st_size,
                    "sha256": digest(file),
                }
                for name, file in files.items()
            },
            "statistics": {
                name: _statistics(loaded[name])
                for name, (shape, _) in layout(self.spec).items()
                if len(shape) < 2
            },
        }
        header = json.loads(json.dumps(header, allow_nan=False))  # tuples are lists from here on
        return {**header, "sha256": header_digest(header)}

    def _require_open(self) -> None:
        if self._closed:
            raise DemoError(f"{self.folder}: the shard is closed; begin another")

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Take back the unfinished shard when the block fails; a full disk is told in words."""
        try:
            yield
        except OSError as error:
            self._discard()
            raise DemoError(
                f"{self.folder}: the shard could not be written ({error.strerror or error}); "
                "nothing of it is left. Free some space or choose another folder."
            ) from error
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        if self._closed:
            return
        self._closed = True
        for file in self._columns.values():
            file.abandon()
        shutil.rmtree(self._temporary, ignore_errors=True)


class _ColumnFile:
    """A .npy file that grows; its number of frames is put in at the end."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self._shape, self._dtype, self._frames = shape, np.dtype(dtype), 0
        self._file = open(path, "wb")
        self._begin = self._write_head()

    def append(self, values: Array) -> None:
        self._file.write(np.ascontiguousarray(values).data)
        self._frames += len(values)

    def finish(self) -> None:
        self._file.seek(0)
        # NumPy leaves room for the digits of the first size
        assert self._write_head() == self._begin, "the head of a .npy file must keep its length"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # what is still buffered does not fit either
            self._file.close()

    def _write_head(self) -> int:
        head = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._frames, *self._shape),
        }
        np.lib.format.write_array_header_1_0(self._file, head)
        return self._file.tell()


def digest(path: Path) -> str:
    """SHA-256 of a file, which is never in memory as a whole."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def header_digest(header: Mapping[str, Any]) -> str:
    """SHA-256 of a header's values, that of its own checksum excepted."""
    rest = {key: value for key, value in header.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _statistics(column: Array) -> dict[str, list[float]]:
    rows = column.reshape(len(column), -1).astype(np.float64)
    return {name: getattr(rows, name)(axis=0).tolist() for name in ("mean", "std", "min", "max")}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _clean(folder: Path) -> None:
    """Remove what a killed process left of this shard."""
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.tmp-*"):
        match = TEMPORARY.fullmatch(leftover.name)
        if match is not None and not _is_alive(int(match[1])):
            shutil.rmtree(leftover)


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # of an earlier process with our number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
