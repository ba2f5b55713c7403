"""Replay on disk: append-only segment files, each complete and checksummed or not there at all."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from reverie.agents.replay.storage import Schema
from reverie.agents.runs.files import write_atomic

Array = NDArray[Any]


@dataclass(frozen=True)
class Segment:
    """Rows [start, stop) of every slot in one file; the checksum travels with the checkpoint."""

    name: str
    """File name; holds the span and the beginning of the checksum."""
    start: int
    """Absolute time of the first row."""
    stop: int
    """Absolute time behind the last row."""
    sha256: str
    """Hex digest of the whole file."""

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Segment:
        """Inverse of `to_json`."""
        return cls(
            name=str(data["name"]),
            start=int(data["start"]),
            stop=int(data["stop"]),
            sha256=str(data["sha256"]),
        )


class SegmentStore:
    """A folder of segments."""

    def __init__(self, directory: Path) -> None:
        """Create the folder; temporary files of a killed writer are removed."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob("*.tmp-*"):
            leftover.unlink(missing_ok=True)

    def write(self, start: int, columns: dict[str, Array]) -> Segment:
        """Write columns [L, N, ...] durably under a name nothing else has; OSError if it fails."""
        length = len(next(iter(columns.values())))
        data = save({key: np.ascontiguousarray(column) for key, column in columns.items()})
        digest = hashlib.sha256(data).hexdigest()
        name = f"{start:012d}-{start + length:012d}-{digest[:12]}.safetensors"
        write_atomic(self.directory / name, data)
        return Segment(name=name, start=start, stop=start + length, sha256=digest)

    def read(
        self, segment: Segment, schema: Schema, num_envs: int
    ) -> tuple[dict[str, Array] | None, str]:
        """Columns [L, N, ...], or None and the reason why the file cannot be trusted."""
        try:
            data = (self.directory / Path(segment.name).name).read_bytes()
        except OSError as error:
            return None, f"cannot be read ({error.strerror})"
        if hashlib.sha256(data).hexdigest() != segment.sha256:
            return None, "checksum differs from the checkpoint's"
        try:
            columns = load(data)
        except SafetensorError as error:
            return None, f"not a safetensors file ({error})"
        length = segment.stop - segment.start
        expected = {key: ((length, num_envs, *shape), dt) for key, (shape, dt) in schema.items()}
        found = {key: (column.shape, column.dtype.name) for key, column in columns.items()}
        if found != expected:
            return None, f"expected columns {expected}, found {found}"
        return columns, ""

    def names(self) -> set[str]:
        """Files in the folder."""
        return {path.name for path in self.directory.glob("*.safetensors")}

    def keep(self, live: set[str]) -> int:
        """Delete every file outside `live`; returns how many."""
        dead = self.names() - live
        for name in dead:
            (self.directory / name).unlink(missing_ok=True)
        return len(dead)
