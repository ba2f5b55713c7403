"""A small world that can be solved or not, one who plays it, and what a shard holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reverie.agents.demos.make import Job
from reverie.envs import make_env, register
from reverie.envs.settings import EnvSettings
from reverie.envs.single import Arrival, Obs
from reverie.envs.specs import Array, EnvSpec

HOME = "walk/home"
LIMIT = 12


class Home:
    """Walk home along a line; the seed decides the start, and in one of four that feet are tied."""

    spec = EnvSpec(HOME, 1, False, vector_size=3, proprio_size=1, protocol="flat", has_success=True)

    def reset(self, seed: int) -> Obs:
        rng = np.random.default_rng(seed)
        self.place, self.tied, self.time = float(rng.uniform(-2, 2)), bool(rng.random() < 0.25), 0
        return self._obs()

    def step(self, action: Array) -> Arrival:
        assert abs(action[0]) <= 1, "actions are clipped before they are played"
        self.time += 1
        self.place += 0.0 if self.tied else 0.4 * float(action[0])
        solved = abs(self.place) < 0.3 and not self.tied
        over = solved or self.time == LIMIT
        return Arrival(self._obs(), -abs(self.place), over, solved, success=solved)

    def close(self) -> None:
        return None

    def _obs(self) -> Obs:
        return {"vector": np.array([self.place, self.time, self.tied], np.float32)}


class Walker:
    """Walks home, faster than the world allows."""

    def __init__(self, task: str, env: Any, name: str = "walker 1") -> None:
        assert env.spec.task == task
        self.name = name
        self.steps = 0

    def reset(self) -> None:
        self.steps = 0

    def act(self, obs: Obs) -> Array:
        self.steps += 1
        assert self.steps == obs["vector"][1] + 1, "every episode begins with a reset"
        return np.array([-8 * obs["vector"][0]], np.float32)


class Stroller(Walker):
    """Walks the wrong way."""

    def act(self, obs: Obs) -> Array:
        return -super().act(obs)


class Idler(Walker):
    """Does nothing, anywhere."""

    def __init__(self, task: str, env: Any) -> None:
        super().__init__(task, env, "idler 1")
        self.size = env.spec.action_size

    def act(self, obs: Obs) -> Array:
        return np.zeros(self.size, np.float32)


def register_home() -> None:
    register(HOME, Home)


def home_job(folder: Path, **changes: Any) -> Job:
    """Six solved walks in shards of two."""
    usual: dict[str, Any] = {"episodes": 6, "shard_episodes": 2, "player": Walker}
    usual |= {"settings": EnvSettings(HOME, render="quick"), "folder": folder}
    return Job(**{**usual, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def assert_replayed(episode: dict[str, Array], env: Any, seed: int, *, spec: EnvSpec) -> bool:
    """Play the recorded actions from the recorded seed; returns whether that solved the task."""
    whole = "observation.environment_state" if spec.proprio_size else "observation.state"
    obs, solved = env.reset(seed), False
    length = len(episode["action"])
    for moment in range(length):
        assert np.array_equal(obs["vector"], episode[whole][moment]), moment
        assert episode[whole].dtype == np.float32
        if spec.proprio_size:
            own = obs["vector"][: spec.proprio_size]
            assert np.array_equal(own, episode["observation.state"][moment])
        if spec.image_shape is not None:
            assert np.array_equal(obs["image"], episode["observation.image"][moment]), moment
        action = episode["action"][moment]
        assert action.dtype == np.float32 and np.abs(action).max() <= 1
        arrival = env.step(action)
        assert np.float32(arrival.reward) == episode["next.reward"][moment].item()
        assert arrival.is_last == (moment == length - 1) == bool(episode["next.done"][moment])
        assert arrival.success == bool(episode["next.success"][moment])
        solved = solved or arrival.success
        obs = arrival.obs
    return solved


def same_world(settings: EnvSettings) -> Any:
    """The world of a recording, built without the code that recorded."""
    return make_env(
        settings.task,
        image_size=settings.image_size,
        action_repeat=settings.action_repeat,
        render=settings.render,
        time_limit=settings.time_limit,
        observe=settings.observe,
    )
