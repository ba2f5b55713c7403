"""A suite task played directly, with a distraction in the places where environments call it."""

from __future__ import annotations

import functools
from types import TracebackType
from typing import Any

import numpy as np

from reverie.envs.dmc import CAMERAS, load, split_task
from reverie.envs.rendering import open_camera
from reverie.envs.specs import Array

IMAGE = 48


class CountingClip:
    """Frame i is of the grey level i, but for a red left half."""

    fps = 30.0

    def __init__(self, name: str, length: int, size: int) -> None:
        self.id, self.length, self._size = name, length, size

    def frame(self, index: int) -> Array:
        assert 0 <= index < self.length
        picture = np.full((self._size, self._size, 3), index, np.uint8)
        picture[:, : self._size // 2, 0] = 255
        return picture


class CountingSource:
    """Clips of 7, 8, 9, ... frames; the test split has ids of its own."""

    name = "counting"

    def __init__(self, *, clips: int = 5, size: int = 16) -> None:
        self._clips, self.size = clips, size
        self.opened: list[int] = []

    def count(self, split: str) -> int:
        return self._clips

    def open(self, split: str, index: int) -> CountingClip:
        assert 0 <= index < self._clips
        self.opened.append(index)
        return CountingClip(f"{split}-{index}", 7 + index, self.size)

    def manifest(self) -> dict[str, Any]:
        return {"kind": self.name}

    def close(self) -> None: ...


class Stage:
    """Plays seeded random actions; `repeat` simulator steps for each picture."""

    def __init__(
        self, task: str, distraction: Any = None, *, repeat: int = 2, size: int = IMAGE
    ) -> None:
        self.env = load(task)
        self.physics = self.env.physics
        self.distraction, self._repeat, self._size = distraction, repeat, size
        domain, name = split_task(task)
        self._task, self._camera_id = task, CAMERAS.get(domain, 0)
        if distraction is not None:
            distraction.attach(
                self.physics, domain=domain, task=name, camera_id=self._camera_id, size=size
            )
        self._actions = np.random.default_rng(0)

    @functools.cached_property
    def camera(self) -> Any:
        """Opened at the first picture, because most tests draw none."""
        return open_camera(
            self.physics, self._size, self._camera_id, render="quick", task=self._task
        )

    def reset(self, seed: int) -> None:
        self.env.task._random = np.random.RandomState(seed)
        self.env.reset()
        self._actions = np.random.default_rng(seed)
        if self.distraction is not None:
            self.distraction.reset(np.random.default_rng([seed, 5]))

    def step(self) -> float:
        shape = self.env.action_spec().shape
        action, reward = self._actions.uniform(-1, 1, shape), 0.0
        for _ in range(self._repeat):
            reward += self.env.step(action).reward
            if self.distraction is not None:
                self.distraction.after_simulator_step()
        if self.distraction is not None:
            self.distraction.after_agent_step()
        return reward

    def picture(self) -> Array:
        if self.distraction is None:
            plain: Array = self.camera.render().copy()
            return plain
        self.distraction.before_render(self.camera)
        drawn: Array = self.distraction.after_render(self.camera.render().copy())
        return drawn

    def play(self, seed: int, steps: int) -> tuple[list[Array], list[float], list[Array]]:
        """States, rewards and pictures of an episode."""
        self.reset(seed)
        states, rewards, pictures = [self.state()], [], [self.picture()]
        for _ in range(steps):
            rewards.append(self.step())
            states.append(self.state())
            pictures.append(self.picture())
        return states, rewards, pictures

    def state(self) -> Array:
        data = self.physics.data
        return np.concatenate([self.physics.get_state(), data.qacc, data.xpos.ravel()])

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.distraction is not None:
            self.distraction.close()
        self.__dict__.pop("camera", None)
        self.physics.free()
        self.env.close()


def model_arrays(model: Any) -> dict[str, Array]:
    """A copy of every array of a model."""
    names = [name for name in dir(model.ptr) if not name.startswith("_")]
    values = {name: getattr(model.ptr, name) for name in names}
    return {k: v.copy() for k, v in values.items() if isinstance(v, np.ndarray)}
