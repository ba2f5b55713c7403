"""One environment in one process: what suites implement, and the wrappers all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple, Protocol

import numpy as np

from reverie.envs.specs import Array, EnvSpec

Purpose = Literal["train", "eval", "demo"]
Obs = dict[str, Array]

PURPOSE_IDS: dict[str, int] = {"train": 0, "eval": 1, "demo": 2}


class Arrival(NamedTuple):
    """What one slot receives after an action; the unbatched half of `specs.Step`."""

    obs: Obs
    reward: float = 0.0
    is_last: bool = False
    is_terminal: bool = False
    interrupted: bool = False
    """The episode was cut by a fault, so that its end says nothing about the task."""
    success: bool = False
    """The task was found solved on this arrival."""


class Env(Protocol):
    """One world; every episode is a function of its seed and of the actions alone."""

    spec: EnvSpec

    def reset(self, seed: int) -> Obs:
        """Begin the episode that belongs to `seed` (32 bits)."""
        ...

    def step(self, action: Array) -> Arrival:
        """Advance by one agent step; `action` is float32 [A], one-hot if discrete."""
        ...

    def close(self) -> None:
        """Free what the process would otherwise keep; safe to call twice."""
        ...


Ctor = Callable[[], Env]
"""Builds an environment inside the process that will step it; picklable for worker processes."""


def episode_seed(seed: int, purpose: Purpose, slot: int, episode: int) -> int:
    """Return the 32-bit seed of one episode; purposes never share one by construction."""
    key = np.random.SeedSequence([seed, PURPOSE_IDS[purpose], slot, episode])
    return int(key.generate_state(1)[0])


class TimeLimit:
    """Ends every episode after `limit` agent steps, as a time limit and not as a termination."""

    def __init__(self, env: Env, limit: int) -> None:
        assert limit > 0, f"a time limit is a positive number of agent steps, found {limit}"
        self.spec = env.spec
        self._env = env
        self._limit = limit
        self._steps = 0

    def reset(self, seed: int) -> Obs:
        """Begin an episode and its count."""
        self._steps = 0
        return self._env.reset(seed)

    def step(self, action: Array) -> Arrival:
        """Advance, and end the episode when the limit is reached."""
        self._steps += 1
        arrival = self._env.step(action)
        return arrival._replace(is_last=arrival.is_last or self._steps >= self._limit)

    def close(self) -> None:
        """Close the wrapped environment."""
        self._env.close()


class ActionRepeat:
    """Plays every action `repeat` times and sums the rewards, stopping where the episode ends.

    One solved simulator step makes the agent step a success.
    """

    def __init__(self, env: Env, repeat: int) -> None:
        assert repeat > 0, f"an action is repeated at least once, found {repeat}"
        self.spec = replace(env.spec, action_repeat=env.spec.action_repeat * repeat)
        self._env = env
        self._repeat = repeat

    def reset(self, seed: int) -> Obs:
        """Begin an episode."""
        return self._env.reset(seed)

    def step(self, action: Array) -> Arrival:
        """Advance by up to `repeat` simulator steps."""
        total, solved = 0.0, False
        for _ in range(self._repeat):
            arrival = self._env.step(action)
            total += arrival.reward
            solved = solved or arrival.success
            if arrival.is_last:
                break
        return arrival._replace(reward=total, success=solved and not arrival.interrupted)

    def close(self) -> None:
        """Close the wrapped environment."""
        self._env.close()
