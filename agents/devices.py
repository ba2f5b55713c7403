"""Choosing the device of a run, and saying what to do when it is missing or full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.registry import family


class DeviceMemoryError(RuntimeError):
    """The device is too small for the run; the message has the need and the flags to change."""


def resolve_device(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" stands for on this machine.

    Raises:
        ConfigError: CUDA is asked for and is not there.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise ConfigError([f"train.device: expected auto, cpu, cuda or cuda:N, found {name!r}"])
    remedy = "use --train.device auto (falls back to the CPU) or cpu"
    if not available:
        raise ConfigError([f"train.device: {name} is asked for, torch finds no CUDA; {remedy}"])
    if index and int(index) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ConfigError([f"train.device: {name} is asked for, there are {found} devices"])
    return torch.device(name)


@contextmanager
def memory_advice(cfg: RunConfig) -> Iterator[None]:
    """Turn running out of device memory into an error that says what was needed and what to do.

    A batch is never split: batch norm would see other statistics.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(_advice(cfg, error)) from error


def _advice(cfg: RunConfig, error: torch.OutOfMemoryError) -> str:
    peak = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    kind = family(cfg.agent)
    batch = f"{cfg.train.batch_size} windows of {cfg.train.batch_length} rows"
    reason = "batch norm would see other statistics"
    if kind == "spr":
        batch = f"{cfg.train.batch_size} transitions"
        reason = "its importance weights are taken over all of it"
    if kind == "act_jepa":
        batch = f"{cfg.train.batch_size} windows of {cfg.act_jepa.model.chunk} steps"
    lines = [
        f"out of device memory: an update of {batch} at size {cfg.size} had reserved "
        f"{peak / 2**30:.2f} GiB when it asked for more ({str(error).splitlines()[0]}).",
        f"The batch is not split, because {reason}. Try, in order:",
    ]
    if kind == "spr":
        lines.append(f"  --replay.capacity {cfg.replay.capacity // 2} (halves the replay's share)")
    elif kind != "act_jepa" and cfg.replay.storage == "device":
        lines.append("  --replay.storage ram         (frees the replay's share of the device)")
    if cfg.train.precision == "fp32":
        lines.append("  --train.precision bf16       (halves the activations)")
    lines.append(f"  --train.batch-size {max(1, cfg.train.batch_size // 2)}")
    sizes = "nano, S" if kind in ("spr", "act_jepa") else "nano, XS, S, M, L, XL"
    lines.append(f"  --size with a smaller preset ({sizes})")
    return "\n".join(lines)
