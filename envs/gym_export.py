"""Our environments as Gymnasium environments, under the ids "reverie/<suite>-<task>-v0"."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.envs.registry import make_env, tasks
from reverie.envs.specs import EnvError, EnvSpec


def gym_id(task: str) -> str:
    """Return the Gymnasium id of "suite/task"."""
    return f"reverie/{task.replace('/', '-')}-v0"


def observation_space(spec: EnvSpec) -> spaces.Dict:
    """Return the Dict space of a task: "image" and/or "vector"."""
    parts: dict[str, spaces.Space[Any]] = {}
    if spec.image_shape is not None:
        parts["image"] = spaces.Box(0, 255, spec.image_shape, np.uint8)
    if spec.vector_size:
        limit = np.finfo(np.float32).max  # the guard admits every finite number
        parts["vector"] = spaces.Box(-limit, limit, (spec.vector_size,), np.float32)
    return spaces.Dict(parts)


class ReverieGym(gymnasium.Env[dict[str, Any], Any]):
    """One reverie task with Gymnasium's `reset` and `step`; actions are Discrete or Box [-1, 1]."""

    # Gymnasium reads the class attribute before it builds an instance
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, task: str, *, render_mode: str | None = None, **options: Any) -> None:
        self._env = make_env(task, **options)
        spec = self._env.spec
        modes = [] if spec.image_shape is None else ["rgb_array"]
        if render_mode is not None and render_mode not in modes:
            self._env.close()
            raise EnvError(
                f"{task}: expected render_mode None or one of {modes}, found {render_mode!r}."
            )
        self.metadata = {**self.metadata, "render_modes": modes}
        self.render_mode = render_mode
        self._discrete = spec.discrete
        self._size = spec.action_size
        self.observation_space = observation_space(spec)
        self.action_space = (
            spaces.Discrete(spec.action_size)
            if spec.discrete
            else spaces.Box(-1.0, 1.0, (spec.action_size,), np.float32)
        )
        self._obs: dict[str, Any] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the episode drawn from `seed`, or the next one of the seeded generator."""
        super().reset(seed=seed)
        episode = int(self.np_random.integers(2**32))
        self._obs = self._env.reset(episode)
        return dict(self._obs), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Advance by one agent step."""
        row = np.eye(self._size)[int(action)] if self._discrete else np.asarray(action)
        arrival = self._env.step(row.astype(np.float32))
        self._obs = arrival.obs
        truncated = arrival.is_last and not arrival.is_terminal
        info = {"interrupted": arrival.interrupted, "success": arrival.success}
        return dict(self._obs), float(arrival.reward), arrival.is_terminal, truncated, info

    def render(self) -> Any:
        """Return the last picture, [height, width, channels]; gray ones get three channels."""
        image = self._obs.get("image")
        return image.repeat(3, -1) if image is not None and image.shape[-1] == 1 else image

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def register_gymnasium() -> None:
    """Add all tasks that are steppable one by one to Gymnasium's registry; safe to repeat."""
    for info in tasks():
        if info.suite in ("atari", "torch"):  # vector environments, with their own entry points
            continue
        name = gym_id(info.task)
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point="reverie.envs.gym_export:ReverieGym",
                kwargs={"task": info.task},
            )
