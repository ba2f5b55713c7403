"""What tells a living representation from a collapsed one, measured without gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reverie.world_models.collapse import cosine_to_mean, top_eigenvalue_share
from reverie.world_models.ops import effective_rank, feature_std

MOST = 256
"""Samples looked at, evenly spaced: a singular value decomposition grows with their cube."""


@torch.no_grad()
def spread(z: Tensor) -> dict[str, Tensor]:
    """How far targets z [N, D] of one moment lie apart, and along how many directions.

    The names are those of every agent's report. Both ranks of RankMe are there, though neither
    tells a collapse: they ignore scale, and a centred constant has the high rank of its rounding.
    """
    z = z.float()
    return {
        "target_std": feature_std(z),
        "target_cosine": cosine_to_mean(z),
        "top_share": top_eigenvalue_share(z),
        "rank": effective_rank(z),
        "rank_centred": effective_rank(z - z.mean(0)),
    }


def thinned(z: Tensor) -> Tensor:
    """At most `MOST` rows of z [N, ...], evenly spaced."""
    return z[:: -(-len(z) // MOST)]


@torch.no_grad()
def variance_spread(module: nn.Module) -> Tensor | None:
    """Largest over smallest running variance of a batch norm, as a power of ten; none without one.

    Of the layer where it is largest: a channel that has died has nearly no variance.
    """
    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    found = [m.running_var.clamp_min(1e-12).log10() for m in layers if m.running_var is not None]
    if not found:
        return None
    return torch.stack([log.max() - log.min() for log in found]).max()


@torch.no_grad()
def ema_distance(target: nn.Module, source: nn.Module) -> Tensor:
    """`|target - source| / |source|` over all parameters of a module and its EMA copy."""
    pairs = zip(target.parameters(), source.parameters(), strict=True)
    squares = [(a - b).square().sum() for a, b in pairs]
    norms = [p.square().sum() for p in source.parameters()]
    return (torch.stack(squares).sum() / torch.stack(norms).sum().clamp_min(1e-12)).sqrt()
