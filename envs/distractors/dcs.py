"""The Distracting Control Suite (Stone et al. 2021, arXiv 2101.02722) on current MuJoCo.

Camera, colours and background are disturbed, together or one at a time, by draws of each episode
(static) or of each simulator step (dynamic); every range is a multiple of one scale. Own code.
What the original gets wrong or cannot do, and how it is here:

- its colour wrapper ignores its seed: all draws come from the episode's generator, and each part
  has a stream of its own, so that camera and colours are the same with and without a background;
- its camera wrapper reads the mode of camera 0 whatever camera it moves: the mode of the one moved;
- it writes `tex_rgb`, gone since MuJoCo 3.2: `tex_data`;
- it takes texture 0 for the sky: the texture of that type is looked up;
- a reset keeps changed colours and textures: each reset starts from the stock ones, and closing
  gives every array of the model back;
- sending an 800 x 800 sky to the renderer takes 19 to 25 ms of CPU time, one of 128 x 128 takes
  1.5: the sky gets the size of the clips, and only a frame that changed is sent;
- a camera that looks straight down (reacher) jumps by half a turn when it wanders over the pole:
  it swings past;
- at the last frame of a clip it pauses for a step, at the first it does not: neither pauses;
- the moved pose stays in the simulator's data: it is there for the time of a picture only.

The film is mirrored once, as the sky is seen from inside. Its frames have the size of the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from reverie.envs.distractors.dcs_background import SkyFilm
from reverie.envs.distractors.dcs_camera import CameraWalk
from reverie.envs.distractors.dcs_colour import ColourWalk
from reverie.envs.distractors.distraction import Distraction, Mask
from reverie.envs.distractors.sources import ClipSource, Split
from reverie.envs.specs import Array, EnvError

Part = Literal["camera", "colour", "background"]
PARTS: tuple[Part, ...] = ("camera", "colour", "background")

DOMAINS = ("ball_in_cup", "cartpole", "cheetah", "finger", "reacher", "walker")
"""What the original disturbs."""

LEVELS = {"easy": (0.1, 4), "medium": (0.2, 8), "hard": (0.3, 60)}
"""Level -> (scale, clips to train in front of)."""

SKY_SIZE = 128
"""Pixels of a frame on the sky: the size of the source for these presets."""


class Dcs:
    """Those of the three disturbances that are not None, on one physics."""

    def __init__(
        self, camera: CameraWalk | None, colour: ColourWalk | None, film: SkyFilm | None
    ) -> None:
        self.camera, self.colour, self.film = camera, colour, film
        self._attached = False

    def attach(self, physics: Any, *, domain: str, task: str, camera_id: int, size: int) -> None:
        """Take over a loaded physics before its first picture."""
        if self.camera is not None:
            # reacher is seen from straight above, where there is no front
            self.camera.attach(physics, camera_id, quadrant=domain != "reacher")
        if self.colour is not None:
            self.colour.attach(physics)
        if self.film is not None:
            self.film.attach(physics, domain)
        self._attached = True

    def reset(self, rng: np.random.Generator) -> None:
        """Draw a new episode, after the reset of the physics."""
        for part, stream in zip((self.camera, self.colour, self.film), rng.spawn(3), strict=True):
            if part is not None:
                part.reset(stream)

    def after_simulator_step(self) -> None:
        """Advance all clocks."""
        for part in (self.camera, self.colour, self.film):
            if part is not None:
                part.step()

    def after_agent_step(self) -> None:
        """Nothing moves at the agent's pace."""

    def before_render(self, camera: Any) -> None:
        """Show the camera's pose and the film's frame."""
        if self.camera is not None:
            self.camera.apply()
        if self.film is not None:
            self.film.apply()

    def after_render(self, picture: Array) -> Array:
        """Return the picture as it is; the camera goes back to its place."""
        if self.camera is not None:
            self.camera.undo()
        return picture

    def close(self) -> None:
        """Give the model back as it was; call it before the physics are freed."""
        if not self._attached:
            return
        self._attached = False
        if self.camera is not None:
            self.camera.undo()
        if self.colour is not None:
            self.colour.restore()
        if self.film is not None:
            self.film.restore()


@dataclass(frozen=True)
class DcsPreset:
    """One level, moving or not, of one part or of all three."""

    name: str
    level: str
    dynamic: bool
    parts: tuple[Part, ...] = PARTS
    family: Literal["dcs"] = "dcs"

    @property
    def summary(self) -> str:
        """What it does, in a line."""
        scale, videos = LEVELS[self.level]
        clips = f", {videos} clips" if "background" in self.parts else ""
        moving = "at every simulator step" if self.dynamic else "once per episode"
        return f"{', '.join(self.parts)} disturbed {moving}, scale {scale}{clips}"

    def defined(self, domain: str, task: str) -> bool:
        """Whether the original has this domain; all of its tasks are taken."""
        return domain in DOMAINS

    def build(self, source: ClipSource, split: Split, mask: Mask) -> Distraction:
        """Build it, with clips of `source` on the sky.

        Raises:
            EnvError: a mask was asked for.
        """
        if mask != "preset":
            raise EnvError(
                f"{self.name}: expected the mask 'preset', found {mask!r}; the film is on the sky "
                "itself and nothing is cut out. Leave the mask out."
            )
        scale, videos = LEVELS[self.level]
        camera = colour = film = None
        if "camera" in self.parts:
            camera = CameraWalk(scale, dynamic=self.dynamic)
        if "colour" in self.parts:
            colour = ColourWalk(scale, dynamic=self.dynamic)
        if "background" in self.parts:
            film = SkyFilm(source, split, videos=videos, dynamic=self.dynamic)
        return Dcs(camera, colour, film)


def _presets() -> dict[str, DcsPreset]:
    found = {}
    for level in LEVELS:
        for dynamic in (False, True):
            name = f"dcs-{level}" + ("-dynamic" if dynamic else "")
            found[name] = DcsPreset(name, level, dynamic)
            for part in PARTS:
                single = f"{name}-{part}"
                found[single] = DcsPreset(single, level, dynamic, (part,))
    return found


PRESETS = _presets()
