"""What changes over a run of the SPR family: horizon, importance weights, and resets."""

from __future__ import annotations

import torch
from torch import nn

from reverie.agents.spr_config import PriorityConfig, ResetConfig, ReturnConfig
from reverie.world_models.spr import SPRModel


def reset_due(cfg: ResetConfig, updates: int, total: int) -> bool:
    """Whether a reset precedes the next update; never in the last interval of the run."""
    if not cfg.every or updates == 0 or updates % cfg.every:
        return False
    return total - updates >= cfg.every


def since_reset(cfg: ResetConfig, updates: int, total: int) -> int:
    """Updates since the last reset, or since the start of the run."""
    if not cfg.every:
        return updates
    last = max(0, total // cfg.every - 1) * cfg.every
    return updates - min(updates // cfg.every * cfg.every, last)


def horizon(
    returns: ReturnConfig, resets: ResetConfig, updates: int, total: int
) -> tuple[int, float]:
    """N and gamma of the next update: n and 1 - gamma move geometrically after a reset (BBF)."""
    share = min(1.0, since_reset(resets, updates, total) / returns.anneal_updates)
    n_step, gamma = float(returns.n_step), returns.gamma
    if returns.n_step_start is not None:
        n_step = returns.n_step_start ** (1.0 - share) * n_step**share
    if returns.gamma_start is not None:
        gamma = 1.0 - (1.0 - returns.gamma_start) ** (1.0 - share) * (1.0 - gamma) ** share
    return round(n_step), gamma


def importance_exponent(cfg: PriorityConfig, updates: int, total: int) -> float:
    """Exponent of the importance weights, linear over the run's updates."""
    share = min(1.0, updates / max(1, total))
    return cfg.beta_start + share * (cfg.beta_end - cfg.beta_start)


@torch.no_grad()
def shrink_and_perturb(
    model: SPRModel, fresh: SPRModel, fresh_target: SPRModel, *, keep: float
) -> None:
    """Reset in place: encoder and transition keep a share, head and predictor start afresh.

    The Q target is treated the same way with a draw of its own (SR-SPR, BBF). Running statistics
    and the prediction target's own copy, which follow, are left to the next updates.
    """
    _mix(model.encoder, fresh.encoder, keep)
    _mix(model.head, fresh.head, 0.0)
    if model.transition is not None and fresh.transition is not None:
        _mix(model.transition, fresh.transition, keep)
    if model.predictor is not None and fresh.predictor is not None:
        _mix(model.predictor, fresh.predictor, 0.0)
    if model.q_target_encoder is not None and model.q_target_head is not None:
        _mix(model.q_target_encoder, fresh_target.encoder, keep)
        _mix(model.q_target_head, fresh_target.head, 0.0)


def _mix(module: nn.Module, fresh: nn.Module, keep: float) -> None:
    for old, new in zip(module.parameters(), fresh.parameters(), strict=True):
        old.copy_(keep * old + (1.0 - keep) * new.to(old.device))
