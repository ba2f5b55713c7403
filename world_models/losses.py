"""Ledger of loss equations, each per row [B, T]; means and weights are taken by the caller."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reverie.world_models.ops import categorical_kl, normal_log_prob


def kl_balanced(posterior: Tensor, prior: Tensor, free_nats: float) -> tuple[Tensor, Tensor]:
    """`max(f, KL[sg q || p])` and `max(f, KL[q || sg p])`, probabilities [B, T, S, C] -> [B, T].

    Free bits clip each step's KL summed over the groups (DreamerV3, eq. 5; MuDreamer).
    gradient: the first to prior alone, the second to posterior alone; none below `free_nats`.
    """
    dyn = categorical_kl(posterior.detach(), prior)
    rep = categorical_kl(posterior, prior.detach())
    return dyn.clamp_min(free_nats), rep.clamp_min(free_nats)


def continue_nll(logit: Tensor, is_terminal: Tensor) -> Tensor:
    """Binary cross-entropy [B, T] of a continue logit against `1 - terminal` (DreamerV3).

    gradient: to logit.
    """
    target = 1.0 - is_terminal.float()
    return F.binary_cross_entropy_with_logits(logit.float(), target, reduction="none")


def continuous_action_nll(mean: Tensor, std: Tensor, action: Tensor) -> Tensor:
    """`-log N(a_{t-1}; mean, std)` [B, T] of the executed action (MuDreamer, action predictor).

    gradient: to mean and std; none to action.
    """
    return -normal_log_prob(action.detach(), mean.float(), std.float())


def discrete_action_nll(prob: Tensor, action: Tensor) -> Tensor:
    """`-log p(a_{t-1})` [B, T] of a one-hot action under probabilities [B, T, A] (MuDreamer).

    gradient: to prob; none to action.
    """
    return -torch.log((prob * action.detach()).sum(-1).clamp_min(1e-12))


def image_mse(prediction: Tensor, image: Tensor) -> Tensor:
    """Squared error [B, T] summed over the pixels [B, T, C, H, W] (DreamerV3 v1 decoder).

    gradient: to prediction; none to image.
    """
    return (prediction.float() - image.detach()).square().sum((-3, -2, -1))


def actor_loss(objective: Tensor, entropy: Tensor, weight: Tensor, entropy_scale: float) -> Tensor:
    """`-w (objective + eta H)` [M, H] (DreamerV3 v1; the weights multiply the entropy too).

    `objective` is the advantage (gradient through the dynamics) or `sg(advantage) log pi`.
    gradient: to objective and entropy; none to weight.
    """
    return -weight.detach() * (objective + entropy_scale * entropy)
