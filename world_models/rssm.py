"""Recurrent state-space model: GRU with layer norm and categorical latents (DreamerV3 v1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.world_models.config import WorldModelConfig
from reverie.world_models.nets import LN_EPS, NormLinear, hidden_linear, output_linear
from reverie.world_models.ops import categorical_sample, straight_through, unimix
from reverie.world_models.rssm_scan import (
    PosteriorScan,
    ScanWeights,
    StepSizes,
    backward_step,
    forward_step,
    gru_step,
)


class Latents(NamedTuple):
    """States of the model with any leading dimensions."""

    h: Tensor
    """[..., D]: deterministic state."""
    z: Tensor
    """[..., S*C]: one-hot sample (straight-through where a gradient is taken)."""
    logits: Tensor
    """[..., S, C]: of the distribution that z was drawn from."""

    def detach(self) -> Latents:
        """The same values without gradient."""
        return Latents(*(t.detach() for t in self))


class RSSM(nn.Module):
    """Sequence model h_t = f(h, z, a), prior p(z|h) and posterior q(z|h, x)."""

    def __init__(self, embed_size: int, action_size: int, cfg: WorldModelConfig) -> None:
        super().__init__()
        self.flat = cfg.stoch * cfg.classes
        self.sizes = StepSizes(cfg.stoch, cfg.classes, cfg.unimix, LN_EPS)
        self.input = NormLinear(self.flat + action_size, cfg.units)
        self.gru = hidden_linear(cfg.units + cfg.deter, 3 * cfg.deter)
        self.gru_norm = nn.LayerNorm(3 * cfg.deter, eps=LN_EPS)
        self.prior_hidden = NormLinear(cfg.deter, cfg.units)
        self.prior_out = output_linear(cfg.units, self.flat)
        self.post_hidden = NormLinear(cfg.deter + embed_size, cfg.units)
        self.post_out = output_linear(cfg.units, self.flat)
        self.initial_h = nn.Parameter(torch.zeros(cfg.deter))
        self.steps: tuple[Callable[..., Any], Callable[..., Any]] = (forward_step, backward_step)

    @property
    def feature_size(self) -> int:
        """F: length of [h, z]."""
        return int(self.initial_h.shape[0]) + self.flat

    def scan_weights(self) -> ScanWeights:
        """The weights a recurrent step reads, split by input."""
        deter = self.initial_h.shape[0]
        return ScanWeights(
            self.input.linear.weight[:, : self.flat],
            self.input.norm.weight,
            self.input.norm.bias,
            self.gru.weight,
            self.gru_norm.weight,
            self.gru_norm.bias,
            self.post_hidden.linear.weight[:, :deter],
            self.post_hidden.norm.weight,
            self.post_hidden.norm.bias,
            self.post_out.weight,
            self.post_out.bias,
        )

    def initial(self) -> tuple[Tensor, Tensor]:
        """Learned start: h0 [D] through tanh, z0 [S*C] the mode of prior(h0).

        gradient: to h0; none to z0.
        """
        h0 = torch.tanh(self.initial_h)
        logits = self.prior_logits(h0.detach())
        z0 = F.one_hot(logits.argmax(-1), self.sizes.classes).to(h0.dtype).flatten()
        return h0, z0.detach()

    def prior_logits(self, h: Tensor) -> Tensor:
        """Logits [..., S, C] of p(z | h)."""
        flat = self.prior_out(self.prior_hidden(h)).float()
        return self._grouped(flat)

    def _grouped(self, flat: Tensor) -> Tensor:
        """[..., S*C] -> [..., S, C]."""
        return flat.reshape(*flat.shape[:-1], self.sizes.stoch, self.sizes.classes)

    def project_action(self, action: Tensor) -> Tensor:
        """Input layer's share of actions [..., A] -> [..., U], clipped to [-1, 1] elementwise.

        The scale of the clip carries no gradient (DreamerV3 v1).
        """
        action = action / action.detach().abs().clamp_min(1.0)
        return F.linear(action, self.input.linear.weight[:, self.flat :]).float()

    def project_embed(self, embed: Tensor) -> Tensor:
        """First posterior layer's share of embeddings [..., E] -> [..., U]."""
        weight = self.post_hidden.linear.weight[:, self.initial_h.shape[0] :]
        return F.linear(embed, weight).float()

    def observe(self, embed: Tensor, action: Tensor, reset: Tensor, exponential: Tensor) -> Latents:
        """Posterior states [B, T] of a window; `exponential` ~ Exp(1) [B, T, S, C].

        `action` [B, T, A] led to the embedding [B, T, E] of the same row. Where `reset` [B, T],
        the incoming action and state are replaced by zeros and the initial state.
        gradient: to every weight and input, z by straight-through.
        """
        keep = 1.0 - reset.float().unsqueeze(-1)
        h0, z0 = self.initial()
        dtype = (
            torch.get_autocast_dtype(embed.device.type)
            if torch.is_autocast_enabled(embed.device.type)
            else torch.float32
        )
        h, z, logits = PosteriorScan.apply(  # type: ignore[no-untyped-call]
            self.steps,
            self.sizes,
            dtype,
            self.project_embed(embed).transpose(0, 1),
            self.project_action(action * keep).transpose(0, 1),
            keep.transpose(0, 1),
            exponential.transpose(0, 1),
            h0,
            z0,
            *self.scan_weights(),
        )
        logits = self._grouped(logits)
        return Latents(h.transpose(0, 1), z.transpose(0, 1), logits.transpose(0, 1))

    def filter(
        self,
        previous: tuple[Tensor, Tensor],
        embed: Tensor,
        action: Tensor,
        reset: Tensor,
        exponential: Tensor,
    ) -> Latents:
        """One posterior step for N slots, as `observe` with T = 1 from a given state (acting)."""
        keep = 1.0 - reset.float().unsqueeze(-1)
        h0, z0 = self.initial()
        h, z, logits, _ = forward_step(
            self.scan_weights(), self.sizes, self.project_embed(embed),
            self.project_action(action * keep), keep, h0, z0, exponential, *previous,
        )  # fmt: skip
        return Latents(h, z, self._grouped(logits))

    def imagine_step(self, h: Tensor, z: Tensor, action: Tensor, exponential: Tensor) -> Latents:
        """One prior step [M] without observation.

        gradient: to h, z and action (z by straight-through), for actors trained through the
        dynamics.
        """
        weights = self.scan_weights()
        projected = self.project_action(action) + F.linear(z, weights.in_z).float()
        h = gru_step(weights, self.sizes, projected, h)[-1]
        logits = self.prior_logits(h)
        prob = unimix(logits, self.sizes.unimix)
        z = straight_through(categorical_sample(prob, exponential), prob)
        return Latents(h, z.flatten(-2), logits)
