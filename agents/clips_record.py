"""What a distracted run has seen behind its scene, by content, so that it stays comparable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reverie.agents.configs import RunConfig
from reverie.agents.runs.files import write_atomic
from reverie.agents.runs.runlock import RunDirError

CLIPS = "clips.json"


def record_clips(run: Path, cfg: RunConfig) -> None:
    """Write the clips of both splits with their hashes into the run; nothing if none distract.

    Raises:
        RunDirError: the run began with other clips.
        EnvError: the folder of clips cannot be used.
    """
    if cfg.env.distractor == "none":
        return
    from reverie.envs.distractors.presets import clip_size, uses_clips
    from reverie.envs.distractors.sources import make_source

    if not uses_clips(cfg.env.distractor):
        return
    size = clip_size(cfg.env.distractor, cfg.env.image_size)
    source = make_source(cfg.env.distractor_source, size=size)
    try:
        found: dict[str, Any] = json.loads(json.dumps(source.manifest()))
    finally:
        source.close()
    file = run / CLIPS
    if not file.exists():
        write_atomic(file, (json.dumps(found, indent=1) + "\n").encode())
        return
    try:
        began = json.loads(file.read_bytes())
    except ValueError as error:
        raise RunDirError(f"{file} cannot be read ({error}): restore it, or start anew") from error
    if {**began, "folder": None} != {**found, "folder": None}:  # which may have moved
        raise RunDirError(
            f"{run} began with other clips than those of {cfg.env.distractor_source} now (compare "
            f"{file}): restore the clips to continue, or choose another --run"
        )
