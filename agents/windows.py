"""How most agents learn: from uniform windows of replay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tensordict import TensorDict
from torch import Tensor

if TYPE_CHECKING:
    from reverie.agents.replay.buffer import Replay


class LearnsFromWindows:
    """Mix-in: `learn_from` and `examine` of `Agent`, on top of `update` and `report`."""

    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        """One gradient step on windows [B, T]."""
        raise AssertionError(f"{type(self).__name__} does not say how it learns")

    def report(self, batch: TensorDict) -> dict[str, Tensor]:
        """Diagnostics of windows [B, T]; none unless an agent has some."""
        return {}

    def learn_from(
        self, replay: Replay, rng: np.random.Generator, shape: tuple[int, int]
    ) -> tuple[TensorDict, dict[str, Tensor]]:
        """Draw windows of `shape` (B, T) uniformly and update."""
        batch = replay.sample(*shape, rng)
        return batch, self.update(batch)

    def examine(
        self, replay: Replay, rng: np.random.Generator, shape: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Report on windows that no update draws."""
        return self.report(replay.sample(*shape, rng))
