"""Small clips on disk, of every kind that a folder of clips may hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reverie.envs.specs import Array

FOURCC = {".mp4": "mp4v", ".avi": "MJPG", ".webm": "VP80"}


def pictures(seed: int, count: int = 12, size: int = 32) -> Array:
    """uint8 [count, size, size, 3]: soft patches of colour that move two pixels per frame."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    still = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR))
    return np.stack([np.roll(still, 2 * index, axis=1) for index in range(count)])


def write_film(path: Path, frames: Array, fps: float = 25.0) -> None:
    import cv2

    code: Callable[..., int] = cv2.VideoWriter.fourcc
    size = frames.shape[2], frames.shape[1]
    film = cv2.VideoWriter(str(path), code(*FOURCC[path.suffix]), fps, size)
    for frame in frames:
        film.write(np.ascontiguousarray(frame[..., ::-1]))
    film.release()
    assert path.stat().st_size > 0


def write_gif(path: Path, frames: Array, **options: Any) -> None:
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=rest, **options)


def write_clip(path: Path, frames: Array) -> None:
    """Write a clip of the kind that the name says; without an ending a folder of pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, frames)
    elif path.suffix == ".gif":
        write_gif(path, frames, duration=40)
    elif path.suffix:
        write_film(path, frames)
    else:
        path.mkdir()
        for index, frame in enumerate(frames):  # frame10 has to come after frame9
            Image.fromarray(frame).save(path / f"frame{index}.png")


def two_splits(folder: Path) -> Path:
    """A folder with two clips for training and one for the test."""
    write_clip(folder / "train" / "a.npy", pictures(1))
    write_clip(folder / "train" / "b", pictures(2))
    write_clip(folder / "test" / "c.npy", pictures(3))
    return folder
