"""The colours of the Distracting Control Suite: every material in another one, drifting or not."""

from __future__ import annotations

from typing import Any

import numpy as np

STEP = 0.03
"""Standard deviation of the change of a channel per simulator step, at scale 1."""


class ColourWalk:
    """Keeps each channel of each material within `scale` of the stock one, and within [0, 1]."""

    def __init__(self, scale: float, *, dynamic: bool) -> None:
        self._scale, self._dynamic = scale, dynamic

    def attach(self, physics: Any) -> None:
        """Remember the stock colours; alphas are left alone."""
        self._model = physics.model
        self._stock = physics.model.mat_rgba[:, :3].copy()
        self.low = np.clip(self._stock - self._scale, 0.0, 1.0)
        self.high = np.clip(self._stock + self._scale, 0.0, 1.0)

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the colours of an episode, whatever those of the one before were."""
        self._rng = rng
        self._paint(rng.uniform(self.low, self.high))

    def step(self) -> None:
        """Drift for one simulator step."""
        if self._dynamic:
            self._paint(self.colours + self._rng.normal(size=self.low.shape) * STEP * self._scale)

    def restore(self) -> None:
        """Give the materials their stock colours back."""
        self._model.mat_rgba[:, :3] = self._stock

    def _paint(self, colours: Any) -> None:
        self.colours = np.clip(colours, self.low, self.high)
        self._model.mat_rgba[:, :3] = self.colours
