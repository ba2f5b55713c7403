"""Means of update metrics that stay on the device until somebody asks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class MetricMeans:
    """Adds up scalar metrics of many updates in one vector; reading it is the only host wait."""

    def __init__(self) -> None:
        """Empty; the first metrics fix the keys."""
        self._keys: list[str] = []
        self._sum: Tensor | None = None
        self._count: Tensor | None = None

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add the scalars of one update; a non-finite update counts only in "nonfinite"."""
        keys = sorted(metrics)
        values = torch.stack([metrics[key].detach().float().reshape(()) for key in keys])
        if self._sum is None or self._count is None:
            self._keys, self._sum = keys, torch.zeros_like(values)
            self._count = torch.zeros_like(values)
        assert keys == self._keys, f"metrics changed: {set(keys) ^ set(self._keys)}"
        # a skipped update has NaN losses: they are counted, not averaged
        finite = values.isfinite()
        self._sum += torch.where(finite, values, 0.0)
        self._count += finite

    def take(self) -> dict[str, float]:
        """Means since the last call; keys without a finite value are left out."""
        if self._sum is None or self._count is None:
            return {}
        total, count = torch.stack([self._sum, self._count]).tolist()
        self._sum = self._count = None
        return {
            key: value / times
            for key, value, times in zip(self._keys, total, count, strict=True)
            if times
        }
