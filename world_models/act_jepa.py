"""ACT-JEPA: from one moment, the actions of a chunk and the latents of the steps it covers.

Vujinovic & Kovacevic 2025, arXiv 2501.14622. ACT (Zhao et al. 2023) is the same model without the
latent loss, `bc` an MLP on the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reverie.world_models.act_jepa_config import ACTJEPAModelConfig
from reverie.world_models.chunk_heads import (
    ActionDecoder,
    ChunkMLP,
    GuardProjector,
    LatentPredictor,
    StyleEncoder,
)
from reverie.world_models.collapse import (
    sigreg,
    unit_directions,
    vicreg_covariance,
    vicreg_variance,
)
from reverie.world_models.core import Batch
from reverie.world_models.image_stems import ImageTokens
from reverie.world_models.losses import barlow_loss, gaussian_kl, masked_l1
from reverie.world_models.targets import ema_copy, ema_update
from reverie.world_models.token_encoder import TokenEncoder
from reverie.world_models.transformer import Trunk, sine_positions

OWN_TARGETS = ("stop_gradient", "none", "sigreg", "vicreg", "barlow")
"""Guards whose targets come from the learning encoder itself."""

REGULARISED = ("sigreg", "vicreg", "barlow")
"""Guards that are a loss, with the gradient let into the targets."""


class ContextTokens(NamedTuple):
    """States of the model with any leading dimensions."""

    tokens: Tensor
    """[..., S, D]: task, the tokens of every input in the order of the settings, style."""

    def detach(self) -> ContextTokens:
        """The same values without gradient."""
        return ContextTokens(self.tokens.detach())


class ACTJEPAModel(nn.Module):
    """Context encoder, action decoder, latent predictor, and the EMA copy that gives targets.

    Modules stay in eval mode but inside `losses(..., train=True)`: batch norm uses and moves
    batch statistics there alone, and only there something is dropped. In a batch, `action` is the
    one taken *at* its row, the pairing of demonstrations; a window's first row is the context.
    """

    def __init__(
        self,
        cfg: ACTJEPAModelConfig,
        *,
        action_size: int,
        vector_size: int,
        proprio_size: int = 0,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.cfg, self.action_size = cfg, action_size
        self.proprio_size = proprio_size or vector_size
        sizes = {"proprio": self.proprio_size, "state": vector_size}
        embed: dict[str, nn.Module] = {}
        for name in cfg.inputs:
            if name == "image":
                assert image_shape is not None, "inputs has image, the data has none"
                embed[name] = ImageTokens(cfg, image_shape)
            else:
                assert vector_size, f"inputs has {name}, the data has no vector"
                embed[name] = nn.Linear(sizes[name], cfg.width)
        transformer = cfg.policy == "transformer"
        trunk = Trunk(cfg.width, cfg.ffn, cfg.heads, cfg.encoder_layers if transformer else 0)
        self.encoder = TokenEncoder(nn.Embedding(cfg.task_slots, cfg.width), embed, trunk)
        grids = [len(m.place) if isinstance(m, ImageTokens) else 1 for m in embed.values()]
        self.groups = [1, *grids, 1] if cfg.vae else [1, *grids]
        self.feature_size = len(self.groups) * cfg.width
        self.policy: ActionDecoder | ChunkMLP
        if transformer:
            self.policy = ActionDecoder(cfg, action_size)
        else:
            self.policy = ChunkMLP(cfg, self.feature_size, action_size)
        self.style = StyleEncoder(cfg, vector_size, action_size) if cfg.vae else None
        # last, so that ACT begins with the weights that ACT-JEPA begins with
        predicts = cfg.w_jepa > 0
        self.predictor = LatentPredictor(cfg, action_size) if predicts else None
        self.projector = GuardProjector(cfg) if predicts and cfg.guard in REGULARISED else None
        own = not predicts or cfg.guard in OWN_TARGETS
        self.target = None if own else ema_copy(self.encoder.part(cfg.targets))
        places = sine_positions(cfg.chunk, cfg.width)
        self.register_buffer("places", places, persistent=False)
        self.places: Tensor
        self.action_conditioned = cfg.action_conditioned
        self.loss_dims = ("B", "T")
        self.loss_scales = {"action": cfg.w_action}
        if self.style is not None:
            self.loss_scales["kl"] = cfg.kl_scale
        if predicts:
            self.loss_scales["latent"] = cfg.w_jepa
        if self.projector is not None:
            self.loss_scales["guard"] = cfg.guard_scale
        self.eval()

    # the parts

    def modalities(self, obs: Batch) -> dict[str, Tensor]:
        """Inputs by name, from "vector" [..., V] and "image" [..., H, W, C]."""
        found = {}
        for name in self.cfg.inputs:
            if name == "image":
                found["image"] = obs["image"]
            else:
                vector = obs["vector"].float()
                found[name] = vector[..., : self.proprio_size] if name == "proprio" else vector
        return found

    def context(self, obs: Batch, task: Tensor) -> ContextTokens:
        """Tokens [N, S, D] of single moments: "vector" [N, V], "image" [N, H, W, C], task [N]."""
        extra = None
        if self.style is not None:  # z = 0, the mean of its prior
            extra = self.style.token.bias.expand(task.shape[0], -1)
        return ContextTokens(self.encoder.context(self.modalities(obs), task, extra=extra))

    def chunk(self, latents: ContextTokens, *, drop: float = 0.0) -> Tensor:
        """Actions [N, P, A] that follow the moments of `latents` [N].

        gradient: to latents.
        """
        mlp = isinstance(self.policy, ChunkMLP)
        out: Tensor = self.policy(self.features(latents) if mlp else latents.tokens, drop=drop)
        return out

    def predict(self, latents: ContextTokens, action: Tensor, *, drop: float = 0.0) -> Tensor:
        """Latents [N, P, K, D] of the chunk's steps, the first being that of `latents` itself.

        `action` [N, P, A] is read by an action-conditioned model only.
        gradient: to latents, and to action where it is read.
        """
        assert self.predictor is not None, "w_jepa is 0: this model predicts no latent"
        out: Tensor = self.predictor(latents.tokens, action, drop=drop)
        return out

    def update_target(self, rate: float | Tensor) -> None:
        """Move the EMA target, if there is one, by `rate` = 1 - momentum."""
        if self.target is not None:
            ema_update(self.target, self.encoder.part(self.cfg.targets), rate)

    def target_latents(self, batch: Batch) -> Tensor:
        """What the predictor is compared with: [B, P, K, D], without dropout.

        gradient: to the encoder with guards none, sigreg, vicreg and barlow; else none.
        """
        every = self.modalities(batch)
        rows = {str(name): every[name] for name in self.cfg.targets}
        encoder = self.target or self.encoder.part(self.cfg.targets)
        open_ = self.cfg.guard in ("none", *REGULARISED)
        with torch.set_grad_enabled(open_ and torch.is_grad_enabled()):
            return encoder.sequence(rows, batch["task"], batch["is_pad"], self.places)

    # the shared contract

    def encode(self, obs: Batch) -> Tensor:
        """Observations [..., *] with their "task" [...] -> features [..., F]."""
        lead = obs["task"].shape
        flat = {k: v.flatten(0, len(lead) - 1) for k, v in obs.items()}
        return self.features(self.context(flat, flat["task"])).view(*lead, -1)

    def observe(self, batch: Batch) -> ContextTokens:
        """Tokens [B, T] of every row of windows, each taken for the moment to act in."""
        lead = batch["is_pad"].shape
        flat = {k: batch[k].flatten(0, 1) for k in ("vector", "image") if k in batch}
        task = batch["task"].unsqueeze(1).expand(lead).flatten()
        return ContextTokens(self.context(flat, task).tokens.view(*lead, -1, self.cfg.width))

    def rollout(self, start: ContextTokens, actions: Tensor) -> ContextTokens:
        """Tokens [M, H] of the H < P steps that follow `start` [M].

        Predicted latents take the place of the tokens of their input; everything else stays what
        `start` showed. `actions` [M, H, A], which only an action-conditioned model reads, are
        taken from `start` on.
        gradient: to start, and to actions where they are read.
        """
        horizon, chunk = actions.shape[1], self.cfg.chunk
        if horizon >= chunk:
            raise ValueError(f"a chunk of {chunk} reaches {chunk - 1} steps ahead, not {horizon}")
        padded = nn.functional.pad(actions.float(), (0, 0, 0, chunk - horizon))
        future = self.predict(start, padded)[:, 1 : horizon + 1]
        held = start.tokens.unsqueeze(1).expand(-1, horizon, -1, -1)
        parts = list(torch.split(held, self.groups, 2))
        for k, name in enumerate(self.cfg.targets):
            place = 1 + self.cfg.inputs.index(name)
            parts[place] = future[:, :, k : k + 1].expand_as(parts[place])
        return ContextTokens(torch.cat(parts, 2))

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """Latents [B, P, K*D] of the windows' steps, as the predictor is asked for them.

        gradient: none.
        """
        return self.target_latents(batch).flatten(2)

    def features(self, latents: ContextTokens) -> Tensor:
        """Mean token of the task and of every input, concatenated: [..., F]."""
        parts = torch.split(latents.tokens, self.groups, -2)
        return torch.cat([part.mean(-2) for part in parts], -1)

    def losses(self, batch: Batch, *, train: bool = False) -> dict[str, Tensor]:
        """Losses [B, T] of windows of P rows; their means are means over rows that are no padding.

        With `train`, dropout and the batch statistics of batch norm: what an update does. Random
        draws are torch's own, in the order encoder, decoder, predictor.
        """
        drop = self.cfg.dropout if train else 0.0
        rows, valid = self.modalities(batch), ~batch["is_pad"]
        found: dict[str, Tensor] = {}
        with self._batch_statistics(train=train):
            extra = None
            if self.style is not None:
                extra, found["kl"] = self._style(self.style, batch, drop, train=train)
            first = {name: value[:, 0] for name, value in rows.items()}
            tokens = self.encoder.context(first, batch["task"], extra=extra, drop=drop)
            latents = ContextTokens(tokens)
            found["action"] = masked_l1(self.chunk(latents, drop=drop), batch["action"], valid)
            if self.predictor is None:
                return found
            predicted = self.predict(latents, batch["action"], drop=drop)
        target = self.target_latents(batch)
        found["latent"] = masked_l1(predicted.flatten(2), target.flatten(2), valid)
        if self.projector is not None:
            with self._batch_statistics(train=train):
                guard = self._guard(self.projector, predicted, target, valid)
            found["guard"] = guard.expand(valid.shape)
        return found

    def _style(
        self, style: StyleEncoder, batch: Batch, drop: float, *, train: bool
    ) -> tuple[Tensor, Tensor]:
        """Token of z, and its KL spread over the rows [B, T]."""
        vector = batch["vector"][:, 0].float()
        mean, log_var = style(vector, batch["action"].float(), batch["is_pad"], drop=drop)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var) if train else mean
        kl = gaussian_kl(mean, log_var)
        return style.token(z), kl.unsqueeze(1).expand(batch["is_pad"].shape)

    def _guard(
        self, projector: GuardProjector, predicted: Tensor, target: Tensor, valid: Tensor
    ) -> Tensor:
        """Regulariser of the targets at a few offsets, each on its own: a scalar.

        Tokens of all offsets together vary by their place alone, and would hide a collapse. A
        window that has no step at an offset shows its first one there, which always exists.
        """
        cfg = self.cfg
        last, gaps = cfg.chunk - 1, max(1, cfg.guard_offsets - 1)
        offsets = [round(last * k / gaps) for k in range(cfg.guard_offsets)]
        total = predicted.new_zeros(())
        for step in offsets:
            here = valid[:, step, None, None]
            own = projector(torch.where(here, target[:, step], target[:, 0])).flatten(0, 1)
            if cfg.guard == "sigreg":
                normal = torch.randn(own.shape[1], cfg.sigreg_slices, device=own.device)
                total = total + sigreg(own, unit_directions(normal))
            elif cfg.guard == "vicreg":
                total = total + vicreg_variance(own) + vicreg_covariance(own) / 25.0
            else:
                other = projector(torch.where(here, predicted[:, step], predicted[:, 0]))
                total = total + barlow_loss(other.flatten(0, 1), own) / own.shape[1]
        return total / len(offsets)

    @contextmanager
    def _batch_statistics(self, *, train: bool) -> Iterator[None]:
        """Batch norm of stem and projector in train mode, if at all, inside the block only."""
        parts = [m for m in (self.encoder.embed, self.projector) if m is not None]
        for part in parts:
            part.train(train)
        try:
            yield
        finally:
            for part in parts:
                part.eval()
