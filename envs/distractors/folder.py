"""A folder of real clips: which are for training and which for the test, and their frames.

Either the folder has `train/` and `test/`, or each clip's own content says where it belongs: then
adding clips, or renaming them, moves none of the others across.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reverie.envs.distractors.clip_cache import Film, load_or_decode
from reverie.envs.distractors.decode import KINDS, PICTURES, content_hash, decode, is_clip
from reverie.envs.distractors.sources import MAX_FRAMES, SPLITS, Clip, Split
from reverie.envs.specs import Array, EnvError

VERSION = 1
"""Changes whenever a clip would be decoded into other pixels."""
TRAIN_SHARE = 0.7
"""Chance of a clip to be for training, where its content decides."""
BESIDE = {"", ".txt", ".md", ".json", ".csv", ".yaml", ".sh", ".py"}
"""Endings of files that may lie beside clips."""

log = logging.getLogger(__name__)


@dataclass
class FolderClip:
    """Frames in the mapped cache."""

    id: str
    length: int
    fps: float
    frames: Array

    def frame(self, index: int) -> Array:
        """Return uint8 [size, size, 3], read-only: a view of the cache."""
        assert 0 <= index < self.length, f"expected 0 <= index < {self.length}, found {index}"
        view: Array = self.frames[index]
        return view


@dataclass(frozen=True)
class Found:
    """A clip before it is decoded."""

    path: Path
    content: str
    split: Split

    @property
    def id(self) -> str:
        """Content first: the name may change, and ids stay sorted alike."""
        return f"{self.content[:16]}-{self.path.name}"


class FolderSource:
    """Clips of a folder, decoded once per content and size, and mapped by all processes."""

    def __init__(
        self, folder: Path, *, size: int, frames: int = MAX_FRAMES, cache: Path | None = None
    ) -> None:
        """Find, hash and map all clips, of each the first `frames` frames; decodes if need be.

        Raises:
            EnvError: a clip cannot be used, is in both splits, or a split has none.
        """
        assert size >= 1 and frames >= 2, f"expected a picture and 2 frames: {size}, {frames}"
        folder = folder.resolve()
        self.size = size
        self._folder, self._limit = folder, frames
        found, self._split_by = _find(folder)
        self.name = folder_name(folder, [(clip.split, clip.content) for clip in found])
        self._found = sorted(found, key=lambda clip: clip.id)
        key = json.dumps([VERSION, size, frames, sorted({clip.content for clip in found})])
        self._films = load_or_decode(
            hashlib.sha256(key.encode()).hexdigest()[:32],
            lambda: _decode_all(self._found, size, frames),
            root=cache,
        )
        # a copy in another container has another content but the same pictures
        _refuse_overlap([(clip, self._films[clip.content].pixels) for clip in found])

    def count(self, split: Split) -> int:
        """Return the number of clips, at least 1."""
        return len(self._of(split))

    def open(self, split: Split, index: int) -> Clip:
        """Return clip `index` of a split, in the order of ids; nothing is read yet."""
        found = self._of(split)
        assert 0 <= index < len(found), f"expected 0 <= index < {len(found)}, found {index}"
        film = self._films[found[index].content]
        return FolderClip(found[index].id, len(film.frames), film.fps, film.frames)

    def manifest(self) -> dict[str, Any]:
        """Return kind, version, size, how the splits were made, and hashes of every clip."""
        listed: dict[str, Any] = {
            split: [self._record(clip) for clip in self._of(split)] for split in SPLITS
        }
        return {
            "kind": "folder",
            "version": VERSION,
            "size": self.size,
            "folder": str(self._folder),
            "split_by": self._split_by,
            "max_frames": self._limit,
            "sha256_of": "the file, or the hashes of a frame folder's pictures; pixels: the frames",
            **listed,
        }

    def close(self) -> None:
        """Let go of the cache; clips that are still held stay readable."""
        self._films, self._found = {}, []

    def _of(self, split: Split) -> list[Found]:
        return [clip for clip in self._found if clip.split == split]

    def _record(self, clip: Found) -> dict[str, Any]:
        film = self._films[clip.content]
        return {
            "id": clip.id,
            "frames": len(film.frames),
            "fps": film.fps,
            "sha256": clip.content,
            "pixels": film.pixels,
        }


def folder_name(folder: Path, contents: Iterable[tuple[str, str]]) -> str:
    """Return what results call a folder: its name, and eight digits of what each split holds."""
    digest = hashlib.sha256(json.dumps(sorted(contents)).encode()).hexdigest()
    return f"folder {folder.name} {digest[:8]}"


def split_of(content: str) -> Split:
    """Return where a clip belongs by its hash: 70 % to training."""
    return "train" if int(content[:8], 16) < TRAIN_SHARE * 2**32 else "test"


def _find(folder: Path) -> tuple[list[Found], str]:
    """Return all clips with their split, and what decided it."""
    rooms = [split for split in SPLITS if (folder / split).is_dir()]
    if len(rooms) == 1:
        raise EnvError(
            f"{folder}: expected train/ and test/, found only {rooms[0]}/. Add the other, or put "
            "all clips directly into the folder, to be split by their content."
        )
    paths = _clips_in(folder, besides=rooms)
    if rooms:
        if paths:
            raise EnvError(
                f"{paths[0]}: expected clips in train/ and test/ only, found this one beside them. "
                "Move it into one of the two."
            )
        found = [
            Found(path, content_hash(path), split)
            for split in SPLITS
            for path in _clips_in(folder / split)
        ]
    else:
        hashed = [(path, content_hash(path)) for path in paths]
        found = [Found(path, content, split_of(content)) for path, content in hashed]
    for split in SPLITS:
        if not any(clip.split == split for clip in found):
            raise EnvError(_no_clips(folder, split, len(found), by_content=not rooms))
    _refuse_overlap([(clip, clip.content) for clip in found])
    return found, "train/ and test/" if rooms else f"content, {TRAIN_SHARE:.0%} to train"


def _no_clips(folder: Path, split: Split, count: int, *, by_content: bool) -> str:
    if by_content and count:
        return (
            f"{folder}: expected clips for training and for the test, found {count} in all, and "
            f"none that its content puts into {split}. Add clips, or make train/ and test/."
        )
    if by_content:
        fix = "Put clips there, at least two, or make train/ and test/."
        return f"{folder}: expected clips ({KINDS}), found none. {fix}"
    return f"{folder / split}: expected clips ({KINDS}), found none. Put at least one there."


def _clips_in(folder: Path, besides: list[Split] | None = None) -> list[Path]:
    """Return clips by name; raises `EnvError` on what looks like material but is no clip."""
    clips = []
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise EnvError(f"{folder}: expected a readable folder of clips, found {error}.") from error
    for path in entries:
        if path.name.startswith(".") or path.name in (besides or ()):
            continue
        if is_clip(path):
            clips.append(path)
        elif path.suffix.lower() in PICTURES:
            raise EnvError(
                f"{path}: expected a clip, found a single picture. The frames of one clip belong "
                "into a folder of their own, which lies where the clip would."
            )
        elif path.suffix.lower() not in BESIDE:
            raise EnvError(f"{path}: expected {KINDS}. Convert it or remove it.")
    return clips


def _decode_all(found: list[Found], size: int, limit: int) -> Iterator[Film]:
    unique = {clip.content: clip.path for clip in found}
    log.info("decoding %d clips to %d pixels, once", len(unique), size)
    for content, path in unique.items():
        yield decode(path, content, size=size, limit=limit)


def _refuse_overlap(marked: list[tuple[Found, str]]) -> None:
    """Raise `EnvError` if a mark (of content, or of pixels) is in both splits."""
    seen: dict[str, Found] = {}
    for clip, mark in marked:
        other = seen.setdefault(mark, clip)
        if other.split != clip.split:
            raise EnvError(
                f"{clip.path}: expected no clip in both splits, found the same content in "
                f"{other.path}. Remove one of the two."
            )
