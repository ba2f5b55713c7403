"""Decoded clips on disk: written once, whole or not at all, and mapped by every process.

A set of clips is a folder named by what it holds. It is filled under another name, synced and
renamed, so that whoever finds it finds all of it; the kernel shares the mapped pages, so that any
number of workers costs one copy in memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reverie.envs.specs import Array, EnvError

INDEX = "index.json"
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Film:
    """One decoded clip."""

    content: str
    """sha256 of what it was decoded from."""
    pixels: str
    """sha256 of its frames."""
    fps: float
    frames: Array
    """uint8 [F, size, size, 3], read-only."""


def cache_root() -> Path:
    """Return the folder of decoded clips: $REVERIE_CACHE/clips, or ~/.cache/reverie/clips."""
    chosen = os.environ.get("REVERIE_CACHE")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "reverie") / "clips"


def load_or_decode(
    key: str, decode: Callable[[], Iterable[Film]], *, root: Path | None = None
) -> dict[str, Film]:
    """Return the films of `key` by content; of all processes that ask at once one decodes.

    Raises:
        EnvError: `decode` raised it, and nothing was kept; or the cache cannot be written.
    """
    folder = (cache_root() if root is None else root) / key
    films = _read(folder)
    if films is not None:
        return films
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder) as alone:
            films = _read(folder)  # whoever held the lock may have been decoding
            if films is None:
                _write(folder, decode(), alone=alone)
                films = _read(folder)
    except OSError as error:
        raise EnvError(
            f"{folder}: expected to write decoded clips here, found {error}. Make room, or set "
            "REVERIE_CACHE to a folder that can be written."
        ) from error
    if films is None:
        raise EnvError(f"{folder}: decoded clips changed while they were read; delete the folder.")
    return films


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Wait for the lock of a set of clips; False where the file system has no locks."""
    # the file stays: unlinking it would let two processes hold locks of the same name
    with open(folder.with_name(f"{folder.name}.lock"), "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            yield False
        else:
            yield True


def _write(folder: Path, films: Iterable[Film], *, alone: bool) -> None:
    if alone:  # then no other process is filling any of these: they were killed
        for left in folder.parent.glob(f"{folder.name}.tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    temporary.mkdir()
    try:
        records = [_save(temporary, film) for film in films]
        with open(temporary / INDEX, "w") as file:
            json.dump(records, file)
            file.flush()
            os.fsync(file.fileno())
        _fsync(temporary)
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("decoded %d clips into %s", len(records), folder)


def _save(folder: Path, film: Film) -> dict[str, Any]:
    path = folder / f"{film.content}.npy"
    with open(path, "wb") as file:
        np.save(file, film.frames)
        file.flush()
        os.fsync(file.fileno())
    return {
        "content": film.content,
        "pixels": film.pixels,
        "fps": film.fps,
        "bytes": path.stat().st_size,
    }


def _publish(temporary: Path, folder: Path) -> None:
    if folder.exists() and _read(folder) is None:
        log.warning("%s: damaged decoded clips are replaced", folder)
        shutil.rmtree(folder)
    try:
        os.rename(temporary, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return  # without locks another process may have come first, with the same films
    _fsync(folder.parent)


def _read(folder: Path) -> dict[str, Film] | None:
    """Map all films of a set; None if it is not there or not whole."""
    try:
        records = json.loads((folder / INDEX).read_text())
        return {record["content"]: _map(folder, record) for record in records}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _map(folder: Path, record: dict[str, Any]) -> Film:
    path = folder / f"{record['content']}.npy"
    if path.stat().st_size != record["bytes"]:
        raise ValueError(f"{path}: expected {record['bytes']} bytes")
    frames = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    return Film(record["content"], record["pixels"], record["fps"], frames)


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
