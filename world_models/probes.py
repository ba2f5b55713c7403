"""Ledger of linear probes: what a frozen representation says about something else."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def ridge_fit(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight [F, O] and bias [O] of the ridge regression of y [N, O] on x [N, F], in float64.

    Minimises `1/N sum_n |y_n - b - W^T u_n|^2 + penalty |W|^2`, u being x with mean 0 and standard
    deviation 1 per feature: the penalty means the same for every N and every unit of x. What is
    returned acts on x itself. A feature that varies by rounding alone (1e-6 of its mean) gets
    weight 0. Solved in the smaller of N and F.
    gradient: none.
    """
    if not penalty > 0:
        raise ValueError(f"a ridge penalty must be > 0, found {penalty}: try 1e-3")
    x, y = x.double(), y.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    std = x.std(0, correction=0)
    scale = torch.where(std > 1e-6 * x_mean.abs() + 1e-12, 1.0 / std, 0.0)
    u, v = (x - x_mean) * scale, y - y_mean
    if u.shape[0] < u.shape[1]:
        weight = u.T @ _solve(u @ u.T, v, penalty * len(u))
    else:
        weight = _solve(u.T @ u, u.T @ v, penalty * len(u))
    weight = scale.unsqueeze(-1) * weight
    return weight, y_mean - x_mean @ weight


def ridge_predict(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x W + b` [N, O] of x [N, F], in the float64 of `ridge_fit`.

    gradient: to every input.
    """
    return x.to(weight.dtype) @ weight + bias


def _solve(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """`(gram + ridge I)^-1 right`, by Cholesky."""
    gram.diagonal().add_(ridge)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))
