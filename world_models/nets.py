"""Layers and initialisation shared by all world models and heads."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LN_EPS = 1e-3
# Standard deviation of a unit normal truncated at two sigma: dividing by it restores unit variance.
TRUNCATED_STD = 0.87962566103423978


def init_hidden_(weight: Tensor) -> Tensor:
    """Truncated normal of variance 1 / fan-average, cut at two sigma (DreamerV3 v1), in place."""
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    std = math.sqrt(2.0 / (fan_in + fan_out)) / TRUNCATED_STD
    return nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std)


def hidden_linear(in_size: int, out_size: int) -> nn.Linear:
    """Linear layer before a norm: no bias."""
    layer = nn.Linear(in_size, out_size, bias=False)
    init_hidden_(layer.weight)
    return layer


def output_linear(in_size: int, out_size: int, *, zero: bool = False) -> nn.Linear:
    """Linear layer of a distribution: Xavier-uniform, or all zeros (reward and values)."""
    layer = nn.Linear(in_size, out_size)
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class NormLinear(nn.Module):
    """Linear without bias, LayerNorm in float32, SiLU."""

    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.linear = hidden_linear(in_size, out_size)
        self.norm = nn.LayerNorm(out_size, eps=LN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_size] to [..., out_size]."""
        return F.silu(self.norm(self.linear(x)))


class MLP(nn.Module):
    """`layers` hidden layers of `units` and a linear output: every head of the suite."""

    def __init__(
        self, in_size: int, out_size: int, *, units: int, layers: int, zero_output: bool = False
    ) -> None:
        super().__init__()
        sizes = [in_size] + [units] * layers
        self.hidden = nn.Sequential(*(NormLinear(i, o) for i, o in pairwise(sizes)))
        self.output = output_linear(sizes[-1], out_size, zero=zero_output)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [..., in_size] to outputs [..., out_size]."""
        out: Tensor = self.output(self.hidden(x))
        return out


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of [N, C, H, W] at every pixel (DreamerV3 v1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=LN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; the shape stays."""
        normed: Tensor = self.norm(x.movedim(1, -1))
        return normed.movedim(-1, 1)


def count_parameters(*modules: nn.Module | Tensor) -> int:
    """Trainable entries of modules and single parameters."""
    total = 0
    for item in modules:
        total += (
            item.numel()
            if isinstance(item, Tensor)
            else sum(p.numel() for p in item.parameters() if p.requires_grad)
        )
    return total


def normal_parameters(raw: Tensor, min_std: float, max_std: float) -> tuple[Tensor, Tensor]:
    """Mean in (-1, 1) and std in (min_std, max_std) from raw outputs [..., 2A] (DreamerV3 v1).

    gradient: to raw.
    """
    mean, spread = torch.chunk(raw.float(), 2, dim=-1)
    return torch.tanh(mean), (max_std - min_std) * torch.sigmoid(spread + 2.0) + min_std
