"""What a simulator calls while something distracts from it."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np

from reverie.envs.specs import Array

Mask = Literal["preset", "blue", "exact"]
"""What clips replace: as the preset has it, blue pixels, or all but the bodies."""


class Distraction(Protocol):
    """Changes pictures; physics and rewards are those of the undistracted task, but for `subtle`.

    Everything it does in an episode follows from the generator given to `reset`, because a resumed
    run plays its episodes again from their seeds.
    """

    def attach(self, physics: Any, *, domain: str, task: str, camera_id: int, size: int) -> None:
        """Take over a loaded physics before its first picture of size x size pixels."""
        ...

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode, after the reset of the physics."""
        ...

    def after_simulator_step(self) -> None:
        """Advance clocks that run at the simulator's pace."""
        ...

    def after_agent_step(self) -> None:
        """Advance clocks that run at the agent's pace."""
        ...

    def before_render(self, camera: Any) -> None:
        """Make model and renderer ready for a picture by this dm_control camera."""
        ...

    def after_render(self, picture: Array) -> Array:
        """Return what the agent sees instead of `picture`, uint8 [size, size, 3]."""
        ...

    def close(self) -> None:
        """Give the model back as it was, before the physics are freed; safe to call twice."""
        ...
