"""Which stored frames resemble a latent: nearest neighbours by cosine, batched on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Neighbours(NamedTuple):
    """The nearest stored frame of every query."""

    frame: Tensor
    """int64 [..., M]: its place in the library."""
    distance: Tensor
    """float32 [..., M]: 1 - cosine, from 0 (the same direction) to 2."""


class FrameLibrary:
    """Features [..., R, F] of R stored frames; leading dimensions are libraries of their own.

    Cosines are taken about the library's mean: most features share a large constant part, beside
    which all of them look alike.
    """

    def __init__(self, features: Tensor) -> None:
        assert features.dim() > 1 and features.shape[-2] > 0, tuple(features.shape)
        features = features.detach().float()
        self.centre = features.mean(-2, keepdim=True)
        self._units = self._unit(features)

    def __len__(self) -> int:
        """R."""
        return int(self._units.shape[-2])

    def nearest(self, query: Tensor) -> Neighbours:
        """The frames nearest to `query` [..., M, F]."""
        cosine, frame = (self._unit(query) @ self._units.transpose(-1, -2)).max(-1)
        return Neighbours(frame, self._as_distance(cosine))

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """1 - cosine [..., M] of pairs x, y [..., M, F], about the same mean as the search."""
        return self._as_distance((self._unit(x) * self._unit(y)).sum(-1))

    def _unit(self, x: Tensor) -> Tensor:
        return F.normalize(x.detach().float() - self.centre, dim=-1)

    def _as_distance(self, cosine: Tensor) -> Tensor:
        return (1.0 - cosine).clamp(0.0, 2.0)
