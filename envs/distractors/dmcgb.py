"""DMControl-GB (Hansen & Wang 2021, arXiv 2011.13389): other colours, or a film behind the scene.

Agents train on the plain suite and are tested on these. Own code, on current MuJoCo. What differs
from the original, or goes wrong in it:

- it compiles the model anew at each reset and copies the state over: here the compiled model's
  materials and textures are edited, within one grey level of what compiling gives, and closing
  gives them back;
- its hundred colour settings per level come in files; these are drawn in the same way, from a
  seed of the level: stock colours plus noise, clipped;
- its wrapper takes the clips in turn, beginning with the second, so that an episode depends on how
  many went before: here each episode draws its clip, and plays it from frame 0;
- its green screen asks each pixel in Python: here all at once, by the same box of hue, saturation
  and value. As there, what is green enough on a body is lost; the mask "exact" asks the simulator
  which surface each pixel shows and loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from reverie.envs.distractors.dcs import DOMAINS
from reverie.envs.distractors.distraction import Distraction, Mask
from reverie.envs.distractors.sources import ClipSource, Split
from reverie.envs.distractors.textures import Texture, sky_texture
from reverie.envs.specs import Array, EnvError

Level = Literal["easy", "hard"]

SETTINGS = 100
NOISE = {"easy": 0.1, "hard": 0.2}
"""Standard deviation of the colours, by level."""
CLIPS = {"easy": 10, "hard": 100}
SELF, GRID, SKY = (0.7, 0.5, 0.3), (0.1, 0.2, 0.3), (0.4, 0.6, 0.8)
"""Stock colours of the body, of the floor's darker squares and of the top of the sky."""
GRID_STEP = 0.1
"""How much lighter the other squares are."""
GREEN = (51, 204, 51)
HUE, SATURATION, VALUE = (100.0, 185.0), 80 / 255, 70 / 255
"""What counts as the green screen: hue in degrees between two limits, the others at least this."""


def colour_settings(level: Level) -> Array:
    """Return the level's settings, float64 [100, 4, 3]: body, both squares of the floor, sky."""
    # the key is arbitrary and fixed: these settings are the benchmark
    rng = np.random.default_rng([2011, 13389, int(NOISE[level] * 10)])
    noise = NOISE[level] * rng.normal(size=(SETTINGS, 3, 3))
    drawn = np.clip(np.array([SELF, GRID, SKY]) + noise, 0.0, 1.0)
    body, dark, sky = drawn[:, 0], drawn[:, 1], drawn[:, 2]
    return np.stack([body, dark, np.clip(dark + GRID_STEP, 0.0, 1.0), sky], axis=1)


def green_screen(picture: Array) -> Array:
    """Return which pixels of uint8 [H, W, 3] lie in the green box, bool [H, W]."""
    red, green, blue = np.moveaxis(picture.astype(np.float32), -1, 0)
    value = picture.max(-1).astype(np.float32)
    spread = value - picture.min(-1)
    safe = np.maximum(spread, 1.0)
    # hues beyond 185 and below 100 are never green, but for a part of those led by blue
    hue = np.where(
        green == value,
        120.0 + 60.0 * (blue - red) / safe,
        np.where((blue == value) & (red != value), 240.0 + 60.0 * (red - green) / safe, 0.0),
    )
    green_hue = (hue >= HUE[0]) & (hue <= HUE[1])
    found: Array = green_hue & (spread >= SATURATION * value) & (value >= VALUE * 255)
    return found


def _bytes(colour: Array) -> Array:
    truncated: Array = (colour * 255).astype(np.uint8)  # as MuJoCo's compiler does
    return truncated


class Recoloured:
    """One of the settings in each episode."""

    def __init__(self, level: Level) -> None:
        self._settings = colour_settings(level)
        self._attached = self._fresh = False

    def attach(self, physics: Any, *, domain: str, task: str, camera_id: int, size: int) -> None:
        """Take over a loaded physics before its first picture."""
        model = physics.model
        self._model, self._body = model, model.name2id("self", "material")
        self._stock = model.mat_rgba[self._body].copy()
        self._sky = Texture(physics, sky_texture(model))
        self._grid = Texture(physics, model.name2id("grid", "texture"))
        # the outermost pixels are a mark in a colour of its own, equal to the lighter squares'
        inside = np.zeros(self._grid.stock.shape[:2], np.bool_)
        inside[1:-1, 1:-1] = True
        dark = (self._grid.stock == _bytes(np.array(GRID))).all(-1)
        self._dark, self._light = inside & dark, inside & ~dark
        self._attached = True

    def reset(self, rng: np.random.Generator) -> None:
        """Draw a setting and apply it."""
        self.setting = int(rng.integers(SETTINGS))
        self.paint(self._settings[self.setting])

    def paint(self, setting: Array) -> None:
        """Apply the colours [4, 3] of body, dark squares, light squares and sky."""
        body, dark, light, sky = setting
        self._model.mat_rgba[self._body, :3] = body
        self._grid.pixels[self._dark] = _bytes(dark)
        self._grid.pixels[self._light] = _bytes(light)
        # the sky fades from its colour to black, so that its blue says how far; stars are white
        fade = (np.arange(256)[:, None] + 0.5) / (SKY[2] * 255)
        table = _bytes(np.minimum(fade, 1.0) * sky)
        table[0], table[255] = 0, 255
        np.take(table, self._sky.stock[..., 2], axis=0, out=self._sky.pixels)
        self._fresh = True

    def after_simulator_step(self) -> None:
        """Colours stay for the episode."""

    def after_agent_step(self) -> None:
        """Colours stay for the episode."""

    def before_render(self, camera: Any) -> None:
        """Send the textures to the renderer, once per episode."""
        if self._fresh:
            self._grid.upload()
            self._sky.upload()
            self._fresh = False

    def after_render(self, picture: Array) -> Array:
        """Return the picture as it is."""
        return picture

    def close(self) -> None:
        """Give the model back as it was; call it before the physics are freed."""
        if self._attached:
            self._attached = False
            self._model.mat_rgba[self._body] = self._stock
            self._grid.restore()
            self._sky.restore()


class Filmed:
    """The sky, and at the level "hard" the floor, are green and replaced by a film.

    One frame per agent step; after the last frame comes the first.
    """

    def __init__(self, level: Level, source: ClipSource, split: Split, *, exact: bool) -> None:
        self._floor_too, self._exact = level == "hard", exact
        self._source, self._split = source, split
        self._clips = min(source.count(split), CLIPS[level])
        self._textures: list[Texture] = []
        self._fresh = False

    def attach(self, physics: Any, *, domain: str, task: str, camera_id: int, size: int) -> None:
        """Paint a loaded physics green before its first picture.

        Raises:
            EnvError: the clips do not have the size of the pictures.
        """
        if self._source.size != size:
            raise EnvError(
                f"Expected clips of the pictures' {size} pixels, found {self._source.size}. "
                "Make the source with the image size."
            )
        model = physics.model
        self._model = model
        self._textures = [Texture(physics, sky_texture(model), side=8)]
        if self._floor_too:
            self._textures.append(Texture(physics, model.name2id("grid", "texture")))
        for texture in self._textures:
            texture.pixels[:] = GREEN
        self._fresh = True

    def reset(self, rng: np.random.Generator) -> None:
        """Draw a clip; it begins with its first frame."""
        self.index = int(rng.integers(self._clips))
        self._clip = self._source.open(self._split, self.index)
        self.position = 0

    def after_simulator_step(self) -> None:
        """The film runs at the agent's pace."""

    def after_agent_step(self) -> None:
        """Turn to the next frame."""
        self.position = (self.position + 1) % self._clip.length

    def before_render(self, camera: Any) -> None:
        """Make sure that the renderer has the green."""
        self._camera = camera
        if self._fresh:
            for texture in self._textures:
                texture.upload()
            self._fresh = False

    def after_render(self, picture: Array) -> Array:
        """Return the picture with the film in the place of the green."""
        cut = self._surfaces() if self._exact else green_screen(picture)
        return np.where(cut[..., None], self._clip.frame(self.position), picture)

    def close(self) -> None:
        """Give the model back as it was; call it before the physics are freed."""
        for texture in self._textures:
            texture.restore()
        self._textures = []

    def _surfaces(self) -> Array:
        """Which pixels show the sky, or a floor that goes."""
        import mujoco

        seen = self._camera.render(segmentation=True)
        index, kind = seen[..., 0], seen[..., 1]
        cut: Array = index < 0
        if self._floor_too:
            painted = self._model.geom_matid == self._model.name2id("grid", "material")
            # index -1 reads the last geom, which is then not asked
            cut |= (kind == int(mujoco.mjtObj.mjOBJ_GEOM)) & painted[index]
        return cut


@dataclass(frozen=True)
class DmcGbPreset:
    """One of the four test sets."""

    name: str
    kind: Literal["color", "video"]
    level: Level
    family: Literal["dmcgb"] = "dmcgb"

    @property
    def summary(self) -> str:
        """What it does, in a line."""
        if self.kind == "color":
            return f"one of {SETTINGS} colour settings per episode, noise {NOISE[self.level]}"
        place = "sky and floor" if self.level == "hard" else "the sky"
        return f"a film in the place of {place}, {CLIPS[self.level]} clips"

    def defined(self, domain: str, task: str) -> bool:
        """Whether the benchmark has this domain, and the set changes what is seen of it."""
        # reacher's floor fills the picture, so that no sky is ever seen
        unseen = domain == "reacher" and self.name == "dmcgb-video_easy"
        return domain in DOMAINS and not unseen

    def build(self, source: ClipSource, split: Split, mask: Mask) -> Distraction:
        """Build it, with clips of `source` for the video sets.

        Raises:
            EnvError: the mask is not one of this set's.
        """
        known = ("preset", "exact") if self.kind == "video" else ("preset",)
        if mask not in known:
            raise EnvError(
                f"{self.name}: expected the mask {' or '.join(known)}, found {mask!r}. Leave it "
                "out for the benchmark's own."
            )
        if self.kind == "color":
            return Recoloured(self.level)
        return Filmed(self.level, source, split, exact=mask == "exact")


PRESETS: dict[str, DmcGbPreset] = {
    "dmcgb-color_easy": DmcGbPreset("dmcgb-color_easy", "color", "easy"),
    "dmcgb-color_hard": DmcGbPreset("dmcgb-color_hard", "color", "hard"),
    "dmcgb-video_easy": DmcGbPreset("dmcgb-video_easy", "video", "easy"),
    "dmcgb-video_hard": DmcGbPreset("dmcgb-video_hard", "video", "hard"),
}
