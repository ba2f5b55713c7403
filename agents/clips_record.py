"""What a distracted run has seen behind its scene, by content, so that it stays comparable."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from reverie.agents.configs import RunConfig
from reverie.agents.runs.files import write_atomic
from reverie.agents.runs.runlock import RunDirError

CLIPS = "clips.json"

FREE = ("folder", "split_by", "sha256_of")
"""What may differ between sources that show the same: a folder may have moved."""

SHOWN = 4
"""Differences that an error lists; the rest is counted."""


def record_clips(run: Path, cfg: RunConfig) -> None:
    """Write the clips of both splits with their hashes into a run that has no such record yet.

    Raises:
        EnvError: the folder of clips cannot be used.
    """
    file = run / CLIPS
    if file.exists() or not _shows_clips(cfg):
        return
    write_atomic(file, (json.dumps(_manifest(cfg), indent=1) + "\n").encode())


def check_clips(run: Path, cfg: RunConfig) -> None:
    """Compare the clips that `cfg` names now with those that the run began with, if it has any.

    Raises:
        RunDirError: they differ; lists which.
        EnvError: the folder of clips cannot be used.
    """
    lines = clip_changes(run, cfg)
    if lines:
        more = f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise RunDirError(
            f"{run} began with other clips than those of {cfg.env.distractor_source} now:\n  "
            + "\n  ".join(lines[:SHOWN])
            + f"{more}\nrestore them ({run / CLIPS} has all hashes), name the folder in which they "
            "are (train: --env.distractor-source, eval: --distractor-source), or train in another "
            "--run"
        )


def clip_changes(run: Path, cfg: RunConfig) -> list[str]:
    """What differs between the clips of `cfg` and the recorded ones, names apart.

    Raises:
        RunDirError: the record cannot be read.
        EnvError: the folder of clips cannot be used.
    """
    if not _shows_clips(cfg):
        return []
    began = _recorded(run)
    return [] if began is None else _differences(began, _manifest(cfg))


def trained_in_front_of(run: Path, cfg: RunConfig) -> str:
    """Terms of a protocol that say what distracted in training."""
    parts = [f"trained={cfg.env.distractor}"]
    if _shows_clips(cfg):
        parts.append(f"trained_source={_source_name(_recorded(run), cfg)}")
        if cfg.env.distractor_mask != "preset":
            parts.append(f"trained_mask={cfg.env.distractor_mask}")
    return ",".join(parts)


def _source_name(began: dict[str, Any] | None, cfg: RunConfig) -> str:
    """That of the clips which the run recorded, which may be gone."""
    if began is None or began.get("kind") != "folder":
        return cfg.env.distractor_source
    from reverie.envs.distractors.folder import folder_name
    from reverie.envs.distractors.sources import SPLITS

    contents = [(split, clip["sha256"]) for split in SPLITS for clip in began[split]]
    return folder_name(Path(began["folder"]), contents)


def _shows_clips(cfg: RunConfig) -> bool:
    if cfg.env.distractor == "none":
        return False
    from reverie.envs.distractors.presets import uses_clips

    return uses_clips(cfg.env.distractor)


def _manifest(cfg: RunConfig) -> dict[str, Any]:
    """What the source says of its clips, as it reads from a file."""
    from reverie.envs.distractors.presets import clip_size
    from reverie.envs.distractors.sources import make_source

    size = clip_size(cfg.env.distractor, cfg.env.image_size)
    source = make_source(cfg.env.distractor_source, size=size)
    try:
        found: dict[str, Any] = json.loads(json.dumps(source.manifest()))
    finally:
        source.close()
    return found


def _recorded(run: Path) -> dict[str, Any] | None:
    file = run / CLIPS
    if not file.exists():
        return None
    try:
        began: dict[str, Any] = json.loads(file.read_bytes())
    except ValueError as error:
        raise RunDirError(f"{file} cannot be read ({error}): restore it, or start anew") from error
    return began


def _differences(began: dict[str, Any], found: dict[str, Any]) -> list[str]:
    from reverie.envs.distractors.sources import SPLITS

    heads = [key for key in {**began, **found} if key not in (*FREE, *SPLITS)]
    lines = [
        f"{key}: {began.get(key)!r} then, {found.get(key)!r} now"
        for key in heads
        if began.get(key) != found.get(key)
    ]
    for split in SPLITS:
        names: dict[str, str] = {}
        then, now = (_marks(clips.get(split, []), names) for clips in (began, found))
        lines += [f"{split}: {names[mark]} is gone" for mark in then - now]
        lines += [f"{split}: {names[mark]} is new" for mark in now - then]
    return lines


def _marks(clips: list[dict[str, Any]], names: dict[str, str]) -> Counter[str]:
    """All that is recorded of each clip but its name, which goes into `names`."""
    found: Counter[str] = Counter()
    for clip in clips:
        mark = json.dumps({**clip, "id": None}, sort_keys=True)
        names[mark] = str(clip.get("id"))
        found[mark] += 1
    return found
