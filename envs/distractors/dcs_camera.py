"""The camera of the Distracting Control Suite: a random pose around the agent, wandering or not."""

from __future__ import annotations

from typing import Any

import numpy as np

from reverie.envs.specs import Array

ANGLE = np.pi / 2
"""Largest turn of azimuth, polar angle and roll from the stock pose, at scale 1."""
ZOOM_IN, ZOOM_OUT = 0.5, 1.5
"""Largest change of the distance, as a share of the stock one, at scale 1."""
SPEED_STEP, TOP_SPEED = 0.1, 0.4
"""Standard deviation of the change of velocity, and the fastest, per simulator step at scale 1."""
ROLL_STEP, TOP_ROLL = np.pi / 300, np.pi / 50
"""The same of the roll."""
USUAL_RADIUS = 4.0
"""Distance at which the speeds hold; they shrink with the stock distance."""


def cartesian(sphere: Array) -> Array:
    """Return [x, y, z] of [radius, azimuth, polar angle]."""
    radius, azimuth, polar = sphere
    flat = radius * np.sin(polar)
    return np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), radius * np.cos(polar)])


def spherical(point: Array, near: Array) -> Array:
    """Return [radius, azimuth, polar angle] of `point`, by the angles nearest to those of `near`.

    Over the pole the polar angle turns negative, so that a camera that looks straight down can
    swing past it without spinning by half a turn.
    """
    flat = np.hypot(point[0], point[1])
    azimuth, polar = np.arctan2(point[1], point[0]), np.arctan2(flat, point[2])
    names = []
    for turned, angle in ((azimuth, polar), (azimuth + np.pi, -polar)):
        whole = 2 * np.pi * np.round((near[1] - turned) / (2 * np.pi))
        names.append(np.array([np.linalg.norm(point), turned + whole, angle]))
    nearest: Array = min(names, key=lambda name: float(np.abs(name - near)[1:].sum()))
    return nearest


def look(direction: Array, *, upright: bool) -> Array:
    """Return the rotation of a camera that looks along `direction`: columns right, up and back.

    `upright` keeps the horizon level. Otherwise the camera turns the shortest way from looking
    straight down, which has no horizon to keep.
    """
    ahead = direction / np.linalg.norm(direction)
    if upright:
        right = np.cross(ahead, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(right, ahead), -ahead], axis=1)
    x, y, z = np.cross([0.0, 0.0, -1.0], ahead)
    skew = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    turned: Array = np.eye(3) + skew + skew @ skew / (1.0 - ahead[2])
    return turned


class CameraWalk:
    """Moves a camera for the time of a picture only, so that nothing else ever sees it moved.

    Fixed cameras circle the origin of the world, following ones the centre of mass of what they
    follow; the camera looks at the agent, as far ahead of the stock camera as the agent is.
    """

    def __init__(self, scale: float, *, dynamic: bool) -> None:
        self._scale, self._dynamic = scale, dynamic
        self._stock: tuple[Array, Array] | None = None

    def attach(self, physics: Any, camera_id: int, *, quadrant: bool) -> None:
        """Take over one camera; `quadrant` keeps it in front of the agent and not below it."""
        import mujoco

        self._physics, self._id, self._quadrant = physics, camera_id, quadrant
        model = physics.model
        fixed = model.cam_mode[camera_id] == mujoco.mjtCamLight.mjCAMLIGHT_FIXED
        self._followed = None if fixed else int(model.cam_bodyid[camera_id])

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the pose and the velocity of an episode, whose physics have been reset."""
        self._rng, scale = rng, self._scale
        stock = self._physics.data.cam_xpos[self._id] - self._centre()
        start = spherical(stock, np.array([0.0, np.arctan2(stock[1], stock[0]), np.pi / 4]))
        reach = np.array([0.0, ANGLE, ANGLE]) * scale
        self.low, self.high = start - reach, start + reach
        self.low[0] = start[0] * (1 - ZOOM_IN * scale)
        self.high[0] = start[0] * (1 + ZOOM_OUT * scale)
        if self._quadrant:
            self.low[1:] = np.maximum(self.low[1:], [-np.pi, 0.0])
            self.high[1:] = np.minimum(self.high[1:], [0.0, np.pi / 2])
        self.sphere = rng.uniform(self.low, self.high)
        self.roll = float(rng.uniform(-ANGLE, ANGLE)) * scale
        self._pace = scale * start[0] / USUAL_RADIUS
        heading = rng.normal(size=3)
        speed = rng.uniform(0.0, TOP_SPEED * self._pace)
        self.velocity = speed * heading / np.linalg.norm(heading)
        self.roll_velocity = float(rng.uniform(-TOP_ROLL, TOP_ROLL)) * scale
        self._target = self._ahead()

    def step(self) -> None:
        """Wander for one simulator step."""
        if not self._dynamic:
            return
        velocity = self.velocity + self._rng.normal(size=3) * SPEED_STEP * self._pace
        speed, top = np.linalg.norm(velocity), TOP_SPEED * self._pace
        velocity *= top / max(speed, top)
        before = cartesian(self.sphere)
        moved = spherical(before + velocity, self.sphere)
        self.sphere = np.clip(moved, self.low, self.high)
        # a wall stops the part of the motion that runs into it
        self.velocity = cartesian(self.sphere) - before
        turn = self.roll_velocity + float(self._rng.normal()) * ROLL_STEP * self._scale
        turn = float(np.clip(turn, -TOP_ROLL * self._scale, TOP_ROLL * self._scale))
        limit = ANGLE * self._scale
        rolled = float(np.clip(self.roll + turn, -limit, limit))
        self.roll, self.roll_velocity = rolled, rolled - self.roll

    def apply(self) -> None:
        """Put the camera where it belongs, until `undo`."""
        data = self._physics.data
        if self._followed is not None:
            self._target = self._ahead()
        position = cartesian(self.sphere) + self._centre()
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        rolled = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        turned = look(self._target - position, upright=self._quadrant) @ rolled
        self._stock = (data.cam_xpos[self._id].copy(), data.cam_xmat[self._id].copy())
        data.cam_xpos[self._id], data.cam_xmat[self._id] = position, turned.ravel()

    def undo(self) -> None:
        """Put the camera back where the physics have it."""
        if self._stock is not None:
            data = self._physics.data
            data.cam_xpos[self._id], data.cam_xmat[self._id] = self._stock
            self._stock = None

    def _centre(self) -> Array:
        if self._followed is None:
            return np.zeros(3)
        centre: Array = self._physics.data.subtree_com[self._followed].copy()
        return centre

    def _ahead(self) -> Array:
        """The point as far in front of the stock camera as the agent is away from it."""
        data = self._physics.data
        position = data.cam_xpos[self._id].copy()
        distance = np.linalg.norm(position - data.subtree_com[1])  # body 1 is the agent's root
        back = data.cam_xmat[self._id].reshape(3, 3)[:, 2]
        point: Array = position - distance * back
        return point
