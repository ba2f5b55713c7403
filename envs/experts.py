"""Players that need no training: what demonstrations are made from.

An expert reads the state of the task and answers as an agent would: float32 [A], within [-1, 1], or
one-hot if the actions are discrete.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from reverie.envs.metaworld import TASKS as METAWORLD_TASKS
from reverie.envs.metaworld import expert_policy
from reverie.envs.single import Env, Obs
from reverie.envs.specs import Array, EnvError, EnvSpec, VecEnv

LANDER = "gym/LunarLander-v3"
LQR = ("dmc/lqr_lqr_2_1", "dmc/lqr_lqr_6_2")


class Expert(Protocol):
    """Plays one task; keeps nothing across episodes."""

    name: str
    """What made the actions, with its version: goes into the record of every demonstration."""

    def reset(self) -> None:
        """An episode begins."""
        ...

    def act(self, obs: Obs) -> Array:
        """Return the action [A] at an unbatched observation, which stays as it is."""
        ...


def expert_tasks() -> tuple[str, ...]:
    """Return the tasks that have an expert."""
    return (*(f"metaworld/{name}" for name in METAWORLD_TASKS), *LQR, LANDER)


def make_expert(task: str, env: Env | VecEnv) -> Expert:
    """Return the expert of a task, for the environment that it will play.

    Raises:
        EnvError: the task has no expert, or `env` does not show the state that it reads.
    """
    if task not in expert_tasks():
        listed = ", ".join(("metaworld/* (all tasks)", *LQR, LANDER))
        raise EnvError(
            f"{task} has no expert: a trained agent can play it, `reverie demos make --task {task} "
            f"--run RUN`. Tasks that have one: {listed}."
        )
    if env.spec.task != task or not env.spec.vector_size:
        raise EnvError(
            f"Expected an environment of {task} that shows its state, found {env.spec.task} with a "
            f"vector of {env.spec.vector_size}. Build it with observe 'state' or 'both'."
        )
    if task == LANDER:
        return LunarHeuristic(env.spec)
    if task in LQR:
        return LinearRegulator(task)
    return ScriptedPolicy(task)


class ScriptedPolicy:
    """Meta-World's own policy of the task."""

    def __init__(self, task: str) -> None:
        self._task = task.partition("/")[2]
        self._policy, self.name = expert_policy(self._task)

    def reset(self) -> None:
        """Take a new policy, whatever the last one remembered."""
        self._policy, _ = expert_policy(self._task)

    def act(self, obs: Obs) -> Array:
        """Return the policy's action, clipped to the range of the environment."""
        state = obs["vector"].astype(np.float64)  # a copy: some policies write into what they get
        with warnings.catch_warnings():
            # it says of itself that its gains exceed the range
            warnings.filterwarnings("ignore", "Constant", UserWarning)
            action = self._policy.get_action(state)
        return _bounded(action)


class LinearRegulator:
    """The exact optimum of dm_control's linear worlds, for one simulator step per agent step."""

    def __init__(self, task: str) -> None:
        from dm_control.suite import lqr_solver

        from reverie.envs.dmc import MAX_CONTROL, load

        env = load(task.partition("/")[2], drawn=False)  # the same world at every load
        _, gain, _ = lqr_solver.solve(env)
        env.close()
        self._gain: Array = gain / MAX_CONTROL
        self.name = f"dm_control {version('dm_control')} LQR solution"

    def reset(self) -> None:
        """Nothing to forget: the action is linear in the state."""

    def act(self, obs: Obs) -> Array:
        """Return the gain times position and velocity, in units of the largest control."""
        return _bounded(self._gain @ obs["vector"].astype(np.float64))


def _bounded(action: Any) -> Array:
    return np.asarray(np.clip(action, -1.0, 1.0), np.float32)


class LunarHeuristic:
    """Gymnasium's hand-written controller of the lander."""

    def __init__(self, spec: EnvSpec) -> None:
        from gymnasium.envs.box2d import lunar_lander

        self._heuristic: Any = lunar_lander.heuristic
        self._eye = np.eye(spec.action_size, dtype=np.float32)
        # the only question that the controller asks its environment
        self._env = SimpleNamespace(unwrapped=SimpleNamespace(continuous=not spec.discrete))
        self.name = f"gymnasium {version('gymnasium')} lunar_lander.heuristic"

    def reset(self) -> None:
        """Nothing to forget: the action depends on the observation alone."""

    def act(self, obs: Obs) -> Array:
        """Return one of the four engines' one-hot actions."""
        chosen: Array = self._eye[int(self._heuristic(self._env, obs["vector"].copy()))]
        return chosen.copy()
