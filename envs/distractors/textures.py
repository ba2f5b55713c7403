"""Pictures on the surfaces of a compiled MuJoCo model, replaced while it runs and put back then."""

from __future__ import annotations

from typing import Any

from reverie.envs.specs import Array, EnvError


def sky_texture(model: Any) -> int:
    """Return the index of the sky's texture, which need not be the first one."""
    import mujoco

    for index in range(model.ntex):
        if model.tex_type[index] == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
            return index
    raise EnvError(
        "Expected a model with a sky to put pictures on, found no texture of type skybox. "
        "Choose a task of the DeepMind Control suite."
    )


class Texture:
    """One texture of a physics; `pixels` is a view that `upload` sends to the renderer.

    With `side` it becomes a picture of side x side pixels, which a sky shows on all six faces: a
    sky of the suite has 800 x 4800, and sending that takes an order of magnitude longer.
    """

    def __init__(self, physics: Any, index: int, *, side: int | None = None) -> None:
        model = physics.model
        self._physics, self._index = physics, index
        self._shape = (int(model.tex_height[index]), int(model.tex_width[index]))
        height, width = self._shape if side is None else (side, side)
        if height * width > self._shape[0] * self._shape[1]:
            raise EnvError(
                f"Expected pictures of at most {self._shape[1]} pixels for this texture, found "
                f"{side}. Choose a source of smaller clips."
            )
        model.tex_height[index], model.tex_width[index] = height, width
        first = int(model.tex_adr[index])
        channels = int(model.tex_nchannel[index])
        used = model.tex_data[first : first + height * width * channels]
        self.pixels: Array = used.reshape(height, width, channels)
        self.stock: Array = self.pixels.copy()
        """What `pixels` held at first."""

    def upload(self) -> None:
        """Show `pixels` from the next picture on; needs the renderer."""
        import mujoco

        contexts = self._physics.contexts
        with contexts.gl.make_current() as current:
            current.call(
                mujoco.mjr_uploadTexture,
                self._physics.model.ptr,
                contexts.mujoco.ptr,
                self._index,
            )

    def restore(self) -> None:
        """Give the model its own picture and size back, and the renderer if there still is one."""
        model = self._physics.model
        self.pixels[:] = self.stock
        model.tex_height[self._index], model.tex_width[self._index] = self._shape
        if self._physics._contexts is not None:  # `contexts` would make new ones
            self.upload()
