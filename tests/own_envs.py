"""Gymnasium environments as a user would write them, one for each kind of observation."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 12


class Own(gymnasium.Env[Any, Any]):
    """Twelve steps in a space that the subclass names."""

    action_space: spaces.Space[Any] = spaces.Discrete(3)

    def __init__(self) -> None:
        self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.time += 1
        return self.observation_space.sample(), 1.0, False, self.time >= LENGTH, {}


class Wide(Own):
    """Colour pictures that are not square."""

    observation_space = spaces.Box(0, 255, (37, 91, 3), np.uint8)


class Gray(Own):
    """Pictures of odd size without a channel axis, steered continuously."""

    observation_space = spaces.Box(0, 255, (21, 21), np.uint8)
    action_space = spaces.Box(np.float32([0, -3]), np.float32([1, 5]), dtype=np.float32)


class Mixed(Own):
    """A tiny picture beside a number and a category."""

    observation_space = spaces.Dict(
        {
            "view": spaces.Box(0, 255, (5, 7, 2), np.uint8),
            "speed": spaces.Box(-1, 1, (1,)),
            "key": spaces.Discrete(3),
        }
    )


class Tiny(Own):
    """One number to see, one button to press."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Discrete(2, start=5)


class FloatPicture(Own):
    """A picture that would pass for 3072 numbers."""

    observation_space = spaces.Box(0, 1, (32, 32, 3))


class ChannelsFirst(Own):
    """A turned picture."""

    observation_space = spaces.Box(0, 255, (3, 32, 32), np.uint8)


class TwoPictures(Own):
    """More pictures than an agent takes."""

    observation_space = spaces.Dict(
        {name: spaces.Box(0, 255, (8, 8, 3), np.uint8) for name in ("left", "right")}
    )


class Unbounded(Own):
    """Actions without a range."""

    observation_space = Tiny.observation_space
    action_space = spaces.Box(-np.inf, np.inf, (2,))


class Reach(gymnasium.Env[Any, Any]):
    """Walk to a point on a line; two numbers to see."""

    observation_space = spaces.Box(-10, 10, (2,))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.gap, self.time = self.np_random.uniform(-2, 2), 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        self.gap = float(np.clip(self.gap + action[0], -9, 9))
        done = abs(self.gap) < 0.2
        return self._obs(), -abs(self.gap), done, self.time == 10, {}

    def _obs(self) -> Any:
        return np.float32([self.gap, self.time])
