"""Replay of experience rows: a ring `[slot, time]`, windows drawn from it, and its persistence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict

from reverie.agents.replay.segments import Segment, SegmentStore
from reverie.agents.replay.storage import DeviceRing, HostRing, Ring, Schema, row_bytes
from reverie.envs.specs import EnvSpec

Array = NDArray[Any]
Storage = Literal["ram", "memmap", "device"]


class ReplayError(RuntimeError):
    """Replay was misused or cannot be allocated; the message says what to change."""


def replay_schema(spec: EnvSpec) -> Schema:
    """Columns of one row for an environment, as design rows arrive."""
    schema: Schema = {}
    if spec.image_shape is not None:
        schema["image"] = (spec.image_shape, "uint8")
    if spec.vector_size:
        schema["vector"] = ((spec.vector_size,), "float32")
    schema["action"] = ((spec.action_size,), "float32")
    schema["reward"] = ((), "float32")
    for flag in ("is_first", "is_last", "is_terminal"):
        schema[flag] = ((), "bool")
    return schema


class Replay:
    """Ring of the newest rows of N slots that advance together, sampled in windows [B, T].

    Time is absolute: row t of every slot was the t-th one added, at ring position t % size.
    Windows may cross episodes (`is_first` says where); they never cross a hole that a lost
    segment left.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        num_envs: int,
        capacity: int,
        storage: Storage = "ram",
        directory: Path | None = None,
        device: torch.device | str = "cpu",
        segment_rows: int = 1024,
    ) -> None:
        """`capacity` and `segment_rows` count rows of all slots; `directory` holds the segments.

        Without a directory nothing is persisted. Batches arrive on `device`.
        """
        if capacity < num_envs:
            raise ReplayError(
                f"capacity {capacity} is less than one row for {num_envs} slots; raise it"
            )
        if storage == "memmap" and directory is None:
            raise ReplayError("storage 'memmap' needs a directory to put its files in; pass one")
        self.schema = dict(schema)
        self.num_envs = num_envs
        self.size = capacity // num_envs
        self.segment_length = max(1, min(self.size, segment_rows // num_envs))
        self._shapes = {key: (num_envs, *shape) for key, (shape, _) in schema.items()}
        self._ring = _allocate(schema, num_envs, self.size, storage, directory, device)
        self._store = None if directory is None else SegmentStore(directory / "segments")
        self._runs: list[tuple[int, int]] = []
        self._segments: list[Segment] = []
        self._saved = 0
        self.time = 0
        self.failed_writes = 0

    def __len__(self) -> int:
        """Rows that can be sampled, over all slots."""
        return self.num_envs * sum(stop - start for start, stop in self._runs)

    @property
    def oldest(self) -> int:
        """Absolute time of the oldest row the ring can still hold."""
        return max(0, self.time - self.size)

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Half-open spans of absolute time without holes, oldest first."""
        return tuple(self._runs)

    def add(self, rows: Mapping[str, Any]) -> None:
        """Append one row [N, ...] per slot; arrays, or tensors for storage 'device'."""
        if rows.keys() != self._shapes.keys():
            raise ReplayError(f"expected the keys {sorted(self._shapes)}, got {sorted(rows)}")
        for key, shape in self._shapes.items():
            if tuple(rows[key].shape) != shape:
                raise ReplayError(f"'{key}' must be {shape}, got {tuple(rows[key].shape)}")
        self._ring.write(self.time % self.size, rows)
        start = self._runs.pop()[0] if self._runs and self._runs[-1][1] == self.time else self.time
        self._runs.append((start, self.time + 1))
        self.time += 1
        self._evict()
        if self._store is not None and (self.time - self._saved) % self.segment_length == 0:
            self._try_flush()

    def can_sample(self, length: int) -> bool:
        """Whether at least one window of `length` rows exists."""
        return any(stop - start >= length for start, stop in self._runs)

    def sample(self, batch_size: int, length: int, rng: np.random.Generator) -> TensorDict:
        """Windows [batch_size, length], uniform over all slots and starts.

        The batch of a host ring stays valid until the next call of `sample`.
        """
        counts = np.array([max(0, stop - start - length + 1) for start, stop in self._runs])
        total = int(counts.sum())
        if total == 0:
            raise ReplayError(
                f"no window of {length} rows in {self.time - self.oldest} rows per slot; "
                "collect more (train.prefill) or shorten train.batch_length"
            )
        slots = rng.integers(0, self.num_envs, batch_size)
        offsets = rng.integers(0, total, batch_size)
        ends = np.cumsum(counts)
        run = np.searchsorted(ends, offsets, side="right")
        first = np.array([start for start, _ in self._runs])
        starts = first[run] + offsets - (ends - counts)[run]
        return self._ring.gather(slots, starts % self.size, length)

    def read(self, start: int, stop: int) -> dict[str, Array]:
        """Copy of the columns [stop - start, N, ...] of a span of absolute time."""
        if not any(a <= start <= stop <= b for a, b in self._runs):
            raise ReplayError(f"rows {start}..{stop} are not all held; held spans: {self._runs}")
        return self._ring.read_block(np.arange(start, stop) % self.size)

    def flush(self) -> None:
        """Close the open segment: every row is on disk afterwards; raises what the disk raises."""
        if self._store is None:
            raise ReplayError("replay without a directory cannot be persisted; pass directory=")
        for begin, end in self._runs:
            start = max(begin, self._saved)
            while start < end:
                stop = min(end, start + self.segment_length)
                self._segments.append(self._store.write(start, self.read(start, stop)))
                start = self._saved = stop

    def state_dict(self) -> dict[str, Any]:
        """Counters and the segment list; flushes first, so that every row is on disk."""
        self.flush()
        return {
            "time": self.time,
            "num_envs": self.num_envs,
            "size": self.size,
            "failed_writes": self.failed_writes,
            "segments": [segment.to_json() for segment in self._segments],
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Rebuild the ring from its segments; returns one note per segment that was dropped.

        Rows added after the state was taken are forgotten.
        """
        if self._store is None:
            raise ReplayError("replay without a directory cannot be restored; pass directory=")
        found = (state["num_envs"], state["size"])
        if found != (self.num_envs, self.size):
            raise ReplayError(
                f"expected replay of (slots, rows) {(self.num_envs, self.size)}, found {found}"
            )
        self.time = self._saved = int(state["time"])
        self.failed_writes = int(state["failed_writes"])
        self._runs, self._segments, notes = [], [], []
        for segment in map(Segment.from_json, state["segments"]):
            if segment.stop <= self.oldest:
                continue
            columns, problem = self._store.read(segment, self.schema, self.num_envs)
            if columns is None:
                notes.append(f"replay segment {segment.name} dropped: {problem}")
                continue
            self._restore(segment, columns)
        self._evict()
        return notes

    def segment_names(self) -> set[str]:
        """Files that the newest state names."""
        return {segment.name for segment in self._segments}

    def collect_garbage(self, live: set[str]) -> int:
        """Delete segment files that neither this ring nor `live` names; returns how many."""
        assert self._store is not None, "no directory, no segments"
        return self._store.keep(live | self.segment_names())

    def _restore(self, segment: Segment, columns: dict[str, Array]) -> None:
        skip = max(0, self.oldest - segment.start)
        index = np.arange(segment.start + skip, segment.stop) % self.size
        self._ring.write_block(index, {key: column[skip:] for key, column in columns.items()})
        self._segments.append(segment)
        start = segment.start
        if self._runs and self._runs[-1][1] == start:
            start = self._runs.pop()[0]
        self._runs.append((start, segment.stop))

    def _evict(self) -> None:
        oldest = self.oldest
        while self._runs and self._runs[0][1] <= oldest:
            self._runs.pop(0)
        if self._runs and self._runs[0][0] < oldest:
            self._runs[0] = (oldest, self._runs[0][1])
        while self._segments and self._segments[0].stop <= oldest:
            self._segments.pop(0)

    def _try_flush(self) -> None:
        # a full disk must not stop training: the rows stay in memory for the next attempt
        try:
            self.flush()
        except OSError:
            self.failed_writes += 1


def _allocate(
    schema: Schema,
    num_envs: int,
    size: int,
    storage: Storage,
    directory: Path | None,
    device: torch.device | str,
) -> Ring:
    target = torch.device(device)
    try:
        if storage == "device":
            return DeviceRing(schema, num_envs, size, target)
        maps = directory / "ring" if storage == "memmap" and directory is not None else None
        return HostRing(schema, num_envs, size, maps, target)
    except (MemoryError, OSError, torch.OutOfMemoryError) as error:
        need = row_bytes(schema) * num_envs * size / 2**30
        raise ReplayError(
            f"replay of {num_envs * size} rows needs {need:.1f} GiB of '{storage}' and could not "
            "be allocated; lower replay.capacity or, for agents that learn from windows, use "
            "replay.storage = 'memmap'"
        ) from error
