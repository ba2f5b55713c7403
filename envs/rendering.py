"""Off-screen pictures of MuJoCo worlds, in two render profiles.

"reference" is the simulator's own picture and the one to report scores with. "quick" leaves out
shadows, reflections and multisampling: many times faster on a CPU, a slightly different picture,
and therefore named in every result.
"""

from __future__ import annotations

import ctypes.util
import os
from typing import Any, Literal

from reverie.envs.specs import EnvError

Render = Literal["reference", "quick"]

GL_HELP = (
    "Rendering without a screen needs EGL or OSMesa: `apt-get install libegl1 libgl1-mesa-dri` "
    "(or `libosmesa6`), or choose a working one with MUJOCO_GL=egl|osmesa."
)


def choose_renderer(*, required: bool = True) -> None:
    """Set MUJOCO_GL to the off-screen library this machine has, unless the user chose one.

    Without any raises `EnvError` if `required`; worlds that are not drawn work all the same.
    """
    if "MUJOCO_GL" not in os.environ:
        found = [n for n, lib in (("egl", "EGL"), ("osmesa", "OSMesa")) if _library(lib)]
        if not found and required:
            raise EnvError(f"Found no off-screen OpenGL library. {GL_HELP}")
        if not found:
            return
        os.environ["MUJOCO_GL"] = found[0]
    # dm_control asks PyOpenGL for a platform on its own; the two must agree
    os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])


def _library(name: str) -> bool:
    return ctypes.util.find_library(name) is not None


def open_camera(physics: Any, size: int, camera: int | str, *, render: Render, task: str) -> Any:
    """Return a dm_control `Camera` of size x size pixels, after a first picture that proves it.

    Raises:
        EnvError: this machine cannot draw; the message says what to install.
    """
    import mujoco
    from dm_control.mujoco import engine

    visual = physics.model.vis
    visual.global_.offwidth = max(size, visual.global_.offwidth)
    visual.global_.offheight = max(size, visual.global_.offheight)
    if render == "quick":  # both sizes are read once, when the context is made
        visual.quality.offsamples = 0
        visual.quality.shadowsize = 0
    try:
        opened = engine.Camera(physics, size, size, camera)
        if render == "quick":
            opened.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            opened.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        opened.render()
    except Exception as error:
        raise EnvError(f"{task} cannot render: {error!r}. {GL_HELP}") from error
    return opened


def protocol(render: Render, observe: str) -> str:
    """Return what a score from MuJoCo has to be reported with."""
    if observe == "state":
        return "observe=state"
    return f"render={render}" + (",observe=both" if observe == "both" else "")
