"""Films, frame folders and arrays into square frames; each kind of damage has its message."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from reverie.envs.distractors.clip_cache import Film
from reverie.envs.distractors.sources import FPS
from reverie.envs.specs import Array, EnvError

FILMS = {".mp4", ".avi", ".webm", ".mkv", ".mov"}
"""Read with OpenCV, which an extra installs."""
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
"""Frames of a frame folder."""
KINDS = "mp4, avi, webm, mkv, mov, gif, npy, or a folder of pictures"
COMPLETE = 0.9
"""Share of the promised frames that a film must have: headers are sometimes off by a few."""


def is_clip(path: Path) -> bool:
    """Say whether `path` looks like a clip, by its name alone."""
    return path.is_dir() or path.suffix.lower() in {*FILMS, ".gif", ".npy"}


def pictures_of(folder: Path) -> list[Path]:
    """Return the frames of a frame folder, in the order of the numbers in their names.

    Raises:
        EnvError: there is none.
    """
    found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES]
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        raise EnvError(
            f"{folder}: expected a frame folder, found no picture in it. Clips lie directly in "
            "train/ and test/, not in folders of their own; fill it or remove it."
        )
    return sorted(found, key=_by_number)


def content_hash(path: Path) -> str:
    """Return the sha256 of a file, or of the hashes of a frame folder's pictures in order."""
    try:
        if path.is_dir():
            hashes = "".join(content_hash(picture) for picture in pictures_of(path))
            return hashlib.sha256(hashes.encode()).hexdigest()
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EnvError(f"{path}: expected a readable clip, found {error}; remove it.") from error


def decode(path: Path, content: str, *, size: int, limit: int) -> Film:
    """Read at most `limit` frames of a clip, squeezed to size x size without keeping the aspect.

    Raises:
        EnvError: corrupt, of a codec that nothing here reads, or shorter than two frames.
    """
    try:
        fps, pictures = _open(path, limit)
        frames = [_squeeze(picture, size) for picture in islice(pictures, limit)]
    except EnvError:
        raise
    except Exception as error:  # decoders raise whatever the damage makes them trip over
        raise EnvError(
            f"{path}: corrupt, or not what its name says: {error}. Expected {KINDS}; remove it or "
            "make it anew."
        ) from error
    if len(frames) < 2:
        raise EnvError(
            f"{path}: expected a clip of at least 2 frames, found {len(frames)}. Remove it; for a "
            "background that stands still choose the source `static`."
        )
    joined = np.stack(frames)
    return Film(content, hashlib.sha256(joined.tobytes()).hexdigest(), fps, joined)


def _open(path: Path, limit: int) -> tuple[float, Iterator[Image.Image]]:
    if path.is_dir():
        return FPS, _frame_folder(path)
    if path.suffix.lower() == ".npy":
        return FPS, _array(path)
    if path.suffix.lower() == ".gif":
        return _gif(path)
    return _film(path, limit)


def _frame_folder(path: Path) -> Iterator[Image.Image]:
    for picture in pictures_of(path):
        try:
            with Image.open(picture) as opened:
                yield opened.convert("RGB")
        except Exception as error:
            raise EnvError(
                f"{picture}: corrupt picture: {error}. Remove it or make it anew."
            ) from error


def _array(path: Path) -> Iterator[Image.Image]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    good = array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3
    if not good or min(array.shape[1:]) == 0:
        raise EnvError(
            f"{path}: expected uint8 [frames, height, width, 3], found {array.dtype} "
            f"{list(array.shape)}. Save it so, with colours as red, green, blue."
        )
    return (Image.fromarray(np.ascontiguousarray(frame)) for frame in array)


def _gif(path: Path) -> tuple[float, Iterator[Image.Image]]:
    data = path.read_bytes()
    if data.startswith(b"GIF8") and not data.rstrip(b"\0").endswith(b";"):
        # Pillow does not miss frames that are cut off
        raise EnvError(f"{path}: cut off: expected a gif to end in `;`. Fetch it or make it again.")
    opened = Image.open(BytesIO(data), formats=["GIF"])
    milliseconds = opened.info.get("duration", 0)

    def frames() -> Iterator[Image.Image]:
        for picture in ImageSequence.Iterator(opened):
            yield picture.convert("RGB")

    return (1000 / milliseconds if milliseconds else FPS), frames()


def _film(path: Path, limit: int) -> tuple[float, Iterator[Image.Image]]:
    try:
        import cv2
    except ImportError as error:
        raise EnvError(
            f"{path}: films are read with OpenCV, which is missing: `pip install "
            "'reverie[video]'`, or turn the film into a gif or a folder of pictures."
        ) from error
    film = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    fps, promised = film.get(cv2.CAP_PROP_FPS), film.get(cv2.CAP_PROP_FRAME_COUNT)

    def frames() -> Iterator[Image.Image]:
        count = 0
        try:
            while film.grab():
                good, picture = film.retrieve()
                if not good:
                    break
                count += 1
                yield Image.fromarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        finally:
            film.release()
        if count == 0:
            raise EnvError(
                f"{path}: not a film, or of a codec that OpenCV cannot read here. Remove it, or "
                "convert it: `ffmpeg -i OLD -c:v libx264 -pix_fmt yuv420p NEW.mp4`."
            )
        if count < COMPLETE * min(promised, limit):
            raise EnvError(
                f"{path}: expected {promised:.0f} frames, found {count} that can be read: cut off "
                "or corrupt. Remove it or fetch it again."
            )

    return (fps if 0 < fps < 1000 else FPS), frames()


def _squeeze(picture: Image.Image, size: int) -> Array:
    # Pillow's filter widens with the scale, so that shrinking averages
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Order frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]
