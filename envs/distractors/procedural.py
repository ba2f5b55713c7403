"""Clips that are computed: natural motion, and two controls.

A natural clip is two 1/f textures that drift over each other at different speeds, with soft blobs
in front. Its statistics at 64 pixels (slope of the spectrum, change between frames, contrast) lie
where those of filmed rooms and roads lie. A frame costs little more than copying it: textures are
bytes on a torus, padded so that every view is a slice, and colours are looked up.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from reverie.envs.distractors.sources import FPS, MAX_FRAMES, SPLITS, Clip, ClipSource, Split
from reverie.envs.specs import Array, EnvError

VERSION = 1
"""Changes whenever a pixel of a clip does."""

COUNT: dict[Split, int] = {"train": 60, "test": 30}
FIRST: dict[Split, int] = {"train": 0, "test": 10000}
"""Number of the first clip; the sets are disjoint, and a clip's number is its seed."""
SMALLEST = 8
"""Pixels below which a texture has nothing to show."""

EXPONENT = 2.9
"""A texture's power falls with this power of the spatial frequency."""
PERIOD = 2
"""Widths of the picture after which a texture repeats."""
CELLS = 4
"""Cells of a texture per pixel: the finest motion is a quarter of a pixel."""
LEVELS = 32
"""Grey levels of a texture per standard deviation; its 256 reach 4 deviations to either side."""
BRIGHTNESS = np.array([0.299, 0.587, 0.114])
"""Share of red, green and blue in grey."""
FINGERPRINT = (0, MAX_FRAMES // 2, MAX_FRAMES - 1)
"""Frames whose digest stands for a computed clip in a manifest."""


class NaturalClip:
    """Two drifting textures and some blobs; all of it is a function of number, size and shift."""

    length = MAX_FRAMES
    fps = FPS

    def __init__(self, number: int, *, size: int, shift: float = 0.0) -> None:
        """Draw the clip. `shift` 1 means the opposite family of colours and twice the speed."""
        self.id = f"procedural-{number}"
        self._size = size
        rng = np.random.Generator(np.random.Philox(key=number))
        # the hues of half the circle are one family, those of the other half the shifted one
        hue = rng.uniform(0, math.pi) + shift * math.pi
        contrast, far = rng.uniform(56, 74), math.sqrt(rng.uniform(0.4, 0.7))
        near = math.sqrt(1 - far**2)
        self._textures = [_texture(rng, size) for _ in range(2)]
        self._colours = [
            _ramp(rng.uniform(100, 140), contrast * far, hue),
            _ramp(0.0, contrast * near, hue + rng.normal(0, 0.5)),
        ]
        speed, heading = 2.0**shift * rng.uniform(0.12, 0.45) / 64, rng.uniform(0, 2 * math.pi)
        cells = CELLS * size
        self._paths = [
            _path(rng, speed * rate, heading, scale=cells, wrap=PERIOD * cells) for rate in (0.4, 1)
        ]
        self._blobs = [_blob(rng, size, contrast, hue) for _ in range(int(rng.integers(2, 6)))]
        self._paths += [
            _path(rng, speed * rng.uniform(0.5, 2), heading, scale=size, wrap=size + len(blob))
            for blob in self._blobs
        ]

    def frame(self, index: int) -> Array:
        """Return uint8 [size, size, 3], read-only."""
        _check(index, self.length)
        picture = self._layer(0, index)
        picture += self._layer(1, index)
        for blob, path in zip(self._blobs, self._paths[2:], strict=True):
            top, left = path[index]
            _add(picture, blob, top - len(blob), left - len(blob))
        return _frozen(np.clip(picture, 0, 255).astype(np.uint8))

    def _layer(self, number: int, index: int) -> Array:
        top, left = self._paths[number][index]
        reach = CELLS * self._size
        view = self._textures[number][top : top + reach : CELLS, left : left + reach : CELLS]
        return self._colours[number].take(view, axis=0)


class StaticClip:
    """The first frame of a natural clip, for ever: a background without motion."""

    length = MAX_FRAMES
    fps = FPS

    def __init__(self, number: int, *, size: int) -> None:
        """Draw the one picture."""
        self.id = f"static-{number}"
        self._picture = NaturalClip(number, size=size).frame(0)

    def frame(self, index: int) -> Array:
        """Return uint8 [size, size, 3], read-only; the same for every index."""
        _check(index, self.length)
        return self._picture


class NoiseClip:
    """Independent uniform noise in every pixel and frame: motion that nothing can predict."""

    length = MAX_FRAMES
    fps = FPS

    def __init__(self, number: int, *, size: int) -> None:
        """Nothing is drawn before a frame is asked for."""
        self.id = f"noise-{number}"
        self._number, self._shape = number, (size, size, 3)

    def frame(self, index: int) -> Array:
        """Return uint8 [size, size, 3], read-only; a function of the clip's number and `index`."""
        _check(index, self.length)
        # frames are far apart on the generator's counter, which counts blocks of 32 bytes
        draws = np.random.Generator(np.random.Philox(key=self._number, counter=index << 128))
        return _frozen(draws.integers(0, 256, self._shape, np.uint8))


class GeneratedSource:
    """Clips made from their number: nothing to download, no licence, the same on every machine."""

    def __init__(
        self, name: str, make: Callable[[int], Clip], *, size: int, shift: float = 0.0
    ) -> None:
        """`make` turns a number into a clip; `shift` is only told to the manifest."""
        if size < SMALLEST:
            raise EnvError(f"Expected {name} clips of at least {SMALLEST} pixels, found {size}.")
        self.name, self.size = name, size
        self._make, self._shift = make, shift

    def count(self, split: Split) -> int:
        """Return 60 for training and 30 for the test."""
        return COUNT[split]

    def open(self, split: Split, index: int) -> Clip:
        """Draw clip `index` of a split; a few milliseconds at 64 pixels."""
        assert 0 <= index < COUNT[split], f"expected 0 <= index < {COUNT[split]}, found {index}"
        return self._make(FIRST[split] + index)

    def manifest(self) -> dict[str, Any]:
        """Return kind, version, size and a digest of every clip; draws all of them once."""
        head = {"kind": self.name, "version": VERSION, "size": self.size, "test_shift": self._shift}
        listed: dict[str, Any] = {
            split: [_record(self.open(split, index)) for index in range(COUNT[split])]
            for split in SPLITS
        }
        return {**head, "sha256_of": f"frames {FINGERPRINT}", **listed}

    def close(self) -> None:
        """Nothing is held."""


def procedural_source(*, size: int, shift: float = 0.0) -> ClipSource:
    """Return natural clips; `shift` 0..1 moves the test split's colours and speed away.

    With 0 both splits are drawn alike; with 1 the test hues are the opposite ones, at twice the
    speed, so that generalisation beyond the training distribution is measured.
    """
    if not 0 <= shift <= 1:
        raise EnvError(f"Expected a test shift between 0 and 1, found {shift}.")

    def make(number: int) -> Clip:
        return NaturalClip(number, size=size, shift=shift if number >= FIRST["test"] else 0.0)

    name = {0.0: "procedural", 1.0: "procedural-shift"}.get(shift, f"procedural-shift{shift:g}")
    return GeneratedSource(name, make, size=size, shift=shift)


def static_source(*, size: int) -> ClipSource:
    """Return pictures that stand still."""
    return GeneratedSource("static", functools.partial(StaticClip, size=size), size=size)


def noise_source(*, size: int) -> ClipSource:
    """Return white noise."""
    return GeneratedSource("noise", functools.partial(NoiseClip, size=size), size=size)


GENERATED: dict[str, Callable[..., ClipSource]] = {
    "procedural": procedural_source,
    "procedural-shift": functools.partial(procedural_source, shift=1.0),
    "static": static_source,
    "noise": noise_source,
}
"""Sources by the word that `make_source` knows them by."""


@functools.lru_cache(maxsize=4)
def _amplitudes(size: int) -> Array:
    """Root of the power of each frequency up to a pixel's, float64 [2 size, size]."""
    rows = np.fft.fftfreq(PERIOD * size, 1 / (PERIOD * size))[:, None]
    square = rows**2 + np.arange(size) ** 2
    square[0, 0] = np.inf  # no mean
    return np.asarray(square ** (-EXPONENT / 4))


def _texture(rng: np.random.Generator, size: int) -> Array:
    """Draw uint8 cells, 128 + LEVELS per standard deviation within a picture, wrap-padded.

    Frequencies end at a pixel's own limit, so that every CELLS-th cell is the texture itself, at
    any offset, without aliasing.
    """
    amplitudes = _amplitudes(size)
    drawn = amplitudes * np.exp(2j * math.pi * rng.random(amplitudes.shape))
    side = PERIOD * CELLS * size
    spectrum = np.zeros((side, side // 2 + 1), np.complex128)
    spectrum[:size, :size] = drawn[:size]
    spectrum[1 - size :, :size] = drawn[1 - size :]
    cells = np.fft.irfft2(spectrum, (side, side))
    pixels = cells[::CELLS, ::CELLS].reshape(PERIOD, size, PERIOD, size)
    cells *= LEVELS / math.sqrt(pixels.var(axis=(1, 3)).mean())
    cells += 128.5
    levels = np.clip(cells, 0, 255, out=cells).astype(np.uint8)
    return np.pad(levels, (0, CELLS * size), mode="wrap")


def _tint(hue: float) -> Array:
    """Return the red, green and blue of a hue, float [3], without brightness of its own."""
    colour = np.cos(hue - 2 * math.pi / 3 * np.arange(3))
    return np.asarray(colour - BRIGHTNESS @ colour)


def _ramp(middle: float, contrast: float, hue: float) -> Array:
    """Return the colours of a texture's levels, int16 [256, 3]; brighter ones lean to the hue."""
    deviations = (np.arange(256)[:, None] - 128) / LEVELS
    tint = _tint(hue)
    colours = middle * (1 + 0.25 * tint) + contrast * deviations * (1 + 0.35 * tint)
    return np.asarray(np.rint(colours), np.int16)


def _blob(rng: np.random.Generator, size: int, contrast: float, hue: float) -> Array:
    """Draw a soft disc to be added to a picture, int16 [d, d, 3]."""
    radius = max(2.0, size * rng.uniform(0.08, 0.2))
    across = np.linspace(-1, 1, 2 * math.ceil(radius) + 1) ** 2
    height = np.clip(1 - across[:, None] - across, 0, 1) ** 2
    colour = rng.choice([-1.0, 1.0]) * contrast * rng.uniform(0.8, 1.6)
    tint = 1 + 0.5 * _tint(hue + rng.normal(0, 0.7))
    return np.asarray(np.rint(colour * tint * height[..., None]), np.int16)


def _path(
    rng: np.random.Generator, speed: float, heading: float, *, scale: int, wrap: int
) -> list[tuple[int, int]]:
    """Draw (row, column) of every frame: a drift of `speed` widths per frame that sways a little.

    `scale` units make a width; positions are taken modulo `wrap`.
    """
    frames = np.arange(MAX_FRAMES)[:, None]
    angle = heading + rng.normal(0, 0.3)
    drift = speed * np.array([math.sin(angle), math.cos(angle)])
    sway = rng.uniform(0.02, 0.06, 2)
    turn = 2 * math.pi * (rng.random(2) + frames / rng.uniform(120, 300, 2))
    place = rng.random(2) * wrap / scale + drift * frames + sway * np.sin(turn)
    units = np.floor(place * scale).astype(np.int64) % wrap
    return [(row, column) for row, column in units.tolist()]


def _add(picture: Array, sprite: Array, top: int, left: int) -> None:
    """Add what lies within the picture of a sprite whose corner may lie outside."""
    up, west = max(0, top), max(0, left)
    down, east = top + len(sprite), left + len(sprite)
    picture[up:down, west:east] += sprite[up - top :, west - left :][
        : max(0, len(picture) - up), : max(0, len(picture) - west)
    ]


def _record(clip: Clip) -> dict[str, Any]:
    digest = hashlib.sha256()
    for index in FINGERPRINT:
        digest.update(clip.frame(index).tobytes())
    return {"id": clip.id, "frames": clip.length, "fps": clip.fps, "sha256": digest.hexdigest()}


def _frozen(picture: Array) -> Array:
    picture.setflags(write=False)
    return picture


def _check(index: int, length: int) -> None:
    assert 0 <= index < length, f"expected 0 <= index < {length}, found {index}"
