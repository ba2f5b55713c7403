"""Keeps what breaks the environment contract out of replay."""

from __future__ import annotations

import logging
import math
from typing import Literal

import numpy as np

from reverie.envs.single import Arrival, Env, Obs
from reverie.envs.specs import Array, EnvError, EnvSpec

OnInvalid = Literal["error", "drop"]

MAX_REWARD = 1e8
"""Beyond this no value head of the suite can express a return (two-hot bins end at 4.8e8)."""

log = logging.getLogger(__name__)


def obs_problem(obs: Obs, spec: EnvSpec) -> str | None:
    """Say what is wrong with one unbatched observation, or None."""
    expected: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {}
    if spec.image_shape is not None:
        expected["image"] = (spec.image_shape, np.uint8)
    if spec.vector_size:
        expected["vector"] = ((spec.vector_size,), np.float32)
    if obs.keys() != expected.keys():
        return f"expected observation keys {sorted(expected)}, found {sorted(obs)}"
    for key, (shape, dtype) in expected.items():
        value = obs[key]
        if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
            found = f"{getattr(value, 'dtype', type(value).__name__)} {np.shape(value)}"
            return f"expected {key} {np.dtype(dtype)} {shape}, found {found}"
    if spec.vector_size and not np.isfinite(obs["vector"]).all():
        return "expected finite numbers in vector, found NaN or infinity"
    return None


def reward_problem(reward: object) -> str | None:
    """Say what is wrong with one reward, or None."""
    if not isinstance(reward, (int, float, np.number)) or np.ndim(reward) != 0:
        return f"expected a real number as reward, found {type(reward).__name__}"
    if not math.isfinite(float(reward)) or abs(float(reward)) > MAX_REWARD:
        return f"expected a finite reward within ±{MAX_REWARD:.0e}, found {reward}"
    return None


class Guarded:
    """Checks every arrival of an environment against its spec.

    With "error" a breach raises `EnvError`; with "drop" it is logged once and the episode ends at
    the last valid observation, marked interrupted. A breach at reset always raises, because there
    is no valid observation to end on.
    """

    def __init__(self, env: Env, on_invalid: OnInvalid) -> None:
        self.spec = env.spec
        self._env = env
        self._on_invalid = on_invalid
        self._valid: Obs = {}
        self._reported = False

    def reset(self, seed: int) -> Obs:
        """Begin an episode; raises `EnvError` on an invalid first observation."""
        obs = self._env.reset(seed)
        problem = obs_problem(obs, self.spec)
        if problem is not None:
            raise EnvError(self._message(problem))
        self._valid = obs
        return obs

    def step(self, action: Array) -> Arrival:
        """Advance and check what arrives."""
        arrival = self._env.step(action)
        problem = reward_problem(arrival.reward) or obs_problem(arrival.obs, self.spec)
        if problem is None and arrival.is_terminal and not arrival.is_last:
            problem = "expected is_last wherever is_terminal, found is_terminal alone"
        if problem is None:
            self._valid = arrival.obs
            return arrival
        if self._on_invalid == "error":
            raise EnvError(self._message(problem))
        if not self._reported:
            log.warning("%s Its episodes end there, marked interrupted.", self._message(problem))
            self._reported = True
        return Arrival(self._valid, is_last=True, interrupted=True)

    def close(self) -> None:
        """Close the wrapped environment."""
        self._env.close()

    def _message(self, problem: str) -> str:
        return (
            f"{self.spec.task} broke its contract: {problem}. Repair the environment, or drop such "
            "episodes with --env.on-bad-value drop."
        )
