"""Pictures put together: scaled frames with captions, side by side, as an animation or a still."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from reverie.agents.runs.projector import Points

Picture = NDArray[np.uint8]
"""uint8 [H, W, 3]."""

Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
INK: Colour = (32, 32, 32)
REAL: Colour = (44, 123, 70)
DREAMT: Colour = (196, 92, 18)
"""Frames that were seen are outlined in green, those that stand for predictions in orange."""

SIDE = 160
"""Pixels of a scaled frame's longer side, about."""

GAP = 8


@dataclass(frozen=True)
class Panel:
    """Something to look at, or numbers, under one name."""

    name: str
    """Path below `inspect/` in TensorBoard, and below the folder of files."""
    frames: Picture | None = None
    """uint8 [T, H, W, 3]: an animation, or a still where T is 1; None: numbers alone."""
    fps: float = 4.0
    """Frames a second of an animation."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """Numbers by name."""
    points: Points | None = None
    """A cloud for TensorBoard's projector; it has no file of its own."""


def scaled(frame: NDArray[Any], side: int = SIDE) -> Picture:
    """A frame [H, W, C] enlarged by a whole factor to about `side`, its pixels left sharp."""
    colour = np.asarray(frame, np.uint8)
    if colour.shape[-1] != 3:
        colour = np.repeat(colour[..., :1], 3, -1)
    factor = max(1, round(side / max(colour.shape[:2])))
    return colour.repeat(factor, 0).repeat(factor, 1)


def fitted(frame: NDArray[Any], size: tuple[int, int]) -> Picture:
    """A frame [H, W, C] brought to `size` (height, width), its pixels left sharp."""
    image = Image.fromarray(scaled(frame, 1))
    return np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST)).copy()


def framed(picture: Picture, colour: Colour, width: int = 3) -> Picture:
    """The picture in an outline."""
    height, length = picture.shape[:2]
    out = np.empty((height + 2 * width, length + 2 * width, 3), np.uint8)
    out[:] = colour
    out[width:-width, width:-width] = picture
    return out


def written(text: str, width: int, *, size: int = 13, colour: Colour = INK) -> Picture:
    """A line of text on a strip of `width`, cut where it does not fit."""
    image = Image.new("RGB", (width, size + 6), WHITE)
    font = ImageFont.load_default(size=size)
    while text and font.getlength(text) > width:
        text = text[:-1]
    ImageDraw.Draw(image).text((0, 1), text, font=font, fill=colour)
    return np.asarray(image).copy()


def captioned(picture: Picture, above: str, below: str = "") -> Picture:
    """The picture between two lines of text; an empty line keeps its place."""
    width = picture.shape[1]
    return stacked([written(above, width), picture, written(below, width, size=12)], gap=2)


def beside(pictures: Sequence[Picture], *, gap: int = GAP) -> Picture:
    """Pictures in a row on white, aligned at the top."""
    height = max(picture.shape[0] for picture in pictures)
    padded = [_padded(picture, height, picture.shape[1]) for picture in pictures]
    space = np.full((height, gap, 3), 255, np.uint8)
    parts = [part for picture in padded for part in (picture, space)][:-1]
    return np.concatenate(parts, 1)


def stacked(pictures: Sequence[Picture], *, gap: int = GAP) -> Picture:
    """Pictures below each other on white, aligned at the left."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [_padded(picture, picture.shape[0], width) for picture in pictures]
    space = np.full((gap, width, 3), 255, np.uint8)
    parts = [part for picture in padded for part in (picture, space)][:-1]
    return np.concatenate(parts, 0)


def bordered(picture: Picture, margin: int = GAP) -> Picture:
    """The picture on a white margin."""
    return np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)


def encode(panel: Panel) -> tuple[str, bytes]:
    """Suffix and content of the panel's file: ".gif" or ".png"."""
    assert panel.frames is not None, f"{panel.name} holds numbers alone"
    if len(panel.frames) == 1:
        return ".png", encode_png(panel.frames[0])
    return ".gif", encode_gif(panel.frames, panel.fps)


def encode_png(picture: Picture) -> bytes:
    """PNG of one picture."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def encode_gif(frames: Picture, fps: float) -> bytes:
    """GIF of frames [T, H, W, 3] that repeats for ever."""
    # one palette for all: it is found once, and colours do not flicker; one entry stays free for
    # transparency, so that what stands still costs nothing
    sample = Image.fromarray(np.concatenate(frames[:, ::3, ::3], 0))
    palette = sample.quantize(255, dither=Image.Dither.NONE)
    small = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    file = io.BytesIO()
    small[0].save(
        file,
        "GIF",
        save_all=True,
        append_images=small[1:],
        duration=round(1000 / fps),
        loop=0,
        optimize=True,
        disposal=1,
    )
    return file.getvalue()


def _padded(picture: Picture, height: int, width: int) -> Picture:
    missing = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
    return np.pad(picture, missing, constant_values=255)
