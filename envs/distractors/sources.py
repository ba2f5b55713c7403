"""Where the moving backgrounds come from: what a clip and a source of clips promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from reverie.envs.specs import Array, EnvError

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

FPS = 30.0
"""Frames per second where a clip does not say."""

MAX_FRAMES = 1000
"""Frames that are kept of every clip, as in the papers."""


class Clip(Protocol):
    """One film; frame i is always the same picture, whichever process asks."""

    id: str
    """Stable name; no two clips of a source share it."""
    length: int
    """Number of frames, at least 2."""
    fps: float
    """Frames per second of film time."""

    def frame(self, index: int) -> Array:
        """Return uint8 [size, size, 3], read-only; 0 <= index < length."""
        ...


class ClipSource(Protocol):
    """Two disjoint sets of clips, one to train in front of and one to test with."""

    name: str
    """Goes into the protocol of every result: where the clips come from."""
    size: int
    """Height and width of every frame, in pixels."""

    def count(self, split: Split) -> int:
        """Return the number of clips, at least 1."""
        ...

    def open(self, split: Split, index: int) -> Clip:
        """Return clip 0 <= index < count(split); cheap enough for every reset."""
        ...

    def manifest(self) -> dict[str, Any]:
        """Return what a run records as JSON: kind, version, size, and each clip's id and sha256."""
        ...

    def close(self) -> None:
        """Let go of files and memory; safe to call twice."""
        ...


def absolute(text: str) -> str:
    """Return what `text` names in a form that any working directory reads alike."""
    from reverie.envs.distractors import procedural

    if not text or text in procedural.GENERATED:
        return text
    return str(Path(text).expanduser().absolute())


def make_source(text: str, *, size: int) -> ClipSource:
    """Return the source that `text` names: "procedural", "static", "noise" or a folder of clips.

    A folder called like one of the words is meant with "./" in front.

    Raises:
        EnvError: no such word or folder, or the folder has a clip that cannot be used.
    """
    from reverie.envs.distractors import procedural

    if size < 1:
        raise EnvError(f"Expected clips of at least 1 pixel, found size {size}.")
    if text in procedural.GENERATED:
        return procedural.GENERATED[text](size=size)
    folder = Path(text).expanduser()
    if not text or not folder.is_dir():
        found = "a file" if folder.is_file() else "no such folder"
        raise EnvError(
            f"Expected {', '.join(procedural.GENERATED)} or a folder of clips as the source of the "
            f"distractor, found {text!r} ({found}). Give the path of a folder whose clips lie in "
            "train/ and test/, or in the folder itself."
        )
    from reverie.envs.distractors.folder import FolderSource

    return FolderSource(folder, size=size)
