"""Ledger of loss equations, per row [B, T] or sample [B]; means and weights are the caller's."""

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


def spr_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """`1/K sum_k mask_k ||p_k/|p_k| - y_k/|y_k|||^2` [B] of [B, K, P] and [B, K], in float32 (SPR).

    Norms below 1e-3 count as 1e-3. Equals `2 - 2 cos`, masked steps counted in the mean; weight
    5 on K = 5 steps is the paper's -cosine, summed over k, with weight 2.
    gradient: to prediction; none to target.
    """
    error = F.normalize(prediction.float(), dim=-1, eps=1e-3) - F.normalize(
        target.detach().float(), dim=-1, eps=1e-3
    )
    return (mask * error.square().sum(-1)).mean(1)


def categorical_nll(logits: Tensor, target: Tensor) -> Tensor:
    """`-sum_k y_k log softmax(logits)_k` [B] of [B, K], in float32 (C51's cross-entropy).

    gradient: to logits; none to target.
    """
    return -(target.detach() * F.log_softmax(logits.float(), dim=-1)).sum(-1)


def distribution_kl(nll: Tensor, target: Tensor) -> Tensor:
    """`KL[y || p] = nll + sum_k y_k log y_k` [B], from the cross-entropy [B] of targets [B, K].

    What SPR draws transitions by.
    gradient: none.
    """
    target = target.detach()
    log_target = torch.log(target.clamp_min(1e-12))
    return nll.detach() + (target * log_target).sum(-1)


def importance_weight(priority: Tensor, beta: float | Tensor) -> Tensor:
    """`(p + 1e-5)^-beta` [B] of stored priorities [B], over the batch maximum (SPR's code).

    gradient: none.
    """
    weight = (priority.detach() + 1e-5) ** -beta
    return weight / weight.max()


def barlow_loss(left: Tensor, right: Tensor, off_diagonal: float = 5e-3) -> Tensor:
    """`sum_i (1 - C_ii)^2 + l sum_{i != j} C_ij^2` [] of two views [N, D] (Barlow Twins).

    C is the cross-correlation of the batch-standardised views (variance + 1e-5, as batch norm),
    in float32 under autocast too.
    gradient: to both.
    """
    with torch.autocast(left.device.type, enabled=False):
        left, right = _standardise(left.float()), _standardise(right.float())
        same = torch.eye(left.shape[1], device=left.device)
        error = (left.T @ right / len(left) - same).square()
        return (error * torch.where(same > 0, 1.0, off_diagonal)).sum()


def masked_l1(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """`valid / mean(valid) * mean |p - y|` [B, T] of [B, T, ...], over the feature axes (ACT-JEPA).

    Its mean over B and T is the mean over the valid entries [B, T] alone: padding neither counts
    nor dilutes, whatever it holds. 0 where nothing is valid.
    gradient: to prediction and target, of valid entries; the caller detaches a target that is not
    to move.
    """
    assert prediction.shape == target.shape, f"{prediction.shape} against {target.shape}"
    weight = valid.detach().float()
    error = (prediction.float() - target.float()).reshape(*weight.shape, -1)
    # masked before the absolute value: a NaN in the padding reaches neither loss nor gradient
    error = torch.where(weight.unsqueeze(-1) > 0, error, 0.0).abs()
    return error.mean(-1) * (weight / weight.mean().clamp_min(1e-12))


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """`KL[N(m, s^2) || N(0, I)] = 1/2 sum_z (m^2 + s^2 - 1 - ln s^2)` [B] of [B, Z] (ACT's CVAE).

    gradient: to both.
    """
    mean, log_var = mean.float(), log_var.float()
    return 0.5 * (mean.square() + torch.exp(log_var) - 1.0 - log_var).sum(-1)


def _standardise(x: Tensor) -> Tensor:
    """Columns of [N, D] to mean 0 and variance 1."""
    x = x - x.mean(0)
    return x * torch.rsqrt(x.square().mean(0) + 1e-5)
