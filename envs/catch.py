"""The catching world: a ball falls and drifts, a paddle has to be where it lands.

Where the ball lands depends on its drift, which no single picture shows.
"""

from __future__ import annotations

import numpy as np

from reverie.envs.single import Arrival, Obs
from reverie.envs.specs import Array, EnvSpec

CATCH_GRID = 8
"""Cells in a row and in a column; an episode takes one step less."""

CATCH_PADDLE = 2
"""Width of the paddle in cells."""


class Catch:
    """A ball falls a cell per step; the paddle in the last row moves left, stays or moves right.

    The ball drifts by -1, 0 or 1 column per step and bounces off the walls. The episode ends as it
    reaches the last row, with reward 1 if the paddle is there and -1 if it is not.
    """

    def __init__(self, *, image_size: int = 84) -> None:
        assert image_size >= 2 * CATCH_GRID, f"needs two pixels per cell, found {image_size}"
        shape = (image_size, image_size, 1)
        self.spec = EnvSpec("toy/catch", action_size=3, discrete=True, image_shape=shape)
        self._shape = shape
        self._edges: Array = np.arange(CATCH_GRID + 1) * image_size // CATCH_GRID
        self._row = self._column = self._drift = self._paddle = 0

    def reset(self, seed: int) -> Obs:
        """Draw the ball's column and drift and the paddle's place."""
        rng = np.random.default_rng(seed)
        self._row = 0
        self._column = int(rng.integers(CATCH_GRID))
        self._drift = int(rng.integers(-1, 2))
        self._paddle = int(rng.integers(CATCH_GRID - CATCH_PADDLE + 1))
        return self._obs()

    def step(self, action: Array) -> Arrival:
        """Move the paddle left (0), not at all (1) or right (2), then let the ball fall."""
        moved = self._paddle + int(action.argmax()) - 1
        self._paddle = min(max(moved, 0), CATCH_GRID - CATCH_PADDLE)
        self._row += 1
        if not 0 <= self._column + self._drift < CATCH_GRID:
            self._drift = -self._drift
        self._column += self._drift
        landed = self._row == CATCH_GRID - 1
        caught = 0 <= self._column - self._paddle < CATCH_PADDLE
        reward = (1.0 if caught else -1.0) if landed else 0.0
        return Arrival(self._obs(), reward, landed, landed)

    def close(self) -> None:
        """Nothing to free."""

    def _obs(self) -> Obs:
        image = np.zeros(self._shape, np.uint8)
        edges = self._edges
        left, right = edges[self._paddle], edges[self._paddle + CATCH_PADDLE]
        image[edges[-2] :, left:right] = 128
        top, bottom = edges[self._row], edges[self._row + 1]
        image[top:bottom, edges[self._column] : edges[self._column + 1]] = 255
        return {"image": image}
