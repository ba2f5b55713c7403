"""Which pixels of a scene are background."""

from __future__ import annotations

from typing import Any

import numpy as np

from reverie.envs.specs import Array

SURFACES = ("floor", "ground", "wall")
"""How names of fixed geoms begin that belong to the background."""


def blue_mask(picture: Array) -> Array:
    """Return where blue is strictly above red and green, bool [H, W].

    The rule of all natural-background papers. Shadows and reflections on a blue floor go as well,
    and so do blue parts of bodies: finger's hinges, pendulum's base.
    """
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    found: Array = (blue > red) & (blue > green)
    return found


def surfaces(model: Any, *, floor: bool) -> Array:
    """Return which geoms are background, bool [geoms + 1]; the last entry stands for the sky.

    Planes, height fields and fixed geoms that are called floor, ground or wall. Other geoms of the
    world stay: reacher's target is one. Without `floor` all geoms stay.
    """
    import mujoco

    found = np.zeros(model.ngeom + 1, np.bool_)
    found[-1] = True
    if floor:
        # numbers, because an enumeration equals none
        flat = (int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_HFIELD))
        for geom in range(model.ngeom):
            name = model.id2name(geom, "geom")
            named = model.geom_bodyid[geom] == 0 and name.startswith(SURFACES)
            found[geom] = named or model.geom_type[geom] in flat
    return found


def segmentation_mask(segmented: Array, background: Array) -> Array:
    """Return where a segmented picture int [H, W, 2] shows `background` or sky, bool [H, W].

    What is no geom and not the sky, such as a site or a tendon, is foreground.
    """
    import mujoco

    index, kind = segmented[..., 0], segmented[..., 1]
    geom = kind == int(mujoco.mjtObj.mjOBJ_GEOM)  # an enum would be compared in Python, by pixel
    found: Array = (index < 0) | (geom & background[np.where(geom, index, -1)])
    return found
