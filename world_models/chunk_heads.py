"""What reads the context tokens: action decoder, latent predictor, CVAE, guard projector."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.world_models.act_jepa_config import ACTJEPAModelConfig
from reverie.world_models.transformer import Block, Trunk, sine_positions


class ActionDecoder(nn.Module):
    """P learned queries look at the context; a linear layer makes actions of them (ACT)."""

    def __init__(self, cfg: ACTJEPAModelConfig, action_size: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(cfg.chunk, cfg.width))
        self.blocks = nn.ModuleList(
            Block(cfg.width, cfg.ffn, cfg.heads, cross=True) for _ in range(cfg.decoder_layers)
        )
        self.norm = nn.LayerNorm(cfg.width)
        self.action = nn.Linear(cfg.width, action_size)

    def forward(self, context: Tensor, *, drop: float = 0.0) -> Tensor:
        """Context [N, S, D] -> actions [N, P, A]."""
        x = self.query.expand(context.shape[0], -1, -1)
        for block in self.blocks:
            x = block(x, context, drop=drop)
        out: Tensor = self.action(self.norm(x))
        return out


class ChunkMLP(nn.Module):
    """Actions of a whole chunk from the context at once: behaviour cloning without attention."""

    def __init__(self, cfg: ACTJEPAModelConfig, in_size: int, action_size: int) -> None:
        super().__init__()
        sizes = [in_size] + [cfg.ffn] * cfg.mlp_layers
        self.hidden = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.action = nn.Linear(sizes[-1], cfg.chunk * action_size)
        self.chunk = cfg.chunk

    def forward(self, feature: Tensor, *, drop: float = 0.0) -> Tensor:
        """Features [N, F] -> actions [N, P, A]."""
        x = feature
        for layer in self.hidden:
            x = F.relu(layer(x))
            x = F.dropout(x, drop) if drop else x
        out: Tensor = self.action(x)
        return out.view(out.shape[0], self.chunk, -1)


class LatentPredictor(nn.Module):
    """Narrow transformer whose queries, one per step and target, become predicted latents.

    Action-conditioned, the query of step i carries the action that led there, and looks at no
    later step: every prediction is a function of the context and of the actions before it.
    """

    def __init__(self, cfg: ACTJEPAModelConfig, action_size: int) -> None:
        super().__init__()
        narrow, self.kinds, self.chunk = cfg.predictor_width, len(cfg.targets), cfg.chunk
        self.entry = nn.Linear(cfg.width, narrow)
        self.query = nn.Parameter(torch.randn(self.kinds * cfg.chunk, narrow))
        self.blocks = nn.ModuleList(
            Block(narrow, 4 * narrow, cfg.heads, cross=True) for _ in range(cfg.predictor_layers)
        )
        self.norm = nn.LayerNorm(narrow)
        self.out = nn.Linear(narrow, cfg.width)
        self.action = nn.Linear(action_size, narrow) if cfg.action_conditioned else None
        step = torch.arange(cfg.chunk).repeat(self.kinds)
        self.register_buffer("causal", step.unsqueeze(0) <= step.unsqueeze(1), persistent=False)
        self.causal: Tensor

    def forward(self, context: Tensor, action: Tensor, *, drop: float = 0.0) -> Tensor:
        """Context [N, S, D] and actions taken [N, P, A] -> latents [N, P, K, D] of K targets."""
        memory = self.entry(context)
        x, mask = self.query.expand(len(context), -1, -1), None
        if self.action is not None:
            led_here = F.pad(self.action(action)[:, :-1], (0, 0, 1, 0))
            x, mask = x + led_here.repeat(1, self.kinds, 1), self.causal
        for block in self.blocks:
            x = block(x, memory, mask=mask, drop=drop)
        out: Tensor = self.out(self.norm(x))
        return out.view(len(out), self.kinds, self.chunk, -1).movedim(1, 2)


class StyleEncoder(nn.Module):
    """ACT's CVAE encoder: [CLS | first vector | actions] -> mean and log-variance of z."""

    def __init__(self, cfg: ACTJEPAModelConfig, vector_size: int, action_size: int) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(cfg.width))
        self.vector = nn.Linear(vector_size, cfg.width)
        self.action = nn.Linear(action_size, cfg.width)
        self.trunk = Trunk(cfg.width, cfg.ffn, cfg.heads, cfg.vae_layers)
        self.latent = nn.Linear(cfg.width, 2 * cfg.vae_size)
        self.token = nn.Linear(cfg.vae_size, cfg.width)
        places = sine_positions(cfg.chunk + 2, cfg.width)
        self.register_buffer("places", places, persistent=False)
        self.places: Tensor

    def forward(
        self, vector: Tensor, action: Tensor, is_pad: Tensor, *, drop: float
    ) -> tuple[Tensor, Tensor]:
        """Vectors [B, V], actions [B, P, A], padding [B, P] -> mean and log-variance [B, Z]."""
        cls = self.cls.expand(len(vector), 1, -1)
        x = torch.cat([cls, self.vector(vector).unsqueeze(1), self.action(action)], 1)
        real = F.pad(~is_pad, (2, 0), value=True)
        out = self.trunk(x + self.places, mask=real[:, None, None, :], drop=drop)
        mean, log_var = self.latent(out[:, 0]).chunk(2, -1)
        return mean, log_var


class GuardProjector(nn.Module):
    """Linear, batch norm, GELU, linear: takes the LayerNorm's fixed scale away (LeWM)."""

    def __init__(self, cfg: ACTJEPAModelConfig) -> None:
        super().__init__()
        hidden = 2 * cfg.width
        self.layers = nn.Sequential(
            nn.Linear(cfg.width, hidden),
            nn.BatchNorm1d(hidden),
            nn.GELU(),
            nn.Linear(hidden, cfg.guard_width),
        )

    def forward(self, latent: Tensor) -> Tensor:
        """Latents [..., D] -> [..., guard_width]."""
        out: Tensor = self.layers(latent.flatten(0, -2))
        return out.view(*latent.shape[:-1], -1)
