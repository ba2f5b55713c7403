"""A world model small enough to differentiate by hand, and windows to feed it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from reverie.world_models.config import WorldModelConfig
from reverie.world_models.mudreamer import MuDreamerModel

S = WorldModelConfig()
DREAMER = replace(S, enc_norm="ln", heads=(), decoder="grad", kl_dyn=0.5, kl_rep=0.1)
TINY = WorldModelConfig(deter=12, stoch=3, classes=4, units=10, layers=1, cnn_depth=2, bins=15)
Rows = dict[str, Tensor]


def model(
    cfg: WorldModelConfig = TINY, actions: int = 2, *, discrete: bool = False
) -> MuDreamerModel:
    torch.manual_seed(0)
    built = MuDreamerModel(cfg, action_size=actions, discrete=discrete, image_shape=(8, 8, 3))
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if not name.startswith("slow_value"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def window_rows(
    actions: int = 2, *, batch: int = 3, length: int = 6, discrete: bool = False
) -> Rows:
    g = torch.Generator().manual_seed(1)
    action = torch.rand(batch, length, actions, generator=g) * 2 - 1
    if discrete:
        action = F.one_hot(action.argmax(-1), actions).float()
    flags = torch.zeros(batch, length, dtype=torch.bool)
    return {
        "image": torch.randint(0, 256, (batch, length, 8, 8, 3), generator=g, dtype=torch.uint8),
        "action": action,
        "reward": torch.randn(batch, length, generator=g),
        "is_first": flags.clone(),
        "is_last": flags.clone(),
        "is_terminal": flags.clone(),
    }
