"""Post-norm transformer layers, and the sine tables that say where a token is."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention of queries [N, Q, D] to a memory [N, S, D], or to themselves."""

    def __init__(self, width: int, heads: int, *, cross: bool) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.project = nn.Linear(width, width if cross else 3 * width)
        self.memory = nn.Linear(width, 2 * width) if cross else None
        self.out = nn.Linear(width, width)
        for layer in (self.project, self.memory):
            if layer is not None:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, memory: Tensor | None, mask: Tensor | None, drop: float) -> Tensor:
        """`mask` is True where a query may look, broadcastable to [N, heads, Q, S]."""
        if self.memory is None:
            query, key, value = self.project(x).chunk(3, -1)
        else:
            assert memory is not None, "cross-attention needs a memory"
            query, (key, value) = self.project(x), self.memory(memory).chunk(2, -1)
        query, key, value = (
            t.view(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in (query, key, value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=drop)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Self-attention, cross-attention if asked for, and a ReLU MLP without biases.

    Each is added to its input and normalised afterwards (ACT; DETR). The share to drop is an
    argument: the layer itself has no mode.
    """

    def __init__(self, width: int, ffn: int, heads: int, *, cross: bool = False) -> None:
        super().__init__()
        self.attend = Attention(width, heads, cross=False)
        self.look = Attention(width, heads, cross=True) if cross else None
        self.grow = nn.Linear(width, ffn, bias=False)
        self.shrink = nn.Linear(ffn, width, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if cross else 2))

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        drop: float = 0.0,
    ) -> Tensor:
        """Tokens [N, Q, D] -> [N, Q, D]; `mask` is the self-attention's."""
        x = self.norms[0](x + _drop(self.attend(x, None, mask, drop), drop))
        if self.look is not None:
            x = self.norms[1](x + _drop(self.look(x, memory, None, drop), drop))
        hidden = _drop(F.relu(self.grow(x)), drop)
        out: Tensor = self.norms[-1](x + _drop(self.shrink(hidden), drop))
        return out


def _drop(x: Tensor, share: float) -> Tensor:
    return F.dropout(x, share) if share else x


class Trunk(nn.Module):
    """Self-attention blocks and a last LayerNorm, which fixes the scale of every latent."""

    def __init__(self, width: int, ffn: int, heads: int, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, ffn, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, drop: float = 0.0) -> Tensor:
        """Tokens [N, S, D] -> [N, S, D]."""
        for block in self.blocks:
            x = block(x, mask=mask, drop=drop)
        out: Tensor = self.norm(x)
        return out


def sine_positions(count: int, width: int) -> Tensor:
    """Table [count, width] of sines and cosines of the position (Vaswani et al. 2017)."""
    if width % 2:
        raise ValueError(f"sine positions need an even width, found {width}")
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angle = torch.arange(count).unsqueeze(1) * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def sine_grid(rows: int, columns: int, width: int) -> Tensor:
    """Table [rows * columns, width]: half of the features say the row, half the column (DETR)."""
    if width % 4:
        raise ValueError(f"sine positions of an image need a width divisible by 4, found {width}")
    down = sine_positions(rows, width // 2).unsqueeze(1).expand(-1, columns, -1)
    across = sine_positions(columns, width // 2).unsqueeze(0).expand(rows, -1, -1)
    return torch.cat([down, across], -1).flatten(0, 1)
