"""Builder of the small ACT-JEPA model of the tests, and what it is fed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from small_act_jepa import MODEL, demo_rows
from torch import Tensor

from reverie.world_models.act_jepa import ACTJEPAModel
from reverie.world_models.act_jepa_config import ACTJEPAModelConfig

IMAGE = (32, 32, 3)


def tiny(*, image: tuple[int, int, int] | None = None, **changes: Any) -> ACTJEPAModel:
    """Always from the same seed; 6-D vectors, of which 2 are the robot's, and 3-D actions."""
    torch.manual_seed(0)
    cfg = replace(MODEL, **changes)
    shape = image or (IMAGE if "image" in cfg.inputs else None)
    return ACTJEPAModel(cfg, action_size=3, vector_size=6, proprio_size=2, image_shape=shape)


def rows_for(cfg: ACTJEPAModelConfig, *, batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
    image = IMAGE if "image" in cfg.inputs else None
    return demo_rows(batch=batch, length=cfg.chunk, image=image, seed=seed)


def first_rows(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: rows[key][:, 0] for key in ("vector", "image") if key in rows}


def losses(net: ACTJEPAModel, rows: dict[str, Tensor], *, train: bool = True) -> dict[str, Tensor]:
    """With draws that are the same at every call."""
    torch.manual_seed(5)
    return net.losses(rows, train=train)
