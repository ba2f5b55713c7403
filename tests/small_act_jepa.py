"""ACT-JEPA of a size that runs in milliseconds, and windows of demonstrations to feed it."""

from __future__ import annotations

import torch
from torch import Tensor

from reverie.world_models.act_jepa_config import ACTJEPAModelConfig

MODEL = ACTJEPAModelConfig(
    inputs=("proprio", "state"),
    chunk=6,
    width=16,
    ffn=32,
    heads=2,
    encoder_layers=2,
    decoder_layers=2,
    predictor_width=8,
    predictor_layers=2,
    task_slots=4,
    vae_layers=1,
    vae_size=3,
    stem="conv",
    stem_depth=4,
    guard_width=8,
    sigreg_slices=16,
)


def demo_rows(
    *, batch: int = 3, length: int = 6, image: tuple[int, int, int] | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Windows [B, T] of a 6-D vector, 2-D proprioception and 3-D actions; the first is padded."""
    g = torch.Generator().manual_seed(seed)
    is_pad = torch.zeros(batch, length, dtype=torch.bool)
    is_pad[0, length // 2 :] = True
    rows = {
        "vector": torch.randn(batch, length, 6, generator=g),
        "action": torch.rand(batch, length, 3, generator=g) * 2 - 1,
        "is_pad": is_pad,
        "task": torch.arange(batch) % 4,
    }
    if image is not None:
        shape = (batch, length, *image)
        rows["image"] = torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)
    return rows
