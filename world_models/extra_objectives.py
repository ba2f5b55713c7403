"""Representation objectives that bring small networks of their own: `spr` and `barlow`.

Either is one word in `objectives` of the configuration. Networks are built last and only when asked
for, so that a model without them keeps its weights and random draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.world_models.losses import barlow_loss, spr_loss
from reverie.world_models.nets import NormLinear, hidden_linear, output_linear
from reverie.world_models.rssm import RSSM, Latents
from reverie.world_models.targets import ema_copy

if TYPE_CHECKING:
    from reverie.world_models.mudreamer import MuDreamerModel, Window


class SelfPrediction(nn.Module):
    """Networks of `spr`: features -> projection -> linear prediction of projected embeddings.

    As SPR's projection is the first layers of its Q head, the one here is the posterior's first
    layer: what every loss of the model has taught it to read from an embedding. Its copy moves by
    EMA, because a stop-gradient alone loses rank where no other loss holds the target up. The
    encoder below it is not copied (SPR's rate 1): that saves a second pass over the images, and
    its other losses keep the embedding varied. Batch norm on the targets takes away what all rows
    share; without it one common direction grows until a constant predicts everything.
    """

    def __init__(self, rssm: RSSM, width: int, momentum: float) -> None:
        super().__init__()
        self.embed_size = rssm.post_hidden.linear.in_features - rssm.initial_h.shape[0]
        self.project = NormLinear(rssm.feature_size, width)
        units = rssm.post_hidden.linear.out_features
        self.predict = output_linear(width, units)
        self.target = ema_copy(rssm.post_hidden)
        self.norm = nn.BatchNorm1d(units, momentum=momentum, affine=False)

    def forward(self, feature: Tensor) -> Tensor:
        """Features [..., F] -> predictions [..., P]."""
        out: Tensor = self.predict(self.project(feature))
        return out

    @torch.no_grad()
    def targets(self, embed: Tensor) -> Tensor:
        """Embeddings [B, T, E] -> targets [B, T, P]; in train mode the batch's statistics move.

        gradient: none.
        """
        flat = F.linear(embed, self.target.linear.weight[:, -self.embed_size :]).float()
        normed: Tensor = self.norm(flat.flatten(0, 1))
        return normed.view(flat.shape)

    def train(self, mode: bool = True) -> SelfPrediction:
        """Set the mode of all but the EMA copy, which stays in eval mode for good."""
        super().train(mode)
        self.target.eval()
        return self


class CrossCorrelation(nn.Module):
    """Networks of `barlow`: one linear projector each for features and embeddings."""

    def __init__(self, feature_size: int, embed_size: int, width: int) -> None:
        super().__init__()
        self.feature = hidden_linear(feature_size, width)
        self.embed = hidden_linear(embed_size, width)


def ahead(rows: Tensor, steps: int) -> Tensor:
    """Rows t+1..t+K of every t that has them: [B, T, ...] -> [B, T-K, K, ...]."""
    return rows.unfold(1, steps, 1)[:, 1:].movedim(-1, 2)


def spr_objective(model: MuDreamerModel, window: Window) -> Tensor:
    """Distance of open-loop predictions from the embeddings that came, mean over K steps (SPR).

    From every posterior state with K rows behind it; the window's last K rows have loss 0, and so
    has every step at or behind an `is_first`.
    gradient: to the states predicted from and all weights on the way; none to the targets.
    """
    assert model.spr is not None and window.spr_target is not None
    batch, steps = window.batch, model.cfg.spr_steps
    lead = window.reset.shape
    assert steps < lead[1], f"{steps} steps ahead need more than the {lead[1]} rows of a window"
    noise = window.rollout_noise
    if noise is None:
        noise = model.draw_rollout_noise(*lead)
    start = Latents(*(t[:, :-steps].flatten(0, 1) for t in window.latents))
    action = ahead(batch["action"].float(), steps).flatten(0, 1)
    predicted = model.spr(model.features(model.rollout(start, action, noise)))
    target = ahead(window.spr_target, steps).flatten(0, 1)
    alive = torch.cumprod(1.0 - ahead(batch["is_first"].float(), steps), -1)
    loss = spr_loss(predicted, target, alive.flatten(0, 1))
    return F.pad(loss.view(lead[0], -1), (0, steps))


def barlow_objective(model: MuDreamerModel, window: Window) -> Tensor:
    """Barlow Twins between [h, z] and the embedding of the same row, over the width: [] -> [B, T].

    About 1 where the views share nothing, at every width. Every row of a window holds a real
    observation, so all B*T count, as they do for batch norm. The embedding is detached: the encoder
    learns only through the features, which must tell its observations apart, and a constant
    embedding lowers nothing.
    gradient: to features and both projectors; none to the embedding.
    """
    assert model.barlow is not None
    left = model.barlow.feature(window.feature).flatten(0, 1)
    right = model.barlow.embed(window.embed.detach()).flatten(0, 1)
    loss: Tensor = barlow_loss(left, right) / left.shape[1]
    return loss.expand(window.reset.shape)
