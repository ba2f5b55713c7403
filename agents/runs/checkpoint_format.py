"""One checkpoint folder: two content files under a manifest that checks them and itself."""

from __future__ import annotations

import hashlib
import json
import stat
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from reverie.agents.runs.checkpoint_tree import CheckpointError, flatten, unflatten
from reverie.agents.runs.files import fsync, write_synced

SCHEMA = 1
MANIFEST = "manifest.json"
STRUCTURE = "state.json"
TENSORS = "tensors.safetensors"
MAX_JSON_BYTES = 256 * 2**20
"""A larger JSON file is refused before it is read."""
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError, MemoryError)
"""What a full disk or a lost share looks like, depending on who was writing."""


class CorruptCheckpointError(CheckpointError):
    """The files of a checkpoint are not what was written; an older one may be intact."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: its checksums held."""

    path: Path
    step: int
    state: dict[str, Any]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Serialised:
    """A checkpoint in memory, ready to be written."""

    files: dict[str, bytes]
    manifest: bytes


def serialise(step: int, state: dict[str, Any], meta: dict[str, Any]) -> Serialised:
    """Bytes of all files; CheckpointError names an entry that cannot be stored."""
    structure, tensors = flatten(state)
    plain_meta, no_tensors = flatten(meta)
    if no_tensors:
        raise CheckpointError(f"meta must hold JSON values, found tensors: {sorted(no_tensors)}")
    try:
        files = {TENSORS: save_tensors(tensors), STRUCTURE: _json(structure)}
    except WRITE_ERRORS as error:
        raise CheckpointError(f"cannot serialise the state of step {step}: {error}") from error
    body = {
        "schema": SCHEMA,
        "step": step,
        "meta": plain_meta,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        },
        "versions": _versions(),
        "threads": torch.get_num_threads(),
        "time": time.time(),
    }
    checksum = hashlib.sha256(_json(body)).hexdigest()
    return Serialised(files, _json({"manifest": body, "sha256": checksum}))


def write(folder: Path, serialised: Serialised) -> None:
    """Create `folder` and wait until all of it is on the disk; the manifest comes last."""
    folder.mkdir()
    for name, content in serialised.files.items():
        write_synced(folder / name, content)
    write_synced(folder / MANIFEST, serialised.manifest)
    fsync(folder)


def load(path: Path) -> Checkpoint:
    """Read one checkpoint; CorruptCheckpointError unless every byte is as written."""
    body = read_manifest(path)
    contents = {name: _content(path / name, record) for name, record in body["files"].items()}
    try:
        tensors = load_tensors(contents[TENSORS])
        structure = json.loads(contents[STRUCTURE])
        state, meta = unflatten(structure, tensors), unflatten(body["meta"], {})
    except (SafetensorError, CheckpointError, ValueError, RecursionError, LookupError) as error:
        raise CorruptCheckpointError(f"{path}: unreadable content: {error!r}") from error
    if not isinstance(state, dict) or not isinstance(meta, dict):
        raise CorruptCheckpointError(f"{path}: expected a dict of state and of meta")
    return Checkpoint(path, body["step"], state, meta)


def verify(path: Path) -> None:
    """Check every byte against the manifest without building the state."""
    for name, record in read_manifest(path)["files"].items():
        _content(path / name, record)


def read_manifest(path: Path) -> dict[str, Any]:
    """Step, meta, files, versions, threads and time of one checkpoint, without its tensors.

    `meta` comes as stored; `load` decodes it (they differ only where floats are not finite).
    """
    file = path / MANIFEST
    try:
        outer = json.loads(_read(file, MAX_JSON_BYTES))
        body, checksum = outer["manifest"], outer["sha256"]
        matches = checksum == hashlib.sha256(_json(body)).hexdigest()
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise CorruptCheckpointError(f"{file}: not a manifest: {error!r}") from error
    if not matches or not isinstance(body, dict):
        raise CorruptCheckpointError(f"{file}: checksum error")
    if body.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has schema version {body.get('schema')!r}, expected {SCHEMA}: continue this "
            f"run with the version of reverie that wrote it ({body.get('versions')})"
        )
    if not _well_formed(body):
        raise CorruptCheckpointError(f"{file}: expected exactly the files {TENSORS}, {STRUCTURE}")
    return body


def _well_formed(body: dict[str, Any]) -> bool:
    files = body.get("files")
    return (
        isinstance(files, dict)
        and set(files) == {TENSORS, STRUCTURE}
        and all(isinstance(record, dict) for record in files.values())
        and isinstance(body.get("step"), int)
        and isinstance(body.get("meta"), dict)
    )


def _content(file: Path, record: dict[str, Any]) -> bytes:
    content = _read(file, None if file.name == TENSORS else MAX_JSON_BYTES)
    if len(content) != record.get("bytes"):
        raise CorruptCheckpointError(
            f"{file}: expected {record.get('bytes')} bytes, found {len(content)}"
        )
    if hashlib.sha256(content).hexdigest() != record.get("sha256"):
        raise CorruptCheckpointError(f"{file}: checksum error")
    return content


def _read(file: Path, limit: int | None) -> bytes:
    try:
        found = file.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise CorruptCheckpointError(f"{file}: expected a regular file")
        if limit is not None and found.st_size > limit:
            raise CorruptCheckpointError(f"{file}: {found.st_size} bytes, expected at most {limit}")
        return file.read_bytes()
    except OSError as error:
        raise CorruptCheckpointError(f"{file}: cannot be read: {error}") from error


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode()


def _versions() -> dict[str, str]:
    try:
        reverie = version("reverie")
    except PackageNotFoundError:
        reverie = "not installed"
    return {"torch": str(torch.__version__), "reverie": reverie}
