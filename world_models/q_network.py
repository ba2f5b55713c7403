"""Dueling distributional Q network with noisy layers; its first layers are SPR's projection.

Bellemare et al. 2017 (C51), Wang et al. 2016 (dueling), Fortunato et al. 2018 (noisy layers).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.world_models.spr_config import SPRModelConfig


class LayerNoise(NamedTuple):
    """Factorised noise of one layer, already mapped by sign(x) sqrt|x|."""

    inner: Tensor
    """[in_size]."""
    outer: Tensor
    """[out_size]."""


class NoisyLinear(nn.Module):
    """Linear layer whose weights are `mu + sigma * outer inner^T` (Fortunato et al. 2018)."""

    def __init__(self, in_size: int, out_size: int, noise_scale: float) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_size)
        self.mu = nn.Linear(in_size, out_size)
        for parameter in self.mu.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        self.sigma = nn.Linear(in_size, out_size)
        nn.init.constant_(self.sigma.weight, noise_scale / math.sqrt(in_size))
        nn.init.constant_(self.sigma.bias, noise_scale / math.sqrt(out_size))
        self.sizes = (in_size, out_size)

    def forward(self, x: Tensor, noise: LayerNoise | None = None) -> Tensor:
        """Map [N, in_size] to [N, out_size]; the same noise for all rows, or none.

        Two products instead of one with noisy weights: nothing of the weights' size is written.
        """
        out: Tensor = self.mu(x)
        if noise is None:
            return out
        noisy: Tensor = self.sigma(x * noise.inner) * noise.outer
        return out + noisy


class PlainLinear(nn.Linear):
    """Linear layer that takes, and ignores, the noise of a noisy one."""

    def forward(self, x: Tensor, noise: LayerNoise | None = None) -> Tensor:
        """Map [N, in_size] to [N, out_size]."""
        return super().forward(x)


class DuelingC51(nn.Module):
    """Value and advantage distributions of a latent; `project` shares their hidden layers."""

    def __init__(self, in_size: int, action_size: int, cfg: SPRModelConfig) -> None:
        super().__init__()
        self.action_size, self.atoms = action_size, cfg.atoms
        self.noisy = cfg.noisy

        def linear(inputs: int, outputs: int) -> NoisyLinear | PlainLinear:
            if cfg.noisy:
                return NoisyLinear(inputs, outputs, cfg.noise_scale)
            return PlainLinear(inputs, outputs)

        self.value_hidden = linear(in_size, cfg.hidden)
        separate = cfg.head == "separate"
        self.advantage_hidden = linear(in_size, cfg.hidden) if separate else None
        self.value = linear(cfg.hidden, cfg.atoms)
        self.advantage = linear(cfg.hidden, cfg.atoms * action_size)
        # shared by all actions, so that the mean takes it away: kept because the paper's code
        # counts it
        self.advantage_bias = nn.Parameter(torch.zeros(cfg.atoms)) if separate else None
        self.projection_size = cfg.hidden * (2 if separate else 1)

    def forward(self, latent: Tensor, noise: Tensor | None = None) -> Tensor:
        """Logits [N, A, K] of the return distribution of every action for latents [N, D].

        `noise` [noise_size] is standard normal, one draw for all rows; None: mean weights.
        gradient: to latent, scaled by 1 / sqrt(2) where two separate streams read it (dueling).
        """
        x = latent
        if self.advantage_hidden is not None:
            x = latent.detach() + (latent - latent.detach()) / math.sqrt(2.0)
        value_noise, advantage_noise, value_out, advantage_out = self._split(noise)
        hidden = F.relu(self.value_hidden(x, value_noise))
        other = hidden
        if self.advantage_hidden is not None:
            other = F.relu(self.advantage_hidden(x, advantage_noise))
        advantage = self.advantage(other, advantage_out).unflatten(-1, (-1, self.atoms))
        if self.advantage_bias is not None:
            advantage = advantage + self.advantage_bias
        centred = advantage - advantage.mean(1, keepdim=True)
        logits: Tensor = self.value(hidden, value_out).unsqueeze(1) + centred
        return logits.float()

    def project(self, latent: Tensor) -> Tensor:
        """SPR's projection [N, P] of latents [N, D]: hidden layers without noise and ReLU.

        gradient: to latent and weights.
        """
        value: Tensor = self.value_hidden(latent)
        if self.advantage_hidden is None:
            return value
        return torch.cat([value, self.advantage_hidden(latent)], -1)

    @property
    def noise_size(self) -> int:
        """Normal numbers of one noise draw; 0 without noisy layers."""
        return sum(sum(layer.sizes) for layer in self._layers() if isinstance(layer, NoisyLinear))

    def _layers(self) -> list[nn.Module | None]:
        return [self.value_hidden, self.advantage_hidden, self.value, self.advantage]

    def _split(self, noise: Tensor | None) -> list[LayerNoise | None]:
        if noise is None or not self.noisy:
            return [None] * 4
        mapped = noise.sign() * noise.abs().sqrt()
        sizes = [
            n for layer in self._layers() if isinstance(layer, NoisyLinear) for n in layer.sizes
        ]
        parts = iter(torch.split(mapped, sizes))
        return [
            LayerNoise(next(parts), next(parts)) if layer is not None else None
            for layer in self._layers()
        ]
