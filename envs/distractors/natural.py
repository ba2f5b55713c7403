"""Natural backgrounds: films in the place of sky and floor, after five groups' protocols.

All of them replace the pixels in which blue is strictly above red and green, and resize films
without keeping their aspect. They differ in colour, floor, clock, start, end and split, so that
numbers of different protocols must not be compared. Sources: DBC (Zhang et al. 2021), TPC (Nguyen
et al. 2021), DreamerPro (Deng et al. 2022), RePo (Zhu et al. 2023), and the environment of the
author of MuDreamer (Burchi & Timofte 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from reverie.envs.distractors.distraction import Distraction, Mask
from reverie.envs.distractors.masks import blue_mask, segmentation_mask, surfaces
from reverie.envs.distractors.player import ClipPlayer, Showing
from reverie.envs.distractors.sources import ClipSource, Split
from reverie.envs.distractors.textures import Texture, sky_texture
from reverie.envs.specs import Array, EnvError

FLOOR_SHOWN = ("cheetah", "hopper", "stacker", "walker")
"""Domains whose floor is dark grey in DBC's copy of the suite, and so stays visible."""

BLUE_GRID = ((25, 25, 102), (51, 51, 204))
GREY_GRID = ((25, 25, 25), (51, 51, 51))
"""Darker and lighter squares of the floor in that copy; MuJoCo truncates 0.1 * 255 to 25."""
BROWN = (0.3, 0.2, 0.1)
"""Decoration there: a colour that is not replaced."""


class Natural:
    """A film behind one physics."""

    def __init__(self, player: ClipPlayer, *, recoloured: bool, exact: bool) -> None:
        self.player = player
        self._recoloured, self._exact = recoloured, exact
        self._paint: _Paint | None = None

    def attach(self, physics: Any, *, domain: str, task: str, camera_id: int, size: int) -> None:
        """Take over a loaded physics; DBC's and RePo's scenes are painted.

        Raises:
            EnvError: the clips do not have the size of the pictures.
        """
        if self.player.size != size:
            raise EnvError(
                f"Expected clips of the pictures' {size} pixels, found {self.player.size}. Make "
                "the source with the image size."
            )
        floor = not (self._recoloured and domain in FLOOR_SHOWN)
        self._background = surfaces(physics.model, floor=floor)
        if self._recoloured:
            self._paint = _Paint(physics, BLUE_GRID if floor else GREY_GRID)

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode."""
        self.player.reset(rng)

    def after_simulator_step(self) -> None:
        """Turn to the next frame if that is the clock."""
        self.player.after_simulator_step()

    def after_agent_step(self) -> None:
        """Turn to the next frame if that is the clock."""
        self.player.after_agent_step()

    def before_render(self, camera: Any) -> None:
        """Make sure that the renderer has the paint."""
        self._camera = camera
        if self._paint is not None:
            self._paint.show()

    def after_render(self, picture: Array) -> Array:
        """Return the picture with the film in the place of the background."""
        if self._exact:
            seen = self._camera.render(segmentation=True)
            cut = segmentation_mask(seen, self._background)
        else:
            cut = blue_mask(picture)
        return np.where(cut[..., None], self.player.frame(), picture)

    def close(self) -> None:
        """Give the model back as it was; call it before the physics are freed."""
        if self._paint is not None:
            self._paint.restore()
            self._paint = None


class _Paint:
    """The colours of DBC's copy of the suite, on the stock model."""

    def __init__(self, physics: Any, grid: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
        self._model = model = physics.model
        self._decoration = model.name2id("decoration", "material")
        self._stock = model.mat_rgba[self._decoration].copy()
        model.mat_rgba[self._decoration, :3] = BROWN
        floor = Texture(physics, model.name2id("grid", "texture"))
        # the darker squares are where the stock grid is darker than its outermost pixels, a mark
        dark = floor.stock.sum(-1) < floor.stock[0, 0].sum()
        floor.pixels[dark], floor.pixels[~dark] = grid
        sky = Texture(physics, sky_texture(model))
        stars = (sky.stock == 255).all(-1)
        sky.pixels[stars] = 0
        self._textures, self._fresh = (floor, sky), True

    def show(self) -> None:
        if self._fresh:
            for texture in self._textures:
                texture.upload()
            self._fresh = False

    def restore(self) -> None:
        self._model.mat_rgba[self._decoration] = self._stock
        for texture in self._textures:
            texture.restore()


@dataclass(frozen=True)
class NaturalPreset:
    """One group's protocol."""

    name: str
    showing: Showing
    recoloured: bool = False
    """The scene has the colours of DBC's copy of the suite."""
    tested_on: Split = "test"
    """Clips of an evaluation."""
    family: Literal["natural"] = "natural"

    @property
    def summary(self) -> str:
        """What it does, in a line."""
        show = self.showing
        colour = "grey" if show.gray else "colour"
        start = "reel from anywhere" if show.total else f"from a {show.start} frame"
        start = "from the first frame" if show.start == "zero" else start
        scene = ", repainted scene" if self.recoloured else ""
        tested = ", tested on the clips of training" if self.tested_on == "train" else ""
        return f"film in {colour}, a frame per {show.clock} step, {start}{scene}{tested}"

    def defined(self, domain: str, task: str) -> bool:
        """Whether the scene suits the blue rule: all but lqr, which loses a third of its bodies."""
        return domain != "lqr"

    def shown(self, split: Split) -> Split:
        """Return the split whose clips are really shown."""
        return self.tested_on if split == "test" else split

    def player(self, source: ClipSource, split: Split) -> ClipPlayer:
        """Return what shows clips of `source` as this protocol does."""
        return ClipPlayer(self.showing, source, self.shown(split))

    def build(self, source: ClipSource, split: Split, mask: Mask) -> Distraction:
        """Build it in front of clips of `source`."""
        player = self.player(source, split)
        return Natural(player, recoloured=self.recoloured, exact=mask == "exact")


_DREAMERPRO = Showing("agent", clips=100, frames=1000)

PRESETS: dict[str, NaturalPreset] = {
    "dreamerpro": NaturalPreset("dreamerpro", _DREAMERPRO),
    "tpc": NaturalPreset("tpc", Showing("simulator", clips=100, frames=1000)),
    "repo": NaturalPreset(
        "repo", Showing("simulator", gray=True, total=1000), recoloured=True, tested_on="train"
    ),
    "dbc": NaturalPreset("dbc", Showing("agent", gray=True, total=1000), recoloured=True),
    "mudreamer": NaturalPreset(
        "mudreamer", Showing("simulator", start="zero", end="next", seconds=20.0)
    ),
}
