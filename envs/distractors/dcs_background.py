"""The background of the Distracting Control Suite: a film, or one frame of it, on the sky."""

from __future__ import annotations

from typing import Any

import numpy as np

from reverie.envs.distractors.sources import ClipSource, Split
from reverie.envs.distractors.textures import Texture, sky_texture

FLOOR = "grid"
"""The suite's material of the ground."""
GROUND_ALPHA = {"reacher": 0.0, "walker": 1.0, "cheetah": 1.0}
"""Opacity of the ground by domain; `OTHER_ALPHA` elsewhere."""
OTHER_ALPHA = 0.3
VALIDATION_CLIPS = 30
"""Clips to test in front of, at every level."""


class SkyFilm:
    """Plays a clip forth and back, one frame per simulator step."""

    def __init__(self, source: ClipSource, split: Split, *, videos: int, dynamic: bool) -> None:
        self._source, self._split, self._dynamic = source, split, dynamic
        most = videos if split == "train" else VALIDATION_CLIPS
        self._clips = min(source.count(split), most)
        self._shown: Any = None

    def attach(self, physics: Any, domain: str) -> None:
        """Make the sky as small as the clips, and the ground as transparent as the domain needs."""
        model = physics.model
        self._model = model
        self._sky = Texture(physics, sky_texture(model), side=self._source.size)
        self._floor = model.name2id(FLOOR, "material")
        self._stock_alpha = float(model.mat_rgba[self._floor, 3])
        model.mat_rgba[self._floor, 3] = GROUND_ALPHA.get(domain, OTHER_ALPHA)

    def reset(self, rng: np.random.Generator) -> None:
        """Draw the clip, the frame to start at and the direction."""
        self.index = int(rng.integers(self._clips))
        self._clip = self._source.open(self._split, self.index)
        self.position = int(rng.integers(self._clip.length))
        self.direction = int(rng.choice((-1, 1)))

    def step(self) -> None:
        """Turn to the next frame; at an end of the clip the direction changes."""
        if not self._dynamic or self._clip.length < 2:
            return
        if not 0 <= self.position + self.direction < self._clip.length:
            self.direction = -self.direction
        self.position += self.direction

    def apply(self) -> None:
        """Send the frame to the renderer, unless it is there already."""
        if self._shown != (self.index, self.position):
            # cameras look at the faces of the sky from inside, and so at their mirror images
            self._sky.pixels[:] = self._clip.frame(self.position)[:, ::-1]
            self._sky.upload()
            self._shown = (self.index, self.position)

    def restore(self) -> None:
        """Give the sky and the ground back what the suite gave them."""
        self._model.mat_rgba[self._floor, 3] = self._stock_alpha
        self._sky.restore()
