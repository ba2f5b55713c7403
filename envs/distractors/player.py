"""The projector behind a scene: which clip runs, where it begins, how fast, and what comes next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from reverie.envs.distractors.sources import Clip, ClipSource, Split
from reverie.envs.specs import Array

LUMINANCE = np.array([77, 150, 29], np.uint16)
"""Weights of red, green and blue in a grey level, in 1/256."""


@dataclass(frozen=True)
class Showing:
    """How a protocol shows its clips."""

    clock: Literal["agent", "simulator"]
    """A frame per agent step, or per simulator step."""
    start: Literal["random", "zero"] = "random"
    """Where a clip begins."""
    end: Literal["wrap", "next"] = "wrap"
    """After the last frame: the first one again, or another clip."""
    gray: bool = False
    """Without colour."""
    clips: int | None = None
    """Most clips of a split that are used, the first ones; none: all."""
    frames: int | None = None
    """Most frames of a clip; none: all."""
    seconds: float | None = None
    """Most seconds of a clip."""
    total: int | None = None
    """Frames in all: clips one behind the other are one reel, cut there."""


class ClipPlayer:
    """Shows clips of one split as a `Showing` says, episode by episode."""

    def __init__(self, showing: Showing, source: ClipSource, split: Split) -> None:
        self.showing, self.split, self.size = showing, split, source.size
        self._source = source
        count = source.count(split)
        self._count = count if showing.clips is None else min(count, showing.clips)
        self._reel: list[tuple[Clip, int]] = []
        self._shown = self._length = 0
        self.clip: Clip | None = None
        """What runs now."""
        self.position = 0
        """Frame of the clip that is shown."""

    def reset(self, rng: np.random.Generator) -> None:
        """Choose clip and start of an episode.

        Protocols whose reel rolls on over resets begin somewhere in it instead: an episode must
        follow from its seed.
        """
        self._rng = rng
        if self.showing.total is not None:
            self._wind(int(rng.integers(self._reel_length(self.showing.total))))
            return
        self._draw()
        if self.showing.start == "random":
            self.position = int(rng.integers(self._length))

    def after_simulator_step(self) -> None:
        """Turn to the next frame if the clock is the simulator's."""
        if self.showing.clock == "simulator":
            self._turn()

    def after_agent_step(self) -> None:
        """Turn to the next frame if the clock is the agent's."""
        if self.showing.clock == "agent":
            self._turn()

    def frame(self) -> Array:
        """Return what is shown, uint8 [size, size, 3]; not to be written to."""
        assert self.clip is not None, "reset comes first"
        picture = self.clip.frame(self.position)
        if not self.showing.gray:
            return picture
        level = (picture @ LUMINANCE) >> 8
        return np.broadcast_to(level[..., None].astype(np.uint8), picture.shape)

    def _turn(self) -> None:
        self.position += 1
        if self.position < self._length:
            return
        if self.showing.total is not None:
            self._shown = (self._shown + 1) % len(self._reel)
            self.clip, self._length = self._reel[self._shown]
        elif self.showing.end == "next":
            self._draw()
        self.position = 0

    def _draw(self) -> None:
        self.clip = self._source.open(self.split, int(self._rng.integers(self._count)))
        self._length, self.position = self._usable(self.clip), 0

    def _usable(self, clip: Clip) -> int:
        bounds = [clip.length]
        if self.showing.frames is not None:
            bounds.append(self.showing.frames)
        if self.showing.seconds is not None:
            bounds.append(max(1, round(self.showing.seconds * clip.fps)))
        return min(bounds)

    def _reel_length(self, total: int) -> int:
        """Frames of the reel, whose clips are opened once."""
        length = sum(share for _, share in self._reel)
        for index in range(len(self._reel), self._count):
            if length >= total:
                break
            clip = self._source.open(self.split, index)
            share = min(self._usable(clip), total - length)
            self._reel.append((clip, share))
            length += share
        return length

    def _wind(self, place: int) -> None:
        self._shown = 0
        while place >= self._reel[self._shown][1]:
            place -= self._reel[self._shown][1]
            self._shown += 1
        self.clip, self._length = self._reel[self._shown]
        self.position = place
