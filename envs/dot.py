"""A small pixel world: bring the green dot to the red one, in front of a drifting distractor.

All of it is integer arithmetic in 1/256 pixels with a counter-based generator, so that the batched
version in `torch_vector` gives the same bits on any device.
"""

from __future__ import annotations

import numpy as np

from reverie.envs.distractors.player import ClipPlayer
from reverie.envs.single import Arrival, Obs
from reverie.envs.specs import Array, EnvSpec

SUBPIXEL = 256
DOT_STEPS = 50
"""Agent steps of an episode, which ends by this time limit alone."""

MASK = 0xFFFFFFFF
GOLDEN = 0x9E3779B9
BACKDROP = 5
"""Key of the draws of a film beside those of the world."""

BACKGROUND = 48
"""Brightness of the drifting checkerboard behind the dots (blue channel)."""


def mix(key: int) -> int:
    """Hash 32 bits to 32 bits; the multipliers keep every product below 2^63."""
    key &= MASK
    key = ((key ^ key >> 15) * 0x2C1B3C6D) & MASK
    key = ((key ^ key >> 12) * 0x297A2D39) & MASK
    return key ^ key >> 15


def draw(key: int, index: int, bound: int) -> int:
    """Return the number `index` of an episode, in [0, bound)."""
    return mix(key + index * GOLDEN) % bound


class Layout:
    """Sizes of the world in pixels and subpixels for one image size."""

    def __init__(self, image_size: int) -> None:
        assert image_size >= 16, f"expected at least 16 pixels, found {image_size}"
        self.size = image_size
        self.dot = max(2, image_size // 8)
        self.span = (image_size - self.dot) * SUBPIXEL
        """Positions (top left corner of a dot) lie in [0, span]."""
        self.speed = image_size * SUBPIXEL // 16
        """Subpixels that an action of 1 moves in one step."""
        self.drift = image_size * SUBPIXEL // 32
        """Largest distractor speed, in subpixels per step and axis."""


def dot_spec(
    image_size: int, task: str = "toy/dot", *, protocol: str = "distractor=drift"
) -> EnvSpec:
    """Return the spec of the dot world."""
    shape = (image_size, image_size, 3)
    return EnvSpec(task, action_size=2, discrete=False, image_shape=shape, protocol=protocol)


class Dot:
    """One dot world. The reward falls from 1 at the target to 0 at half the width from it.

    A film of `backdrop` replaces everything but the dot and its target, at a frame per step. With
    `home` the target is always in the middle, so that every place of the dot is worth something.
    """

    def __init__(
        self,
        *,
        image_size: int = 64,
        home: bool = False,
        backdrop: ClipPlayer | None = None,
        protocol: str = "",
    ) -> None:
        task = "toy/home" if home else "toy/dot"
        self.spec = dot_spec(image_size, task, protocol=protocol or "distractor=drift")
        self._home, self._backdrop = home, backdrop
        self._layout = Layout(image_size)
        self._time = 0
        self._dot = self._target = self._blob = self._drift = (0, 0)

    def reset(self, seed: int) -> Obs:
        """Place the dot, its target and the distractor."""
        span, drift = self._layout.span, self._layout.drift
        self._time = 0
        self._dot = (draw(seed, 0, span + 1), draw(seed, 1, span + 1))
        self._target = (draw(seed, 2, span + 1), draw(seed, 3, span + 1))
        if self._home:
            self._target = (span // 2, span // 2)
        self._blob = (draw(seed, 4, span + 1), draw(seed, 5, span + 1))
        self._drift = (
            draw(seed, 6, 2 * drift + 1) - drift,
            draw(seed, 7, 2 * drift + 1) - drift,
        )
        if self._backdrop is not None:
            self._backdrop.reset(np.random.default_rng([seed, BACKDROP]))
        return {"image": self._picture()}

    def step(self, action: Array) -> Arrival:
        """Move the dot by `action` (x, y); the distractor drifts whatever the agent does."""
        layout = self._layout
        push = np.rint(np.clip(action, -1, 1) * np.float32(layout.speed)).astype(np.int64)
        x, y = (min(max(p + int(d), 0), layout.span) for p, d in zip(self._dot, push, strict=True))
        self._dot = (x, y)
        bx, by = ((p + d) % (layout.span + 1) for p, d in zip(self._blob, self._drift, strict=True))
        self._blob = (bx, by)
        self._time += 1
        if self._backdrop is not None:
            self._backdrop.after_simulator_step()
            self._backdrop.after_agent_step()
        distance = max(abs(x - self._target[0]), abs(y - self._target[1]))
        reward = np.float32(max(0, layout.span - 2 * distance)) / np.float32(layout.span)
        return Arrival({"image": self._picture()}, float(reward), self._time >= DOT_STEPS)

    def close(self) -> None:
        """Nothing to free."""

    def _picture(self) -> Array:
        size, dot = self._layout.size, self._layout.dot
        image = np.zeros((size, size, 3), np.uint8)
        shift_x, shift_y = self._blob[0] // SUBPIXEL, self._blob[1] // SUBPIXEL
        columns = (np.arange(size) + shift_x) // dot
        rows = (np.arange(size) + shift_y) // dot
        image[:, :, 2] = (columns[None, :] + rows[:, None]) % 2 * BACKGROUND
        for channel, (x, y) in ((0, self._target), (1, self._dot), (2, self._blob)):
            left, top = x // SUBPIXEL, y // SUBPIXEL
            image[top : top + dot, left : left + dot, channel] = 255
        if self._backdrop is None:
            return image
        image[:, :, 2] = 0  # the blob and the checkerboard are background
        dots = image.any(-1, keepdims=True)
        return np.where(dots, image, self._backdrop.frame())
