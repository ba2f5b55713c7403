"""Observations as tokens: one context, or a sequence of steps, through the same trunk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from reverie.world_models.transformer import Trunk

Rows = Mapping[str, Tensor]
"""Modality -> observations of it: "proprio" [..., p], "state" [..., V], "image" [..., H, W, C]."""


class TokenEncoder(nn.Module):
    """Context encoder of ACT-JEPA: [task | proprio | state | image tokens] through a trunk.

    `part` gives the same modules with fewer modalities: what the targets are encoded with.
    """

    def __init__(self, task: nn.Embedding, embed: Mapping[str, nn.Module], trunk: Trunk) -> None:
        super().__init__()
        self.task, self.embed, self.trunk = task, nn.ModuleDict(embed), trunk

    def part(self, names: Iterable[str]) -> TokenEncoder:
        """An encoder of some modalities that shares every weight with this one."""
        return TokenEncoder(self.task, {name: self.embed[name] for name in names}, self.trunk)

    def context(
        self, rows: Rows, task: Tensor, *, extra: Tensor | None = None, drop: float = 0.0
    ) -> Tensor:
        """Tokens [N, S, D] of single moments [N, ...] of tasks [N]; `extra` [N, D] goes last."""
        parts = [self.task(task).unsqueeze(1)]
        parts += [_grid(self.embed[name](rows[name])) for name in self.embed]
        if extra is not None:
            parts.append(extra.unsqueeze(1))
        out: Tensor = self.trunk(torch.cat(parts, 1), drop=drop)
        return out

    def sequence(self, rows: Rows, task: Tensor, is_pad: Tensor, places: Tensor) -> Tensor:
        """Latents [B, P, K, D] of K modalities of windows [B, P, ...], without dropout.

        Every modality is a sequence of its own behind the task's token, with the table `places`
        [P, D] added; an image is the mean of its tokens. Padded steps are no keys.
        """
        batch, steps = is_pad.shape
        sequences = [self._steps(name, rows[name]) + places for name in self.embed]
        count = len(sequences)
        token = self.task(task).unsqueeze(1).repeat(count, 1, 1)
        real = torch.cat([torch.ones_like(is_pad[:, :1]), ~is_pad], 1)
        mask = real.repeat(count, 1)[:, None, None, :]
        out: Tensor = self.trunk(torch.cat([token, torch.cat(sequences)], 1), mask=mask)
        return out[:, 1:].view(count, batch, steps, -1).movedim(0, 2)

    def _steps(self, name: str, rows: Tensor) -> Tensor:
        if name != "image":
            out: Tensor = self.embed[name](rows)
            return out
        tokens: Tensor = self.embed[name](rows.flatten(0, 1))
        return tokens.mean(1).view(*rows.shape[:2], -1)


def _grid(tokens: Tensor) -> Tensor:
    """[N, D] or [N, S, D] -> [N, S, D]."""
    return tokens.unsqueeze(1) if tokens.ndim == 2 else tokens
