"""dm_control tasks from pixels, from their state, or from both."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from reverie.envs.distractors.distraction import Distraction
from reverie.envs.rendering import GL_HELP, Render, choose_renderer, open_camera, protocol
from reverie.envs.single import Arrival, Obs
from reverie.envs.specs import Array, EnvError, EnvSpec

CAMERAS = {"quadruped": 2, "fish": 3}
"""Cameras other than 0, as Dreamer's evaluations use them."""

MAX_CONTROL = 10.0
"""Control at action 1 where the suite sets no limit (lqr); its optimal controller stays below 6."""

DISTRACTION = 5
"""Key of the distraction's draws beside those of the task, which have the seed alone."""

UNLIMITED = 1e9
"""dm_control gives an actuator without limits the range of ±1e10."""

TASKS = (
    "acrobot_swingup acrobot_swingup_sparse ball_in_cup_catch cartpole_balance "
    "cartpole_balance_sparse cartpole_swingup cartpole_swingup_sparse cartpole_three_poles "
    "cartpole_two_poles cheetah_run dog_fetch dog_run dog_stand dog_trot dog_walk finger_spin "
    "finger_turn_easy finger_turn_hard fish_swim fish_upright hopper_hop hopper_stand humanoid_run "
    "humanoid_run_pure_state humanoid_stand humanoid_walk humanoid_CMU_run humanoid_CMU_stand "
    "humanoid_CMU_walk lqr_lqr_2_1 lqr_lqr_6_2 manipulator_bring_ball manipulator_bring_peg "
    "manipulator_insert_ball manipulator_insert_peg pendulum_swingup point_mass_easy "
    "point_mass_hard quadruped_escape quadruped_fetch quadruped_run quadruped_walk reacher_easy "
    "reacher_hard stacker_stack_2 stacker_stack_4 swimmer_swimmer15 swimmer_swimmer6 walker_run "
    "walker_stand walker_walk"
).split()


def split_task(name: str) -> tuple[str, str]:
    """Return the suite's domain and task of our name."""
    for domain in ("ball_in_cup", "humanoid_CMU", "point_mass"):
        if name.startswith(domain + "_"):
            return domain, name[len(domain) + 1 :]
    domain, _, task = name.partition("_")
    return domain, task


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Keep quiet about the age of dm_control's own model files; other warnings still show."""

    def current(record: logging.LogRecord) -> bool:
        return "is deprecated" not in record.getMessage()

    logger = logging.getLogger("absl")  # MuJoCo's compiler speaks through dm_control's absl logger
    logger.addFilter(current)
    try:
        yield
    finally:
        logger.removeFilter(current)


def load(name: str, *, unlimited: bool = False, drawn: bool = True) -> Any:
    """Load a suite task by our name; `unlimited` takes its time limit away.

    `drawn` needs an off-screen OpenGL library.
    """
    choose_renderer(required=drawn)
    try:
        from dm_control import suite
    except (ImportError, AttributeError, RuntimeError) as error:
        raise EnvError(f"dm_control does not load: {error}. {GL_HELP}") from error
    if name not in TASKS:
        raise EnvError(f"Expected one of the dm_control tasks {', '.join(TASKS)}; found {name!r}.")
    domain, task = split_task(name)
    arguments: dict[str, Any] = {"random": 0}
    if unlimited:
        arguments["time_limit"] = float("inf")
    with _without_deprecations():
        return suite.load(domain, task, task_kwargs=arguments)


class DmControl:
    """One suite task; an episode ends by the suite's time limit, which is not a termination.

    "vector" is the suite's observation dictionary, flattened in its own order.
    """

    def __init__(
        self,
        name: str,
        *,
        image_size: int = 64,
        action_repeat: int = 2,
        render: Render = "reference",
        observe: Literal["image", "state", "both"] = "image",
        unlimited: bool = False,
        distraction: Distraction | None = None,
        protocol_suffix: str = "",
    ) -> None:
        """Load the task; `distraction` is attached here and closed with the environment.

        `protocol_suffix` is what it adds to the protocol of every result.
        """
        assert image_size > 0 and action_repeat > 0
        self._drawn, self._state = observe != "state", observe != "image"
        self._env = load(name, unlimited=unlimited, drawn=self._drawn)
        action = self._env.action_spec()
        parts = self._env.observation_spec().values() if self._state else ()
        self.spec = EnvSpec(
            task=f"dmc/{name}",
            action_size=int(np.prod(action.shape)),
            discrete=False,
            image_shape=(image_size, image_size, 3) if self._drawn else None,
            vector_size=sum(int(np.prod(part.shape)) for part in parts),
            action_repeat=action_repeat,
            protocol=protocol(render, observe) + protocol_suffix,
        )
        low, high = np.asarray(action.minimum), np.asarray(action.maximum)
        unlimited_control = high >= UNLIMITED
        self._low = np.where(unlimited_control, -MAX_CONTROL, low)
        self._high = np.where(unlimited_control, MAX_CONTROL, high)
        self._size = image_size
        self._repeat = action_repeat
        domain, task = split_task(name)
        self._camera_id = CAMERAS.get(domain, 0)
        self._render: Render = render
        self._camera: Any = None
        self._distraction = distraction
        if distraction is not None:
            physics = self._env.physics
            distraction.attach(
                physics, domain=domain, task=task, camera_id=self._camera_id, size=image_size
            )

    def reset(self, seed: int) -> Obs:
        """Begin the episode of `seed`, whatever was played before."""
        # every suite task draws its episode from this generator and resets the physics
        self._env.task._random = np.random.RandomState(seed)
        moment = self._env.reset()
        if self._distraction is not None:
            self._distraction.reset(np.random.default_rng([seed, DISTRACTION]))
            # `subtle` changes sizes that some states are measured from
            task, physics = self._env.task, self._env.physics
            moment = moment._replace(observation=task.get_observation(physics))
        return self._obs(moment)

    def step(self, action: Array) -> Arrival:
        """Play the action, clipped to [-1, 1] and scaled to the actuators, `repeat` times."""
        unit = (np.clip(action.astype(np.float64), -1.0, 1.0) + 1.0) / 2.0
        control = self._low + unit * (self._high - self._low)
        reward = 0.0
        for _ in range(self._repeat):
            moment = self._env.step(control)
            reward += float(moment.reward or 0.0)
            if self._distraction is not None:
                self._distraction.after_simulator_step()
            if moment.last():
                break
        if self._distraction is not None:
            self._distraction.after_agent_step()
        terminal = bool(moment.last() and moment.discount == 0.0)
        return Arrival(self._obs(moment), reward, bool(moment.last()), terminal)

    def close(self) -> None:
        """Free the rendering context before the interpreter tears its threads down."""
        if self._env is not None:
            if self._distraction is not None:
                self._distraction.close()
            self._camera = None
            self._env.physics.free()
            self._env.close()
            self._env = None

    def _obs(self, moment: Any) -> Obs:
        obs: Obs = {}
        if self._drawn:
            obs["image"] = self._picture()
        if self._state:
            parts = [np.ravel(part) for part in moment.observation.values()]
            obs["vector"] = np.concatenate(parts).astype(np.float32)
        return obs

    def _picture(self) -> Array:
        if self._camera is None:
            self._camera = open_camera(
                self._env.physics,
                self._size,
                self._camera_id,
                render=self._render,
                task=self.spec.task,
            )
        if self._distraction is None:
            picture: Array = self._camera.render()
            return picture.copy()
        self._distraction.before_render(self._camera)
        # a copy, because segmenting draws into the same memory
        return self._distraction.after_render(self._camera.render().copy())
