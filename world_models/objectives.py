"""Representation objectives by name: a preset lists which are active, and their weights.

An objective maps the model and one observed window to a loss [B, T]. Adding one is a function here
and its name in `objective_scales`; no other code changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reverie.world_models.config import WorldModelConfig
from reverie.world_models.encoders import normalise_image
from reverie.world_models.extra_objectives import barlow_objective, spr_objective
from reverie.world_models.losses import (
    continue_nll,
    continuous_action_nll,
    discrete_action_nll,
    image_mse,
    kl_balanced,
)
from reverie.world_models.nets import normal_parameters
from reverie.world_models.ops import lambda_return, two_hot_mean, two_hot_nll, unimix

if TYPE_CHECKING:
    from reverie.world_models.mudreamer import MuDreamerModel, Window

Objective = Callable[["MuDreamerModel", "Window"], Tensor]


def reward_loss(model: MuDreamerModel, window: Window) -> Tensor:
    """Two-hot cross-entropy of r_t given s_t."""
    return two_hot_nll(model.reward(window.feature), window.batch["reward"], model.bins)


def continue_loss(model: MuDreamerModel, window: Window) -> Tensor:
    """Cross-entropy of `1 - terminal_t` given s_t."""
    logit = model.cont(window.feature).squeeze(-1)
    return continue_nll(logit, window.batch["is_terminal"])


def value_target(model: MuDreamerModel, window: Window) -> tuple[Tensor, Tensor]:
    """Replay lambda-return R_t and its loss weight, both [B, T] (MuDreamer, value predictor).

    Bootstrapped by an EMA network without off-policy correction. Weight 0 where no next row
    exists: at `is_last` and in the window's last row.
    gradient: none.
    """
    batch, cfg = window.batch, model.cfg
    with torch.no_grad():
        value = model.bootstrap_value(window.feature)
        discount = cfg.gamma * (1.0 - batch["is_terminal"][:, 1:].float())
        returns = lambda_return(
            batch["reward"][:, 1:].float(),
            discount,
            value[:, 1:],
            lambda_=cfg.lambda_,
            is_last_tp1=batch["is_last"][:, 1:],
        )
        weight = 1.0 - batch["is_last"].float()
        weight = torch.cat([weight[:, :-1], torch.zeros_like(weight[:, -1:])], 1)
        return torch.cat([returns, value[:, -1:]], 1), weight


def value_loss(model: MuDreamerModel, window: Window) -> Tensor:
    """Two-hot cross-entropy of the replay return given s_t, plus the optional slow regulariser."""
    assert model.value is not None and model.slow_value is not None
    target, weight = value_target(model, window)
    logits = model.value(window.feature)
    loss = two_hot_nll(logits, target, model.bins)
    if model.cfg.value_slow_reg:
        with torch.no_grad():
            slow = two_hot_mean(model.slow_value(window.feature), model.bins)
        loss = loss + model.cfg.value_slow_reg * two_hot_nll(logits, slow, model.bins)
    return weight * loss


def action_loss(model: MuDreamerModel, window: Window) -> Tensor:
    """`-log p(a_{t-1} | x_t, s_{t-1})`, masked where no action led to the row (MuDreamer).

    Reads neither h_t nor z_t: both are functions of the action, the label would leak.
    """
    assert model.action is not None
    previous = window.feature[:, :-1]
    if model.cfg.action_state == "prior":
        previous = torch.cat([window.latents.h, window.prior_sample()], -1)[:, :-1]
    raw = model.action(torch.cat([window.embed[:, 1:], previous], -1))
    action = window.batch["action"][:, 1:].float()
    if model.discrete:
        nll = discrete_action_nll(unimix(raw, model.cfg.unimix), action)
    else:
        nll = continuous_action_nll(*normal_parameters(raw, 0.1, 1.0), action)
    nll = nll * (1.0 - window.reset[:, 1:].float())
    return torch.cat([torch.zeros_like(nll[:, :1]), nll], 1)


def decoder_loss(model: MuDreamerModel, window: Window) -> Tensor:
    """Summed squared pixel error given s_t; a detached decoder trains nothing but itself."""
    assert model.decoder is not None
    feature = window.feature.detach() if model.cfg.decoder == "detached" else window.feature
    return image_mse(model.decoder(feature), normalise_image(window.batch["image"]))


def kl_losses(model: MuDreamerModel, window: Window) -> dict[str, Tensor]:
    """Both halves of the balanced KL, from the same mixed probabilities that z was drawn from."""
    posterior = unimix(window.latents.logits, model.cfg.unimix)
    dyn, rep = kl_balanced(posterior, window.prior_prob, model.cfg.free_nats)
    return {"dyn": dyn, "rep": rep}


OBJECTIVES: dict[str, Objective] = {
    "reward": reward_loss,
    "continue": continue_loss,
    "value": value_loss,
    "action": action_loss,
    "decoder": decoder_loss,
    "spr": spr_objective,
    "barlow": barlow_objective,
}


def objective_scales(cfg: WorldModelConfig) -> dict[str, float]:
    """Weight of every active loss of a configuration (MuDreamer, sec. 6 of the specification)."""
    scales = {"dyn": cfg.kl_dyn, "rep": cfg.kl_rep}
    scales |= {"reward": cfg.pred_scale, "continue": cfg.pred_scale}
    scales |= {str(name): cfg.pred_scale for name in cfg.heads}
    if cfg.decoder != "none":
        scales["decoder"] = 1.0
    further = {"spr": cfg.spr_scale, "barlow": cfg.barlow_scale}
    return scales | {str(name): further[name] for name in cfg.objectives}
