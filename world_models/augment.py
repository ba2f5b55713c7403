"""Random views of stacked frames, drawn beforehand and applied on the device (SPR, sec. 1.4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reverie.world_models.ops import random_shift


class ViewNoise(NamedTuple):
    """What distinguishes the views of N observations."""

    offset: Tensor
    """int64 [N, 2] in [0, 2 shift]."""
    brightness: Tensor
    """Standard normal [N]."""


def draw_views(
    count: int, shift: int, *, generator: torch.Generator, device: torch.device
) -> ViewNoise:
    """Noise of `count` views from `generator`."""
    offset = torch.randint(0, 2 * shift + 1, (count, 2), generator=generator, device=device)
    return ViewNoise(offset, torch.empty(count, device=device).normal_(generator=generator))


def augment(planes: Tensor, noise: ViewNoise, *, shift: int, intensity: float) -> Tensor:
    """uint8 planes [N, S*C, H, W] -> shifted float planes, about [0, 1].

    All frames of a stack move together by up to `shift` pixels and share one brightness factor
    `1 + intensity clip(normal, -2, 2)`, which is not clamped back. Zero switches either off.
    """
    assert planes.dtype == torch.uint8, f"expected bytes, which stay as they are: {planes.dtype}"
    if shift:
        planes = random_shift(planes, noise.offset, shift)
    factor = (1.0 + intensity * noise.brightness.clamp(-2.0, 2.0)) / 255.0
    # twice as fast as the product of bytes and floats, which converts number by number
    return planes.float().mul_(factor[:, None, None, None])
