"""Encoders of stacked frames into a spatial latent [C, H, W]: Nature's and Impala's."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.world_models.spr_config import SPRModelConfig

NATURE = ((8, 4), (4, 2), (3, 1))
"""Kernel and stride of the three convolutions (Mnih et al. 2015)."""


def same_pad(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad [N, C, H, W] so that a layer gives ceil(size / stride), the odd pixel at the far end."""
    pads: list[int] = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


class NatureEncoder(nn.Module):
    """Three convolutions with ReLU and, while learning, dropout."""

    def __init__(
        self, in_channels: int, channels: tuple[int, ...], *, same: bool, dropout: float
    ) -> None:
        super().__init__()
        sizes = (in_channels, *channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride)
            for (before, after), (kernel, stride) in zip(pairwise(sizes), NATURE, strict=True)
        )
        self.same, self.dropout = same, dropout

    def forward(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images [N, S*C, H, W] -> latents [N, C, h, w]; without `generator` nothing is dropped.

        The masks are drawn as the layers run: held as arguments they were millions of numbers.
        """
        x = image
        for conv, (kernel, stride) in zip(self.convs, NATURE, strict=True):
            x = F.relu(conv(same_pad(x, kernel, stride) if self.same else x))
            if self.dropout and generator is not None:
                keep = torch.empty_like(x).bernoulli_(1.0 - self.dropout, generator=generator)
                x = x * keep / (1.0 - self.dropout)
        return x


class ImpalaStage(nn.Module):
    """Convolution, pooling by 2, two residual blocks (Espeholt et al. 2018)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.entry = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, *, H, W] -> [N, C, ceil(H / 2), ceil(W / 2)]."""
        x = F.max_pool2d(same_pad(self.entry(x), 3, 2, -torch.inf), 3, 2)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleList)
            y = x
            for conv in block:
                y = conv(F.relu(y))
            x = x + y
        return x


class ImpalaEncoder(nn.Module):
    """15 convolutions in three stages, a last ReLU, no norm (BBF)."""

    def __init__(self, in_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            *(ImpalaStage(*pair) for pair in pairwise((in_channels, *channels)))
        )

    def forward(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images [N, S*C, H, W] -> latents [N, C, h, w]; nothing here is random."""
        latent: Tensor = F.relu(self.stages(image))
        return latent


def build_encoder(cfg: SPRModelConfig, in_channels: int) -> NatureEncoder | ImpalaEncoder:
    """The encoder that the settings name, for `in_channels` = S * C of the stacked frames."""
    if len(cfg.channels) != len(NATURE):
        raise ValueError(f"spr.model.channels: expected three numbers, found {cfg.channels}")
    if cfg.encoder == "impala":
        return ImpalaEncoder(in_channels, cfg.channels)
    same = cfg.encoder == "nature_same"
    return NatureEncoder(in_channels, cfg.channels, same=same, dropout=cfg.dropout)
