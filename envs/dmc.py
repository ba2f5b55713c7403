"""dm_control tasks from pixels, in two render profiles.

"reference" is dm_control's own picture and the one to report scores with. "quick" leaves out
shadows, reflections and multisampling: 15 to 25 times faster on a CPU, a slightly different
picture, and therefore named in every result.
"""

from __future__ import annotations

import ctypes.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from reverie.envs.single import Arrival, Obs
from reverie.envs.specs import Array, EnvError, EnvSpec

Render = Literal["reference", "quick"]

CAMERAS = {"quadruped": 2, "fish": 3}
"""Cameras other than 0, as Dreamer's evaluations use them."""

GL_HELP = (
    "Rendering without a screen needs EGL or OSMesa: `apt-get install libegl1 libgl1-mesa-dri` "
    "(or `libosmesa6`), or choose a working one with MUJOCO_GL=egl|osmesa."
)

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


def choose_renderer() -> str:
    """Set MUJOCO_GL to the off-screen library this machine has, unless the user chose one."""
    if "MUJOCO_GL" not in os.environ:
        found = [n for n, lib in (("egl", "EGL"), ("osmesa", "OSMesa")) if _library(lib)]
        if not found:
            raise EnvError(f"Found no off-screen OpenGL library. {GL_HELP}")
        os.environ["MUJOCO_GL"] = found[0]
    # dm_control asks PyOpenGL for a platform on its own; the two must agree
    os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
    return os.environ["MUJOCO_GL"]


def _library(name: str) -> bool:
    return ctypes.util.find_library(name) is not None


def _split(name: str) -> tuple[str, str]:
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


def _load(name: str, *, unlimited: bool) -> Any:
    choose_renderer()
    try:
        from dm_control import suite
    except (ImportError, AttributeError, RuntimeError) as error:
        raise EnvError(f"dm_control does not load: {error}. {GL_HELP}") from error
    if name not in TASKS:
        raise EnvError(f"Expected one of the dm_control tasks {', '.join(TASKS)}; found {name!r}.")
    domain, task = _split(name)
    arguments: dict[str, Any] = {"random": 0}
    if unlimited:
        arguments["time_limit"] = float("inf")
    with _without_deprecations():
        return suite.load(domain, task, task_kwargs=arguments)


class DmControl:
    """One suite task; an episode ends by the suite's time limit, which is not a termination."""

    def __init__(
        self,
        name: str,
        *,
        image_size: int = 64,
        action_repeat: int = 2,
        render: Render = "reference",
        unlimited: bool = False,
    ) -> None:
        assert image_size > 0 and action_repeat > 0
        self._env = _load(name, unlimited=unlimited)
        action = self._env.action_spec()
        self.spec = EnvSpec(
            task=f"dmc/{name}",
            action_size=int(np.prod(action.shape)),
            discrete=False,
            image_shape=(image_size, image_size, 3),
            action_repeat=action_repeat,
            protocol=f"render={render}",
        )
        self._low = np.asarray(action.minimum, np.float64)
        self._high = np.asarray(action.maximum, np.float64)
        self._size = image_size
        self._repeat = action_repeat
        self._camera_id = CAMERAS.get(_split(name)[0], 0)
        self._quick = render == "quick"
        self._camera: Any = None

    def reset(self, seed: int) -> Obs:
        """Begin the episode of `seed`, whatever was played before."""
        # every suite task draws its episode from this generator and resets the physics
        self._env.task._random = np.random.RandomState(seed)
        self._env.reset()
        return {"image": self._picture()}

    def step(self, action: Array) -> Arrival:
        """Play the action, clipped to [-1, 1] and scaled to the actuators, `repeat` times."""
        unit = (np.clip(action.astype(np.float64), -1.0, 1.0) + 1.0) / 2.0
        control = self._low + unit * (self._high - self._low)
        reward = 0.0
        for _ in range(self._repeat):
            moment = self._env.step(control)
            reward += float(moment.reward or 0.0)
            if moment.last():
                break
        terminal = bool(moment.last() and moment.discount == 0.0)
        return Arrival({"image": self._picture()}, reward, bool(moment.last()), terminal)

    def close(self) -> None:
        """Free the rendering context before the interpreter tears its threads down."""
        if self._env is not None:
            self._camera = None
            self._env.physics.free()
            self._env.close()
            self._env = None

    def _picture(self) -> Array:
        if self._camera is None:
            self._camera = self._make_camera()
        picture: Array = self._camera.render()
        return picture.copy()

    def _make_camera(self) -> Any:
        import mujoco
        from dm_control.mujoco import engine

        physics = self._env.physics
        visual = physics.model.vis
        visual.global_.offwidth = max(self._size, visual.global_.offwidth)
        visual.global_.offheight = max(self._size, visual.global_.offheight)
        if self._quick:  # both sizes are read once, when the context is made
            visual.quality.offsamples = 0
            visual.quality.shadowsize = 0
        try:
            camera = engine.Camera(physics, self._size, self._size, self._camera_id)
            if self._quick:
                camera.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
                camera.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            camera.render()
        except Exception as error:
            raise EnvError(f"{self.spec.task} cannot render: {error!r}. {GL_HELP}") from error
        return camera
