"""The experience of a run that may still be going on, read without touching its files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reverie.agents.registry import build_replay
from reverie.agents.replay.buffer import Replay

if TYPE_CHECKING:
    import torch

    from reverie.agents.configs import RunConfig
    from reverie.envs.specs import EnvSpec

MOST_ROWS = 20_000
"""Newest rows that are read: of a million, most would only take time."""


@contextmanager
def stored_replay(
    run: Path,
    state: Mapping[str, Any],
    spec: EnvSpec,
    cfg: RunConfig,
    *,
    device: torch.device,
    rows: int = MOST_ROWS,
) -> Iterator[tuple[Replay, list[str]]]:
    """The newest `rows` of the replay that a checkpoint of `run` names, and notes on lost ones.

    `state` is the replay's part of the checkpoint.
    """
    segments: list[Any] = []
    held = 0
    for segment in reversed(state["segments"]):
        if held >= rows:
            break
        segments.insert(0, segment)
        held += (segment["stop"] - segment["start"]) * state["num_envs"]
    cfg = replace(cfg, replay=replace(cfg.replay, storage="ram"))
    with tempfile.TemporaryDirectory() as folder:
        # a replay tidies its folder: in one of links the writer's half-written files are safe
        links = Path(folder) / "segments"
        links.mkdir()
        for segment in segments:
            name = Path(segment["name"]).name
            (links / name).symlink_to((run / "replay" / "segments" / name).resolve())
        replay = build_replay(spec, cfg, directory=Path(folder), device=device)
        notes = replay.load_state_dict({**state, "segments": segments})
        yield replay, notes
