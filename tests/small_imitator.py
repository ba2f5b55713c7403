"""A small imitation agent, batches for it, and windows of the point that walks to its goal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from small_act_jepa import MODEL, demo_rows
from small_demos import TASKS as WALKS
from small_demos import write_demos
from tensordict import TensorDict
from torch import Tensor

from reverie.agents.act_jepa import ACTJEPA
from reverie.agents.act_jepa_config import ACTJEPAConfig
from reverie.agents.demos.store import open_dataset
from reverie.agents.demos.windows import DemoWindows, Images
from reverie.envs.specs import EnvSpec

CFG = ACTJEPAConfig(model=MODEL)
TASKS = ("test/a", "test/b", "test/c", "test/d")
IMAGE = (32, 32, 3)
SPEC = EnvSpec(TASKS[0], 3, False, vector_size=6, proprio_size=2)
SEEING = {"inputs": ("proprio", "image"), "targets": ("proprio", "image")}
B = 8


def with_model(cfg: ACTJEPAConfig = CFG, **changes: Any) -> ACTJEPAConfig:
    return replace(cfg, model=replace(cfg.model, **changes))


def spec_for(cfg: ACTJEPAConfig, *, discrete: bool = False) -> EnvSpec:
    image = IMAGE if "image" in cfg.model.inputs else None
    return replace(SPEC, discrete=discrete, image_shape=image)


def agent(
    cfg: ACTJEPAConfig = CFG,
    *,
    seed: int = 0,
    updates: int = 100,
    discrete: bool = False,
    tasks: tuple[str, ...] = TASKS,
    **kwargs: Any,
) -> ACTJEPA:
    spec = spec_for(cfg, discrete=discrete)
    return ACTJEPA(spec, cfg, tasks=tasks, seed=seed, updates=updates, **kwargs)


def batch_for(cfg: ACTJEPAConfig = CFG, *, seed: int = 0, device: str = "cpu") -> TensorDict:
    image = IMAGE if "image" in cfg.model.inputs else None
    rows = demo_rows(batch=B, length=cfg.model.chunk, image=image, seed=seed)
    return TensorDict(rows, [B]).to(device)


def observed(batch: TensorDict) -> dict[str, Tensor]:
    """First rows, as an environment would show them."""
    return {key: batch[key][:, 0] for key in ("vector", "image") if key in batch.keys()}


def statistics(*, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    found = {"vector_mean": torch.randn(6, generator=g), "action_mean": torch.randn(3, generator=g)}
    found["vector_std"] = torch.rand(6, generator=g) + 0.5
    return found | {"action_std": torch.rand(3, generator=g) + 0.5}


def walks(
    folder: Path, *, chunk: int = MODEL.chunk, images: Images = "none", **kwargs: Any
) -> DemoWindows:
    dataset = open_dataset(write_demos(folder, images=images != "none", image_size=32, **kwargs))
    episodes = range(len(dataset.episodes))
    return DemoWindows(dataset, episodes, chunk=chunk, tasks=WALKS, images=images)


def walker(windows: DemoWindows, cfg: ACTJEPAConfig = CFG, **kwargs: Any) -> ACTJEPA:
    """The agent that learns from `walks`."""
    spec = windows.dataset.spec.env_spec(WALKS[0])
    usual: dict[str, Any] = {"seed": 0, "updates": 100, "statistics": windows.statistics()}
    return ACTJEPA(spec, cfg, tasks=WALKS, **{**usual, **kwargs})
