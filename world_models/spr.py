"""SPR's model: a convolutional encoder that predicts its own future latents.

Schwarzer et al. 2021, arXiv 2007.05929; SR-SPR (D'Oro et al. 2023) and BBF (arXiv 2305.19452) by
switches. The Q network lives here as well, because its first layers are the projection.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reverie.world_models.conv_encoders import ImpalaEncoder, NatureEncoder, build_encoder
from reverie.world_models.conv_transition import ConvTransition
from reverie.world_models.core import Batch
from reverie.world_models.losses import spr_loss
from reverie.world_models.ops import renormalise, sequence_mask
from reverie.world_models.q_network import DuelingC51
from reverie.world_models.spr_config import SPRModelConfig
from reverie.world_models.targets import ema_copy, ema_update


class SpatialLatents(NamedTuple):
    """States of the model with any leading dimensions."""

    z: Tensor
    """[..., C, h, w], renormalised to [0, 1] per state."""

    def detach(self) -> SpatialLatents:
        """The same values without gradient."""
        return SpatialLatents(self.z.detach())


class Network(NamedTuple):
    """An encoder and the Q head that reads it: online, or a target copy."""

    encoder: NatureEncoder | ImpalaEncoder
    head: DuelingC51

    def latent(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Renormalised latents [N, C, h, w], float32, of float images [N, S*C, H, W]."""
        return renormalise(self.encoder(image, generator).float())


def stack_frames(image: Tensor, is_first: Tensor, history: int) -> Tensor:
    """Stacks [B, T, S, H, W, C] of single frames [B, T, H, W, C], oldest first.

    Frames older than the episode's first row, or than the window, are zeros.
    """
    stacks, alive = [image], torch.ones_like(is_first)
    shifted, first = image, is_first
    for _ in range(history - 1):
        # the frame before row t exists if neither t nor a later row of the stack began the episode
        alive = alive & ~first
        alive[:, 0] = False
        shifted = torch.cat([torch.zeros_like(shifted[:, :1]), shifted[:, :-1]], 1)
        first = torch.cat([torch.ones_like(first[:, :1]), first[:, :-1]], 1)
        stacks.append(shifted * alive[..., None, None, None])
    return torch.stack(stacks[::-1], 2)


def to_planes(stack: Tensor) -> Tensor:
    """uint8 stacks [..., S, H, W, C] -> uint8 planes [..., S*C, H, W]."""
    return stack.movedim(-1, -3).flatten(-4, -3)


class SPRModel(nn.Module):
    """Encoder, transition, dueling Q head (= projection), predictor, and the target copies.

    Modules stay in eval mode but for the transition inside `predict(..., train=True)`: batch norm
    uses and moves batch statistics there alone. Not recurrent: a latent is a function of one stack.
    """

    action_conditioned = True

    def __init__(
        self, cfg: SPRModelConfig, *, action_size: int, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.cfg, self.action_size = cfg, action_size
        height, width, channels = image_shape
        self.encoder = build_encoder(cfg, cfg.history * channels)
        with torch.no_grad():
            probe = torch.zeros(1, cfg.history * channels, height, width)
            self.latent_shape = tuple(self.encoder(probe).shape[1:])
        size = int(torch.Size(self.latent_shape).numel())
        self.head = DuelingC51(size, action_size, cfg)
        self.transition: ConvTransition | None = None
        self.predictor: nn.Linear | None = None
        if cfg.predictions:
            self.transition = ConvTransition(
                self.latent_shape[0], action_size, norm=cfg.transition_norm
            )
            self.predictor = nn.Linear(self.head.projection_size, self.head.projection_size)
        own = bool(cfg.predictions) and cfg.target == "own"
        self.target_encoder = ema_copy(self.encoder) if own else None
        self.target_head = ema_copy(self.head) if own else None
        lags = cfg.q_target_rate < 1.0
        self.q_target_encoder = ema_copy(self.encoder) if lags else None
        self.q_target_head = ema_copy(self.head) if lags else None
        atoms = torch.linspace(-cfg.value_range, cfg.value_range, cfg.atoms)
        self.register_buffer("atom_values", atoms, persistent=False)
        self.atom_values: Tensor
        self.loss_scales = {"spr": cfg.spr_scale} if cfg.predictions else {}
        self.loss_dims = ("B",)
        self.eval()

    # networks

    @property
    def online(self) -> Network:
        """What learns."""
        return Network(self.encoder, self.head)

    @property
    def q_target(self) -> Network:
        """What bootstraps the return: the online network itself, or its EMA copy."""
        if self.q_target_encoder is None or self.q_target_head is None:
            return self.online
        return Network(self.q_target_encoder, self.q_target_head)

    @property
    def prediction_target(self) -> Network:
        """What is predicted: a copy of its own, the Q target, or what learns (a control)."""
        if self.cfg.target == "online":
            return self.online
        if self.target_encoder is None or self.target_head is None:
            return self.q_target
        return Network(self.target_encoder, self.target_head)

    @torch.no_grad()
    def update_prediction_target(self) -> None:
        """Move the prediction target's own copy towards the online weights.

        Called before the optimiser steps, as in the paper's code: with rate 1 the target is the
        online network of one gradient step ago.
        """
        if self.target_encoder is not None and self.target_head is not None:
            ema_update(self.target_encoder, self.encoder, self.cfg.target_rate)
            ema_update(self.target_head, self.head, self.cfg.target_rate)

    def update_q_target(self, rate: float | Tensor) -> None:
        """Move the Q target's EMA copy, if there is one."""
        if self.q_target_encoder is not None and self.q_target_head is not None:
            ema_update(self.q_target_encoder, self.encoder, rate)
            ema_update(self.q_target_head, self.head, rate)

    def value(self, logits: Tensor) -> Tensor:
        """Expected returns [...] of logits [..., K].

        gradient: to logits.
        """
        return (logits.softmax(-1) * self.atom_values).sum(-1)

    # the paper's verbs

    def predict(self, latent: Tensor, action: Tensor, *, train: bool = False) -> Tensor:
        """Predictions y_1..y_K [N, K, P] from latents [N, C, h, w] under actions [N, K, A].

        gradient: to latent and to the weights of transition, projection and predictor.
        """
        assert self.predictor is not None
        states = self._unroll(latent, action, train=train).flatten(2)
        out: Tensor = self.predictor(self.head.project(states.flatten(0, 1)))
        return out.view(*states.shape[:2], -1)

    def target_projection(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Targets y~ [N, P] of float images [N, S*C, H, W].

        gradient: none, but with `target` online.
        """
        network = self.prediction_target
        with torch.set_grad_enabled(self.cfg.target == "online" and torch.is_grad_enabled()):
            return network.head.project(network.latent(image, generator).flatten(1))

    def _unroll(self, latent: Tensor, action: Tensor, *, train: bool) -> Tensor:
        assert self.transition is not None, "no transition: predictions is 0"
        self.transition.train(train)
        states, state = [], latent
        for step in action.unbind(1):
            state = self.transition(state, step)
            states.append(state)
        self.transition.eval()
        return torch.stack(states, 1)

    # the shared contract

    def encode(self, obs: dict[str, Tensor]) -> Tensor:
        """Observations, here uint8 stacks [..., S, H, W, C] under "image" -> latents [..., F]."""
        planes = to_planes(obs["image"])
        latent = self.online.latent(planes.flatten(0, -4).float() / 255.0)
        return latent.reshape(*planes.shape[:-3], -1)

    def observe(self, batch: Batch) -> SpatialLatents:
        """Latents [B, T] of windows of single frames; stacks begin with the episode or window."""
        stacks = stack_frames(batch["image"], batch["is_first"], self.cfg.history)
        z = self.encode({"image": stacks})
        return SpatialLatents(z.view(*z.shape[:-1], *self.latent_shape))

    def rollout(self, start: SpatialLatents, actions: Tensor) -> SpatialLatents:
        """Open-loop latents [M, H] from `start` [M] under one-hot actions [M, H, A].

        gradient: to start and actions.
        """
        return SpatialLatents(self._unroll(start.z, actions, train=False))

    def targets(self, batch: Batch) -> Tensor:
        """Projections [B, K, P] of rows 1..K: what row 0 predicts.

        gradient: none, but with `target` online.
        """
        count = self.cfg.predictions
        stacks = stack_frames(batch["image"], batch["is_first"], self.cfg.history)
        planes = to_planes(stacks[:, 1 : count + 1]).float() / 255.0
        target = self.target_projection(planes.flatten(0, 1))
        return target.view(-1, count, target.shape[-1])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Self-prediction from row 0 of windows of at least K + 2 rows, without augmentation: [B].

        The agent adds the Q loss, importance weights and augmentation.
        """
        if not self.cfg.predictions:
            return {}
        count = self.cfg.predictions
        start = self.observe({k: batch[k][:, :1] for k in ("image", "is_first")}).z[:, 0]
        predicted = self.predict(start, batch["action"][:, 1 : count + 1].float())
        mask = sequence_mask(batch["is_last"][:, 1 : count + 2])
        return {"spr": spr_loss(predicted, self.targets(batch), mask)}

    def features(self, latents: SpatialLatents) -> Tensor:
        """The flattened latent [..., F]."""
        return latents.z.flatten(-3)
