"""EMA target networks: one rule for parameters, one for buffers."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
Number = TypeVar("Number", float, Tensor)


def ema_copy(module: M) -> M:
    """Frozen copy of `module`, in eval mode for good, to be moved by `ema_update`.

    gradient: none to its parameters.
    """
    target = copy.deepcopy(module).eval()
    for parameter in target.parameters():
        parameter.requires_grad_(False)
    return target


@torch.no_grad()
def ema_update(target: nn.Module, source: nn.Module, rate: float | Tensor) -> None:
    """`target <- target + rate (source - target)` on parameters; floating buffers the same way.

    Integer buffers (batch counters) are copied. A tensor `rate` keeps the step on the device
    (rate 0 leaves every value as it is).
    gradient: none (BYOL; SPR; DreamerV3's slow critic uses rate 0.02).
    """
    pairs: list[tuple[Tensor, Tensor]] = list(
        zip(target.parameters(), source.parameters(), strict=True)
    )
    for mine, other in zip(target.buffers(), source.buffers(), strict=True):
        if mine.is_floating_point():
            pairs.append((mine, other))
        else:
            mine.copy_(other)
    own, new = [p for p, _ in pairs], [q.detach() for _, q in pairs]
    if isinstance(rate, Tensor):
        # _foreach_lerp_ takes no tensor weight; the difference keeps the rate on the device
        change = list(torch._foreach_sub(new, own))
        torch._foreach_mul_(change, rate)
        torch._foreach_add_(own, change)
    else:
        torch._foreach_lerp_(own, new, rate)


def linear_momentum(step: Number, total: float, start: float, end: float) -> Number:
    """`m_k = min(m_K, m_0 + (m_K - m_0) k / K)` of an EMA target at step k (I-JEPA; ACT-JEPA).

    The target moves at rate `1 - m_k`. Counted from the end, so that m_K is exact and a run that
    ends at 1 freezes its target; a tensor `step` keeps the schedule on the device.
    gradient: none.
    """
    left = 1.0 - step / total
    left = left.clamp(0.0, 1.0) if isinstance(left, Tensor) else min(max(left, 0.0), 1.0)
    return end - (end - start) * left


def frozen_alias(module: M) -> M:
    """The same weights without gradient: every parameter shares its storage with `module`.

    What passes through the alias is differentiated with respect to its inputs only, and an
    in-place optimiser step or a loaded checkpoint is seen at once. Build it after the module has
    reached its device.
    gradient: to inputs; none to parameters.
    """
    memo: dict[int, object] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()
    }
    memo |= {id(b): b for b in module.buffers()}
    return copy.deepcopy(module, memo)
