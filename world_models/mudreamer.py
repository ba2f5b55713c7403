"""MuDreamer's world model; DreamerV3 (v1) is the same class with other switches.

Burchi & Timofte 2024, arXiv 2405.15083; Hafner et al. 2023, arXiv 2301.04104.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reverie.world_models.config import WorldModelConfig
from reverie.world_models.core import Batch
from reverie.world_models.encoders import ConvDecoder, Encoder
from reverie.world_models.extra_objectives import CrossCorrelation, SelfPrediction
from reverie.world_models.nets import MLP
from reverie.world_models.objectives import OBJECTIVES, kl_losses, objective_scales
from reverie.world_models.ops import categorical_sample, symmetric_bins, two_hot_mean, unimix
from reverie.world_models.rssm import RSSM, Latents
from reverie.world_models.targets import ema_copy, ema_update


class Window(NamedTuple):
    """One observed batch: what every objective reads, computed once."""

    batch: Batch
    embed: Tensor
    """x [B, T, E]."""
    latents: Latents
    """Posterior states [B, T]."""
    feature: Tensor
    """[h, z] [B, T, F]."""
    prior_prob: Tensor
    """Mixed prior probabilities [B, T, S, C]."""
    reset: Tensor
    """bool [B, T]: is_first, or the window's first row."""
    exponential: Tensor
    """Exp(1) noise [B, T, S, C] of the posterior samples."""
    rollout_noise: Tensor | None = None
    """Exp(1) noise [B*(T-K), K, S, C] of the open-loop steps of `spr`; none: drawn when needed."""
    spr_target: Tensor | None = None
    """What `spr` predicts [B, T, P]; none where it is not active."""

    def prior_sample(self) -> Tensor:
        """Straight-through sample [B, T, S*C] of the prior, with the posterior's noise."""
        sample = categorical_sample(self.prior_prob, self.exponential)
        return (sample + self.prior_prob - self.prior_prob.detach()).flatten(-2)


class MuDreamerModel(nn.Module):
    """Encoder, RSSM and predictors of reward, continuation, value and previous action.

    Modules stay in eval mode, except inside `window(..., train=True)`: batch norm uses and moves
    batch statistics there alone.
    """

    loss_dims = ("B", "T")
    action_conditioned = True

    def __init__(
        self,
        cfg: WorldModelConfig,
        *,
        action_size: int,
        discrete: bool,
        image_shape: tuple[int, int, int] | None,
        vector_size: int = 0,
    ) -> None:
        super().__init__()
        self.cfg, self.discrete = cfg, discrete
        self.action_size = action_size
        self.encoder = Encoder(
            image_shape,
            vector_size,
            depth=cfg.cnn_depth,
            units=cfg.units,
            layers=cfg.layers,
            norm=cfg.enc_norm,
            eps=cfg.bn_eps,
            momentum=cfg.bn_momentum,
        )
        self.rssm = RSSM(self.encoder.size, action_size, cfg)
        size = self.rssm.feature_size
        self.reward = self._head(size, cfg.bins, zero=True)
        self.cont = self._head(size, 1)
        self.value = self._head(size, cfg.bins, zero=True) if "value" in cfg.heads else None
        self.slow_value = ema_copy(self.value) if self.value is not None else None
        outputs = action_size if discrete else 2 * action_size
        self.action = (
            self._head(self.encoder.size + size, outputs) if "action" in cfg.heads else None
        )
        self.decoder = self._decoder(size, image_shape)
        width = cfg.projector_width or cfg.units
        self.spr = (
            SelfPrediction(self.rssm, width, cfg.bn_momentum) if "spr" in cfg.objectives else None
        )
        self.barlow = (
            CrossCorrelation(size, self.encoder.size, width) if "barlow" in cfg.objectives else None
        )
        self.register_buffer("bins", symmetric_bins(cfg.bins, cfg.bin_range), persistent=False)
        self.bins: Tensor
        self.loss_scales = objective_scales(cfg)
        self.critic_value: Callable[[Tensor], Tensor] | None = None
        self.eval()

    def _head(self, in_size: int, out_size: int, *, zero: bool = False) -> MLP:
        cfg = self.cfg
        return MLP(in_size, out_size, units=cfg.units, layers=cfg.layers, zero_output=zero)

    def _decoder(self, size: int, shape: tuple[int, int, int] | None) -> ConvDecoder | None:
        if self.cfg.decoder == "none":
            return None
        if shape is None:
            raise ValueError(
                "a pixel decoder needs image observations, this task has none: "
                "set mudreamer.model.decoder to none"
            )
        return ConvDecoder(size, shape, self.cfg.cnn_depth)

    def train(self, mode: bool = True) -> MuDreamerModel:
        """Set the mode of all but the EMA copies, which stay in eval mode for good."""
        super().train(mode)
        if self.slow_value is not None:
            self.slow_value.eval()
        return self

    def encode(self, obs: dict[str, Tensor]) -> Tensor:
        """Observations [..., *] -> embedding x [..., E]."""
        embed: Tensor = self.encoder(obs)
        return embed.float()

    def draw_noise(self, *lead: int, generator: torch.Generator | None = None) -> Tensor:
        """Exp(1) noise [..., S, C] for as many latent samples."""
        shape = (*lead, self.cfg.stoch, self.cfg.classes)
        noise = torch.empty(shape, device=self.bins.device)
        # a float32 draw can be exactly 0, which would divide by zero
        return noise.exponential_(generator=generator).clamp_min_(1e-20)

    def draw_rollout_noise(
        self, batch: int, length: int, *, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """Noise [B*(T-K), K, S, C] of the open-loop steps of `spr`; none where it is not active."""
        steps = self.cfg.spr_steps
        if self.spr is None:
            return None
        return self.draw_noise(batch * (length - steps), steps, generator=generator)

    def window(
        self,
        batch: Batch,
        exponential: Tensor | None = None,
        *,
        train: bool = False,
        rollout_noise: Tensor | None = None,
    ) -> Window:
        """Encode and filter a batch once; every row 0 starts from the initial state.

        `is_first` stays as stored; the start of a window is a separate mask.
        gradient: to all weights of encoder and RSSM.
        """
        is_first = batch["is_first"]
        if exponential is None:
            exponential = self.draw_noise(*is_first.shape)
        self.train(train)
        embed = self.encode(batch)
        spr_target = self.spr.targets(embed) if self.spr is not None else None
        self.eval()
        start = torch.zeros_like(is_first)
        start[:, 0] = True
        reset = is_first | start
        latents = self.rssm.observe(embed, batch["action"].float(), reset, exponential)
        prior = unimix(self.rssm.prior_logits(latents.h), self.cfg.unimix)
        feature = self.features(latents)
        return Window(
            batch, embed, latents, feature, prior, reset, exponential, rollout_noise, spr_target
        )

    def observe(self, batch: Batch) -> Latents:
        """Posterior states [B, T] of a window."""
        return self.window(batch).latents

    def rollout(
        self, start: Latents, actions: Tensor, exponential: Tensor | None = None
    ) -> Latents:
        """Open-loop prior states [M, H] from `start` [M] under actions [M, H, A].

        gradient: to start and actions.
        """
        rows, horizon = actions.shape[:2]
        if exponential is None:
            exponential = self.draw_noise(rows, horizon)
        state, out = start, []
        for t in range(horizon):
            state = self.rssm.imagine_step(state.h, state.z, actions[:, t], exponential[:, t])
            out.append(state)
        return Latents(*(torch.stack(column, 1) for column in zip(*out, strict=True)))

    def targets(self, batch: Batch) -> Latents:
        """Detached posterior states: what the prior is trained towards."""
        with torch.no_grad():
            return self.observe(batch)

    def losses(self, batch: Batch, window: Window | None = None) -> dict[str, Tensor]:
        """Every active loss [B, T], unweighted; keys are those of `loss_scales`."""
        window = window or self.window(batch)
        losses = kl_losses(self, window)
        for name in self.loss_scales:
            if name in OBJECTIVES:
                losses[name] = OBJECTIVES[name](self, window)
        shape = batch["reward"].shape
        assert losses.keys() == self.loss_scales.keys(), (losses.keys(), self.loss_scales.keys())
        assert all(loss.shape == shape for loss in losses.values())
        return losses

    def total_loss(self, losses: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the means over B and T."""
        terms = [self.loss_scales[name] * loss.mean() for name, loss in losses.items()]
        return sum(terms[1:], terms[0])

    def features(self, latents: Latents) -> Tensor:
        """[h, z] [..., F]."""
        return torch.cat([latents.h, latents.z], -1)

    def running_buffers(self) -> list[Tensor]:
        """Statistics that `window(..., train=True)` moves."""
        own = [*self.encoder.buffers()]
        return own if self.spr is None else [*own, *self.spr.norm.buffers()]

    def bootstrap_value(self, feature: Tensor) -> Tensor:
        """Values [...] that bootstrap the value predictor's target.

        gradient: none is taken; the caller is in no-grad mode.
        """
        if self.cfg.value_target == "slow_critic":
            if self.critic_value is None:
                raise ValueError(
                    "value_target=slow_critic needs an actor-critic beside the model: "
                    "use value_target=ema_value for a model alone"
                )
            return self.critic_value(feature)
        assert self.slow_value is not None
        return two_hot_mean(self.slow_value(feature), self.bins)

    def update_targets(self, rate: float | Tensor) -> None:
        """Move the EMA copies: of the value predictor, and of what the targets of `spr` read."""
        if self.value is not None and self.slow_value is not None:
            ema_update(self.slow_value, self.value, rate)
        if self.spr is not None:
            ema_update(self.spr.target, self.rssm.post_hidden, rate)
