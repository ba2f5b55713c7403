"""Where replay rows live: one `[N, T, ...]` array per key in memory, in a file, or on a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

Array = NDArray[Any]
Schema = dict[str, tuple[tuple[int, ...], str]]
"""Key -> (shape of one row, NumPy dtype name)."""

BIG_ROW = 512


class Ring(Protocol):
    """Rows at `[slot, time % size]`; knows nothing of which of them are valid."""

    def write(self, index: int, rows: Mapping[str, Any]) -> None:
        """Store rows [N, ...] at ring position `index`."""
        ...

    def write_block(self, index: Array, columns: Mapping[str, Array]) -> None:
        """Store columns [L, N, ...] at the ring positions `index` [L]."""
        ...

    def read_block(self, index: Array) -> dict[str, Array]:
        """Copy of the columns [L, N, ...] at the ring positions `index` [L]."""
        ...

    def gather(self, slots: Array, starts: Array, length: int) -> TensorDict:
        """Windows [B, length] that begin at ring positions `starts` [B] of `slots` [B]."""
        ...


def row_bytes(schema: Schema) -> int:
    """Bytes of one row of one slot."""
    return sum(
        int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        for shape, dtype in schema.values()
    )


class HostRing:
    """NumPy arrays or memory maps; batches are copied into buffers that are used again.

    A batch stays valid until the next call of `gather`; while it crosses to another device, that
    call fills a second buffer.
    """

    def __init__(
        self, schema: Schema, num_envs: int, size: int, directory: Path | None, device: torch.device
    ) -> None:
        """Allocate; `directory` selects memory maps, whose files vanish with the process."""
        self.schema = schema
        self.size = size
        self.target = device
        self.arrays: dict[str, Array] = {}
        for key, (shape, dtype) in schema.items():
            full = (num_envs, size, *shape)
            self.arrays[key] = (
                np.zeros(full, dtype)
                if directory is None
                else _scratch_map(directory / f"{key}.ring", full, dtype)
            )
        self.flat = {
            key: array.reshape(num_envs * size, *array.shape[2:])
            for key, array in self.arrays.items()
        }
        self._buffers: dict[tuple[int, int], list[_Buffer]] = {}
        self._turn = 0

    def write(self, index: int, rows: Mapping[str, Any]) -> None:
        """See `Ring.write`."""
        for key, array in self.arrays.items():
            array[:, index] = rows[key]

    def write_block(self, index: Array, columns: Mapping[str, Array]) -> None:
        """See `Ring.write_block`."""
        for key, array in self.arrays.items():
            array[:, index] = np.swapaxes(columns[key], 0, 1)

    def read_block(self, index: Array) -> dict[str, Array]:
        """See `Ring.read_block`."""
        return {
            key: np.ascontiguousarray(np.swapaxes(array[:, index], 0, 1))
            for key, array in self.arrays.items()
        }

    def gather(self, slots: Array, starts: Array, length: int) -> TensorDict:
        """See `Ring.gather`."""
        buffer = self._next_buffer(len(slots), length)
        times = (starts[:, None] + np.arange(length)) % self.size
        index = (slots[:, None] * self.size + times).reshape(-1)
        for key, out in buffer.arrays.items():
            array = self.arrays[key]
            if out[0, 0].nbytes < BIG_ROW:
                flat_out = out.reshape(len(index), *out.shape[2:])
                np.take(self.flat[key], index, axis=0, out=flat_out, mode="clip")
                continue
            # whole slices of images are memcpy: 4 times faster than a fancy index
            for row, (slot, start) in enumerate(zip(slots.tolist(), starts.tolist(), strict=True)):
                head = min(length, self.size - start)
                out[row, :head] = array[slot, start : start + head]
                if head < length:
                    out[row, head:] = array[slot, : length - head]
        return buffer.publish(self.target)

    def _next_buffer(self, batch: int, length: int) -> _Buffer:
        pool = self._buffers.get((batch, length))
        if pool is None:
            pin = self.target.type == "cuda"
            # one buffer stays in the cache; with two, a batch on the CPU costs a third more
            count = 1 if self.target.type == "cpu" else 2
            pool = [_Buffer(self.schema, batch, length, pin=pin) for _ in range(count)]
            self._buffers = {(batch, length): pool}
        self._turn = (self._turn + 1) % len(pool)
        buffer = pool[self._turn]
        buffer.wait()
        return buffer


class _Buffer:
    """One reusable batch; on CUDA pinned, with an event that says when it may be overwritten."""

    def __init__(self, schema: Schema, batch: int, length: int, *, pin: bool) -> None:
        self.tensors = {
            key: torch.empty(
                (batch, length, *shape), dtype=_torch_dtype(dtype), pin_memory=pin
            ).contiguous()
            for key, (shape, dtype) in schema.items()
        }
        self.arrays: dict[str, Array] = {key: t.numpy() for key, t in self.tensors.items()}
        self.batch_size = (batch, length)
        self.event: torch.cuda.Event | None = None

    def wait(self) -> None:
        if self.event is not None:
            self.event.synchronize()

    def publish(self, device: torch.device) -> TensorDict:
        tensors: dict[str, Tensor] = dict(self.tensors)
        if device.type != "cpu":
            tensors = {k: t.to(device, non_blocking=True) for k, t in tensors.items()}
        if device.type == "cuda":
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record()
        return TensorDict(tensors, batch_size=self.batch_size)


class DeviceRing:
    """Tensors on the compute device; a batch is gathered there and never crosses the bus.

    `flat` has one row more than the ring, at index `blank`: it stays zero, so that what is missing
    can be gathered like anything else.
    """

    def __init__(self, schema: Schema, num_envs: int, size: int, device: torch.device) -> None:
        """Allocate `num_envs * size` rows and the blank one on `device`."""
        self.size = size
        self.target = device
        self.blank = num_envs * size
        self.flat = {
            key: torch.zeros((self.blank + 1, *shape), dtype=_torch_dtype(dtype), device=device)
            for key, (shape, dtype) in schema.items()
        }
        self.arrays = {
            key: flat[: self.blank].view(num_envs, size, *flat.shape[1:])
            for key, flat in self.flat.items()
        }

    def write(self, index: int, rows: Mapping[str, Any]) -> None:
        """See `Ring.write`; tensors already on the device are not moved."""
        for key, array in self.arrays.items():
            array[:, index] = torch.as_tensor(rows[key], device=self.target)

    def write_block(self, index: Array, columns: Mapping[str, Array]) -> None:
        """See `Ring.write_block`."""
        where = torch.as_tensor(index, device=self.target)
        for key, array in self.arrays.items():
            block = torch.as_tensor(columns[key]).transpose(0, 1).to(self.target)
            array[:, where] = block

    def read_block(self, index: Array) -> dict[str, Array]:
        """See `Ring.read_block`."""
        where = torch.as_tensor(index, device=self.target)
        return {
            key: array.index_select(1, where).transpose(0, 1).contiguous().cpu().numpy()
            for key, array in self.arrays.items()
        }

    def gather(self, slots: Array, starts: Array, length: int) -> TensorDict:
        """See `Ring.gather`; the batch is a fresh copy."""
        times = (starts[:, None] + np.arange(length)) % self.size
        index = torch.as_tensor((slots[:, None] * self.size + times).reshape(-1))
        index = index.to(self.target, non_blocking=True)
        batch = len(slots)
        return TensorDict(
            {
                key: flat.index_select(0, index).view(batch, length, *flat.shape[1:])
                for key, flat in self.flat.items()
            },
            batch_size=(batch, length),
        )


def _torch_dtype(name: str) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, name)).dtype


def _scratch_map(path: Path, shape: tuple[int, ...], dtype: str) -> Array:
    """Memory map whose file is already unlinked, so that no crash can leave it behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.memmap(path, dtype=dtype, mode="w+", shape=shape)
    path.unlink()
    return array
