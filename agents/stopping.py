"""Reasons to stop a run early: signals from a scheduler, non-finite updates, vanishing memory."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from reverie.agents.stop_signals import EXIT_CODES, StopRequest

__all__ = [
    "EXIT_CODES",
    "MEMORY_RESERVE",
    "NonFiniteError",
    "NonFiniteGuard",
    "OutOfMemoryError",
    "StopRequest",
    "available_memory",
    "check_memory",
]

MEMORY_RESERVE = 256 * 2**20
"""A run stops, saved, while this many bytes are still free: a checkpoint must still fit."""


class NonFiniteError(RuntimeError):
    """Too many updates in a row were NaN or infinite."""


class OutOfMemoryError(RuntimeError):
    """The host's memory is nearly used up."""


class NonFiniteGuard:
    """Counts skipped updates on the device, keeps the last bad batch, stops after n in a row.

    On CUDA the host looks only every `read_every` updates, because looking waits for the device.
    """

    def __init__(self, directory: Path, *, limit: int, device: torch.device) -> None:
        """Bad batches are written to `directory`; `limit` consecutive ones are too many."""
        self.directory = directory
        self.limit = limit
        self.read_every = 1 if device.type == "cpu" else 50
        self.total = 0
        # total, current run, longest run, update of the last bad batch
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)
        self._batch: TensorDict | None = None

    def watch(self, batch: TensorDict, flag: Tensor, update: int) -> None:
        """Note the outcome of one update; raises NonFiniteError after too many bad ones."""
        bad = flag.detach() > 0
        if self.read_every == 1:
            if bool(bad):
                self._batch = batch.clone()
        elif self._batch is None:
            self._batch = batch.clone()
        else:
            for key, kept in self._batch.items():
                kept.copy_(torch.where(bad, batch[key], kept))
        total, run, longest, last = self._counts.unbind()
        run = (run + 1) * bad
        last = torch.where(bad, update, last)
        self._counts = torch.stack([total + bad, run, torch.maximum(longest, run), last])
        if update % self.read_every == 0:
            self.check()

    def check(self) -> bool:
        """Read the counters; save the last bad batch if there is a new one and say so."""
        total, _, longest, last = (int(value) for value in self._counts.tolist())
        fresh = total > self.total
        self.total = total
        path = self.directory / f"batch-{last:09d}.safetensors"
        if fresh and self._batch is not None:
            _save_batch(self._batch, path)
        if longest >= self.limit:
            raise NonFiniteError(
                f"{longest} updates in a row had a non-finite loss or gradient (allowed: "
                f"{self.limit - 1}); no weight was changed by them; the last batch is in {path}; "
                "lower the learning rates or use train.precision = 'fp32'"
            )
        return fresh

    def state_dict(self) -> dict[str, Any]:
        """Counters."""
        return {"counts": self._counts.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._counts = state["counts"].to(self._counts.device)
        self.total = int(self._counts[0])


def _save_batch(batch: TensorDict, path: Path) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    for older in sorted(path.parent.glob("batch-*.safetensors"))[:-4]:
        older.unlink(missing_ok=True)
    save_file({str(k): v.contiguous().cpu() for k, v in batch.items()}, path)


def available_memory() -> int:
    """Bytes this process can still allocate: the least of machine, control group and limit."""
    found = [_field(Path("/proc/meminfo"), "MemAvailable:", 1024)]
    group = Path("/sys/fs/cgroup")
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is not None and used is not None:
        cache = _field(group / "memory.stat", "inactive_file ", 1) or 0
        found.append(limit - used + cache)
    ceiling, _ = resource.getrlimit(resource.RLIMIT_AS)
    size = _field(Path("/proc/self/status"), "VmSize:", 1024)
    if ceiling != resource.RLIM_INFINITY and size is not None:
        found.append(ceiling - size)
    known = [value for value in found if value is not None]
    return min(known) if known else 2**62


def check_memory(reserve: int = MEMORY_RESERVE) -> None:
    """Raise OutOfMemoryError when less than `reserve` bytes are left."""
    left = available_memory()
    if left < reserve:
        raise OutOfMemoryError(
            f"only {left / 2**20:.0f} MiB of memory are left (reserve {reserve / 2**20:.0f} MiB); "
            "the run was saved: lower replay.capacity, use replay.storage = 'memmap' if the agent "
            "learns from windows, or give it "
            "more memory, and start it again"
        )


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _field(path: Path, name: str, unit: int) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    values = [line for line in lines if line.startswith(name)]
    return int(values[0].removeprefix(name).split()[0]) * unit if values else None
