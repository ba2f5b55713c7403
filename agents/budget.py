"""How many bytes a run's replay needs, and whether this machine has them."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.devices import resolve_device
from reverie.agents.registry import family
from reverie.agents.stopping import available_memory
from reverie.envs.specs import EnvSpec

FLAGS_AND_REWARD = 3 + 4
"""Bytes of is_first, is_last, is_terminal and a float32 reward."""

USABLE = 0.9
"""Share of the free memory that a replay may take; the rest is the model's and the system's."""


def row_bytes(cfg: RunConfig, spec: EnvSpec | None = None) -> int:
    """Bytes of one replay row; without `spec`, of an image of the configured size."""
    if spec is None:
        channels = 1 if cfg.env.gray else 3
        return channels * cfg.env.image_size**2 + FLAGS_AND_REWARD
    height, width, channels = spec.image_shape or (0, 0, 0)
    return height * width * channels + 4 * (spec.vector_size + spec.action_size) + FLAGS_AND_REWARD


def replay_bytes(cfg: RunConfig, spec: EnvSpec | None = None) -> int:
    """Bytes of the full replay."""
    return cfg.replay.capacity * row_bytes(cfg, spec)


def check_replay_fits(cfg: RunConfig, folder: Path, spec: EnvSpec | None = None) -> None:
    """Refuse a replay that cannot fit before a byte of it is allocated.

    Args:
        cfg: run to start.
        folder: existing or future run directory; its disk counts for "memmap".
        spec: sizes of the task, if it is already built.

    Raises:
        ConfigError: with the estimate, what is free, and the settings to change.
    """
    need = replay_bytes(cfg, spec)
    free, place = _free(cfg, folder)
    if need <= USABLE * free:
        return
    fits = int(USABLE * free) // row_bytes(cfg, spec)
    remedies = [f"--replay.capacity {fits} fits" if fits else "no capacity fits"]
    # the SPR family stacks frames where it learns
    if cfg.replay.storage != "memmap" and family(cfg.agent) != "spr":
        remedies.append("--replay.storage memmap keeps it on disk")
    raise ConfigError(
        [
            f"replay.capacity: {cfg.replay.capacity} rows of {row_bytes(cfg, spec)} bytes need "
            f"{need / 2**30:.2f} GiB of {place}, {free / 2**30:.2f} GiB are free; "
            + "; ".join(remedies)
        ]
    )


def _free(cfg: RunConfig, folder: Path) -> tuple[int, str]:
    if cfg.replay.storage == "memmap":
        existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
        return shutil.disk_usage(existing).free, f"disk at {existing}"
    device = resolve_device(cfg.train.device)
    if cfg.replay.storage == "device" and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], "device memory"
    return available_memory(), "memory"
