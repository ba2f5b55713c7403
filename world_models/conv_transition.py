"""Action-conditioned convolutional transition of spatial latents (SPR, sec. 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.world_models.ops import renormalise


class ConvTransition(nn.Module):
    """Latent and action planes -> two 3x3 convolutions -> renormalised next latent.

    Batch norm (SPR) sits behind the first ReLU; in train mode every predicted step has statistics
    of its own and moves the running ones.
    """

    def __init__(self, channels: int, action_size: int, *, norm: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels + action_size, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels) if norm == "bn" else nn.Identity()
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        """Latents [N, C, h, w] and one-hot actions [N, A] -> latents [N, C, h, w] in [0, 1].

        gradient: to latent, action and weights.
        """
        planes = action[:, :, None, None].expand(-1, -1, *latent.shape[-2:])
        x = torch.cat([latent, planes.to(latent.dtype)], 1)
        x = self.norm(F.relu(self.first(x)))
        return renormalise(F.relu(self.second(x)).float())
