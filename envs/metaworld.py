"""Meta-World's robot-arm tasks with their goals in sight, from state, from pixels, or from both.

Built without Meta-World's benchmarks: an episode draws object and goal from its own seed, and ends
at the first success.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Literal

import numpy as np

from reverie.envs.rendering import GL_HELP, Render, choose_renderer, open_camera, protocol
from reverie.envs.single import Arrival, Obs
from reverie.envs.specs import Array, EnvError, EnvSpec

TASKS = (
    "assembly basketball bin-picking box-close button-press button-press-topdown "
    "button-press-topdown-wall button-press-wall coffee-button coffee-pull coffee-push dial-turn "
    "disassemble door-close door-lock door-open door-unlock drawer-close drawer-open faucet-close "
    "faucet-open hammer hand-insert handle-press handle-press-side handle-pull handle-pull-side "
    "lever-pull peg-insert-side peg-unplug-side pick-out-of-hole pick-place pick-place-wall "
    "plate-slide plate-slide-back plate-slide-back-side plate-slide-side push push-back push-wall "
    "reach reach-wall shelf-place soccer stick-pull stick-push sweep sweep-into window-close "
    "window-open"
).split()

SIX = "button-press drawer-open door-open pick-place push peg-insert-side".split()
"""Tasks of the small benchmark, in its order."""

THREE = "button-press drawer-open window-open".split()
"""Three of the paper's tasks that differ in what the hand does: enough for images on a CPU."""

FIFTEEN = (
    "button-press-topdown button-press-topdown-wall button-press button-press-wall coffee-button "
    "coffee-pull coffee-push drawer-open faucet-close faucet-open disassemble door-close door-open "
    "window-close window-open"
).split()
"""Tasks of ACT-JEPA's evaluation, in its order."""

VECTOR = 39
"""Numbers of an observation: 18 now, the same 18 one step before, 3 of the goal."""

PROPRIO = 4
"""Position of the hand and opening of the gripper: all that belongs to the robot."""

CAMERA, CAMERA_AT = "corner2", (0.75, 0.075, 0.7)
"""The usual camera of imitation data, moved nearer as LeRobot does."""

INSTALL = (
    'Meta-World is not installed here: `pip install "reverie[metaworld]"`, best into an '
    "environment of its own (`make setup-metaworld` builds one), because it pins mujoco "
    "3.3.0 and with it an old dm_control."
)


def expert_policy(name: str) -> tuple[Any, str]:
    """Return a new scripted policy of the task, and what to call it in records of its data."""
    _require(name)
    from metaworld.policies import ENV_POLICY_MAP

    return ENV_POLICY_MAP[f"{name}-v3"](), f"metaworld {version('metaworld')} scripted policy"


class MetaWorld:
    """One task; it terminates at the first success, and its 500 steps are a time limit."""

    def __init__(
        self,
        name: str,
        *,
        image_size: int = 64,
        render: Render = "reference",
        observe: Literal["image", "state", "both"] = "state",
    ) -> None:
        assert image_size > 0
        self._drawn, self._state = observe != "state", observe != "image"
        self._env = _load(name, drawn=self._drawn)
        self.spec = EnvSpec(
            task=f"metaworld/{name}",
            action_size=4,
            discrete=False,
            image_shape=(image_size, image_size, 3) if self._drawn else None,
            vector_size=VECTOR if self._state else 0,
            proprio_size=PROPRIO if self._state else 0,
            protocol=f"metaworld={version('metaworld')},{protocol(render, observe)}",
            has_success=True,
        )
        self._physics: Any = None
        self._camera: Any = None
        if self._drawn:
            self._open_camera(image_size, render)

    def reset(self, seed: int) -> Obs:
        """Draw object and goal from `seed`; NumPy's global generator stays as it was."""
        with _seeded(seed):
            self._env.seed(seed)
            vector, _ = self._env.reset()
        return self._obs(vector)

    def step(self, action: Array) -> Arrival:
        """Move hand and gripper by the action, clipped to [-1, 1]."""
        row = self._env.step(np.clip(action, -1.0, 1.0))
        vector, reward, _, truncated, info = row
        solved = bool(info["success"])
        return Arrival(
            self._obs(vector), float(reward), solved or bool(truncated), solved, success=solved
        )

    def close(self) -> None:
        """Free the rendering context before the interpreter tears its threads down."""
        self._camera = None
        if self._physics is not None:
            self._physics.free()
            self._physics = None
        if self._env is not None:
            self._env.close()
            self._env = None

    def _open_camera(self, size: int, render: Render) -> None:
        from dm_control.mujoco import engine, wrapper

        # before the first reset, because this runs the simulator's forward pass; by dm_control,
        # so that one library owns all rendering contexts and frees them in the right order
        self._env.model.camera(CAMERA).pos = CAMERA_AT
        self._physics = engine.Physics(wrapper.MjData(self._env.data))
        self._camera = open_camera(self._physics, size, CAMERA, render=render, task=self.spec.task)

    def _obs(self, vector: Array) -> Obs:
        obs: Obs = {}
        if self._camera is not None:
            # this camera stands on its head
            obs["image"] = np.ascontiguousarray(self._camera.render()[::-1, ::-1])
        if self._state:
            obs["vector"] = np.array(vector, np.float32)
        return obs


def _load(name: str, *, drawn: bool) -> Any:
    choose_renderer(required=drawn)
    _require(name)
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except (ImportError, AttributeError, RuntimeError) as error:
        raise EnvError(f"metaworld does not load: {error}. {INSTALL} {GL_HELP}") from error
    env = ALL_V3_ENVIRONMENTS[f"{name}-v3"](render_mode=None)
    env._freeze_rand_vec = False
    env._set_task_called = True
    env._partially_observable = False
    # its bounds, by which every observation is clipped, were computed with a hidden goal of zeros
    vars(env).pop("sawyer_observation_space", None)
    return env


def _require(name: str) -> None:
    if name not in TASKS:
        raise EnvError(f"Expected one of the tasks {', '.join(TASKS)}; found {name!r}.")
    try:
        import metaworld  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "metaworld":
            raise
        raise EnvError(INSTALL) from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which Meta-World draws from, and put it back afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
