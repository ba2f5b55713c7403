"""Any Gymnasium environment as one of ours: images, vectors, or a dictionary of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image

from reverie.envs.single import Arrival, Obs
from reverie.envs.specs import Array, EnvError, EnvSpec

SUPPORTED = (
    "Box images (uint8, [height, width] or [height, width, channels]), other Box, Discrete, "
    "MultiDiscrete and MultiBinary observations, Dict or Tuple of these with at most one image; "
    "Discrete and bounded Box actions"
)


MAX_CHANNELS = 12
"""Most channels of one picture: four stacked colour frames."""


class GymEnv:
    """Adapts a Gymnasium environment.

    The image is resized to `image_size` (nearest when enlarging, box filter when reducing); all
    other observations are flattened into one float32 vector. Every observation is copied, because
    many environments write into the same array again.
    """

    def __init__(
        self, make: Callable[[], gymnasium.Env[Any, Any]], task: str, *, image_size: int = 64
    ) -> None:
        self._env = make()
        self._size = image_size
        space = self._env.observation_space
        _require_clear(space, task)
        self._image_key, channels = _find_image(space, task)
        self._vector_space = _without_image(space, self._image_key)
        vector_size = 0
        if self._vector_space is not None:
            _require_flat(self._vector_space, task)
            vector_size = int(spaces.flatdim(self._vector_space))
        action_size, discrete = _action_sizes(self._env.action_space, task)
        self._discrete = discrete
        self.spec = EnvSpec(
            task=task,
            action_size=action_size,
            discrete=discrete,
            image_shape=None if channels == 0 else (image_size, image_size, channels),
            vector_size=vector_size,
        )

    def reset(self, seed: int) -> Obs:
        """Begin the episode of `seed`, also for random numbers of the action space."""
        self._env.action_space.seed(seed)
        obs, _ = self._env.reset(seed=seed)
        return self._obs(obs)

    def step(self, action: Array) -> Arrival:
        """Play the action; truncation ends an episode without terminating it."""
        obs, reward, terminated, truncated, _ = self._env.step(self._action(action))
        last = bool(terminated or truncated)
        return Arrival(self._obs(obs), _number(reward), last, bool(terminated))

    def close(self) -> None:
        """Close the Gymnasium environment."""
        self._env.close()

    def _action(self, action: Array) -> Any:
        space = self._env.action_space
        if isinstance(space, spaces.Discrete):
            return space.start + space.dtype.type(action.argmax())
        assert isinstance(space, spaces.Box)
        unit = (np.clip(action, -1, 1).reshape(space.shape) + 1) / 2
        scaled = space.low + unit * (space.high - space.low)
        return np.clip(scaled, space.low, space.high).astype(space.dtype)

    def _obs(self, obs: Any) -> Obs:
        result: Obs = {}
        if self._image_key is not None:
            image = obs if self._image_key == "" else obs[self._image_key]
            result["image"] = _resized(np.asarray(image), self._size)
        if self._vector_space is not None:
            rest = obs
            if isinstance(self._vector_space, spaces.Dict) and self._image_key:
                rest = {k: obs[k] for k in self._vector_space.spaces}
            flat = spaces.flatten(self._vector_space, rest)
            result["vector"] = np.array(flat, np.float32)
        return result


def _number(reward: Any) -> float:
    """Keep what is no number as it is: the guard names it better than a failed conversion."""
    if isinstance(reward, (int, float, np.number)):
        return float(reward)
    if isinstance(reward, np.ndarray) and reward.size == 1:
        return float(reward.reshape(()))
    kept: float = reward
    return kept


def _is_image(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def _require_clear(space: spaces.Space[Any], task: str, name: str = "") -> None:
    """Refuse what would pass for a vector or an image and is the other, or a turned one."""
    shape = space.shape or ()
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            _require_clear(part, task, f" {key!r}")
    if not isinstance(space, spaces.Box) or len(shape) != 3:
        return
    if space.dtype != np.uint8:
        raise EnvError(
            f"{task}: the observation{name} is {space.dtype} {shape}. Expected a picture as uint8 "
            "0..255 [height, width, channels], or numbers that are not a picture as a flat Box: "
            "convert it in a gymnasium.wrappers.TransformObservation or FlattenObservation."
        )
    if shape[0] <= MAX_CHANNELS < shape[2]:
        raise EnvError(
            f"{task}: the observation{name} is uint8 {shape}, which looks like channels first. "
            "Expected [height, width, channels]: use gymnasium.wrappers.TransformObservation with "
            "lambda image: np.moveaxis(image, 0, -1)."
        )


def _find_image(space: spaces.Space[Any], task: str) -> tuple[str | None, int]:
    """Return (key, channels); the key is "" for an observation that is the image itself."""
    found = {"": space} if _is_image(space) else {}
    if isinstance(space, spaces.Dict):
        found = {k: s for k, s in space.spaces.items() if _is_image(s)}
    if len(found) > 1:
        raise EnvError(
            f"{task}: expected at most one image, found {sorted(found)}. Drop the rest "
            "in a gymnasium.ObservationWrapper."
        )
    for key, image in found.items():
        shape = image.shape
        assert shape is not None
        return key, 1 if len(shape) == 2 else int(shape[2])
    return None, 0


def _without_image(space: spaces.Space[Any], key: str | None) -> spaces.Space[Any] | None:
    if key is None:
        return space
    if key == "":
        return None
    assert isinstance(space, spaces.Dict)
    rest = {k: s for k, s in space.spaces.items() if k != key}
    return spaces.Dict(rest) if rest else None


def _require_flat(space: spaces.Space[Any], task: str) -> None:
    if not space.is_np_flattenable:
        raise EnvError(
            f"{task}: expected {SUPPORTED}; found {space}. Convert it in a "
            "gymnasium.ObservationWrapper."
        )


def _action_sizes(space: spaces.Space[Any], task: str) -> tuple[int, bool]:
    if isinstance(space, spaces.Discrete):
        return int(space.n), True
    if isinstance(space, spaces.Box) and space.is_bounded():
        return int(np.prod(space.shape)), False
    raise EnvError(
        f"{task}: expected {SUPPORTED}; found the action space {space}. Convert it in a "
        "gymnasium.ActionWrapper."
    )


def _resized(image: Array, size: int) -> Array:
    if image.ndim == 2:
        image = image[..., None]
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image.copy()
    rule = Image.Resampling.NEAREST if max(height, width) <= size else Image.Resampling.BOX
    planes = [
        np.asarray(Image.fromarray(image[..., c]).resize((size, size), rule))
        for c in range(image.shape[-1])
    ]
    return np.stack(planes, -1)
