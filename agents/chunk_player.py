"""Playing action chunks: whole, in part, or averaged over predictions (temporal ensembling)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reverie.agents.interface import Carry

Predict = Callable[[dict[str, Tensor], Tensor], Tensor]
"""Observations [n, ...] and tasks [n] -> action chunks [n, P, A]."""


def empty_plan(num_envs: int, chunk: int, actions: int, device: torch.device) -> Carry:
    """Carry of N slots that have predicted nothing yet."""
    plan = torch.zeros(num_envs, chunk, actions, device=device)
    # past its end: the first call predicts
    age = torch.full((num_envs,), chunk, device=device)
    weight = torch.zeros(num_envs, chunk, device=device)
    return {"plan": plan, "age": age, "weight": weight, "count": weight.clone()}


def next_action(
    carry: Carry,
    obs: dict[str, Tensor],
    is_first: Tensor,
    *,
    task: Tensor,
    predict: Predict,
    execute: int,
) -> tuple[Carry, Tensor]:
    """Raw actions [N, A] from plans of which `execute` actions are played before the next one.

    Only slots whose plan is used up, or whose episode begins, predict.
    """
    age = carry["age"].masked_fill(is_first, execute)
    due = age >= execute
    rows = due.nonzero().squeeze(1)
    plan = carry["plan"]
    if len(rows):
        fresh = predict({key: value[rows] for key, value in obs.items()}, task[rows])
        plan = plan.index_copy(0, rows, fresh)
        age = age.masked_fill(due, 0)
    action = plan.take_along_dim(age[:, None, None], 1).squeeze(1)
    return {**carry, "plan": plan, "age": age + 1}, action


def ensembled_action(
    carry: Carry,
    obs: dict[str, Tensor],
    is_first: Tensor,
    *,
    task: Tensor,
    predict: Predict,
    decay: float,
) -> tuple[Carry, Tensor]:
    """Raw actions [N, A], the mean of all predictions made of this step (ACT, algorithm 2).

    Weight exp(-decay i) for the i-th oldest. Predictions are counted: a step whose mean is all
    zeros is not taken for an empty one.
    """
    keep = (~is_first).float().unsqueeze(1)
    mean, weight, count = (_advance(carry[key]) for key in ("plan", "weight", "count"))
    weight, count = weight * keep, count * keep
    own = torch.exp(-decay * count)
    total = weight + own
    share = (own / total).unsqueeze(-1)
    mean = torch.lerp(mean, predict(obs, task), share)
    plan = {**carry, "plan": mean, "weight": total, "count": count + 1}
    return plan, mean[:, 0]


def _advance(rows: Tensor) -> Tensor:
    """One step on: what was of the next step is of this one, nothing is known of the last."""
    return torch.cat([rows[:, 1:], torch.zeros_like(rows[:, :1])], 1)
