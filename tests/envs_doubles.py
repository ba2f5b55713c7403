"""Environments that misbehave on purpose; importable, so that worker processes can build them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.envs.single import Arrival
from reverie.envs.specs import EnvSpec
from reverie.envs.toy import Counter

LENGTH = 6


@dataclass(frozen=True)
class Plan:
    """One fault at step `at`; with `once` only in the first process that reaches it."""

    kind: str
    at: int = 3
    once: str | None = None
    only_even: bool = False


class FaultyEnv:
    """The counter with a fault in it."""

    def __init__(self, plan: Plan) -> None:
        if plan.kind == "import_error":
            raise ImportError("No module named 'roms_of_pong'")
        if plan.kind == "gl_error":
            raise RuntimeError("an OpenGL platform library has not been loaded")
        self.inner = Counter(image_size=16)
        self.spec = self.inner.spec
        self.plan = plan
        self.time = 0
        self.armed = True

    def reset(self, seed: int) -> dict[str, Any]:
        self.time = 0
        obs = self.inner.reset(seed)
        if self.plan.kind == "raise_at_reset" and self._fires():
            raise ValueError("broken start")
        return obs

    def step(self, action: Any) -> Arrival:
        self.time += 1
        arrival = self.inner.step(action)
        if self.time != self.plan.at or not self._fires():
            return arrival
        return self._fault(arrival)

    def close(self) -> None:
        self.inner.close()

    def _fires(self) -> bool:
        if self.plan.once is None:
            return True
        try:
            Path(self.plan.once).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _fault(self, arrival: Arrival) -> Arrival:
        kind = self.plan.kind
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "raise":
            raise ValueError("the simulator exploded")
        if kind == "hang":
            time.sleep(1000)
        obs = dict(arrival.obs)
        faults: dict[str, Any] = {"nan_reward": np.nan, "inf_reward": np.inf, "huge_reward": 1e20}
        if kind in faults:
            return arrival._replace(reward=faults[kind])
        if kind == "text_reward":
            return arrival._replace(reward="one")  # type: ignore[arg-type]
        if kind == "nan_obs":
            obs["vector"] = np.full_like(obs["vector"], np.nan)
        if kind == "float_image":
            obs["image"] = obs["image"].astype(np.float32)
        if kind == "small_image":
            obs["image"] = obs["image"][:-1]
        if kind == "no_image":
            del obs["image"]
        return arrival._replace(obs=obs)


class SolvableEnv(FaultyEnv):
    """The same, solved at the steps `solved`; the episode goes on all the same."""

    def __init__(self, plan: Plan, solved: tuple[int, ...]) -> None:
        super().__init__(plan)
        self.spec = replace(self.spec, has_success=True)
        self.solved = solved

    def step(self, action: Any) -> Arrival:
        arrival = super().step(action)
        return arrival._replace(success=self.time in self.solved)


class SharedArray(gymnasium.Env[Any, Any]):
    """Writes every observation into the same array, as fast environments do."""

    observation_space = spaces.Box(-1e6, 1e6, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, broken_at: int = 0) -> None:
        self.array = np.zeros(2, np.float32)
        self.episode = -1
        self.broken_at = broken_at

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode += 1
        self.array[:] = (0, self.episode)
        return self.array, {}

    def step(self, action: Any) -> Any:
        self.array[0] += 1
        if self.broken_at == self.array[0]:
            raise ValueError("broken after the array was written")
        return self.array, 1.0, False, bool(self.array[0] >= LENGTH), {}


class SmallGrid(gymnasium.Env[Any, Any]):
    """A tiny two-channel image and a vector in one dictionary; ends by termination."""

    observation_space = spaces.Dict(
        {"view": spaces.Box(0, 255, (5, 7, 2), np.uint8), "speed": spaces.Box(-1, 1, (3,))}
    )
    action_space = spaces.Box(np.float32(-2), np.float32(6), (1,))

    def __init__(self) -> None:
        self.time = 0
        self.action: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self._obs(), float(action[0]), self.time >= LENGTH, False, {}

    def _obs(self) -> Any:
        view = np.full((5, 7, 2), self.time, np.uint8)
        return {"view": view, "speed": np.full(3, 0.5, np.float32)}


class Truncating:
    """Ends alternately by termination and by time limit."""

    def __init__(self) -> None:
        self.spec = EnvSpec("mine/ends", action_size=1, discrete=False, vector_size=1)
        self.time = self.seed = 0

    def reset(self, seed: int) -> Any:
        self.time, self.seed = 0, seed
        return {"vector": np.zeros(1, np.float32)}

    def step(self, action: Any) -> Arrival:
        self.time += 1
        done = self.time >= LENGTH
        obs = {"vector": np.full(1, self.time, np.float32)}
        return Arrival(obs, 1.0, done, done and self.seed % 2 == 0)

    def close(self) -> None:
        pass
