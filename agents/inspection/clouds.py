"""Latents as clouds of points: those of real frames, and those that were imagined from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reverie.agents.inspection.panels import Panel, fitted
from reverie.agents.runs.projector import Points

if TYPE_CHECKING:
    from reverie.agents.act_jepa import ACTJEPA
    from reverie.agents.inspection.chunks import Chunks
    from reverie.agents.inspection.scenes import Scene

NAME = "latents"

MOST = 16
"""Windows whose latents are shown."""

SPRITE = 32
"""Pixels of a small picture's side."""


def scene_cloud(scene: Scene) -> Panel:
    """Latents of real rows behind the context, and of both dreams that begin there.

    The picture of a real latent is its frame, that of a dream the stored frame nearest to it.
    """
    first = scene.context - 1
    rows = {name: value[:MOST] for name, value in scene.rows.items()}
    count, length = rows["reward"].shape[0], rows["reward"].shape[1] - first
    frames = {"real": rows["image"][:, first:]} if "image" in rows else {}
    codes = {"real": scene.real.code[:MOST, first:]}
    said = {"real": {name: value[:MOST, first:] for name, value in scene.real.said.items()}}
    for name, dream in (("recorded", scene.recorded), ("policy", scene.policy)):
        codes[name] = dream.code[:MOST, 1:]
        said[name] = {key: value[:MOST, 1:] for key, value in dream.said.items()}
        if scene.frames is not None:
            frames[name] = scene.frames[scene.near[name].frame[:MOST, 1:]]
    labels: dict[str, list[Any]] = {"kind": [], "window": [], "step": []}
    for name, code in codes.items():
        steps = range(length - code.shape[1], length)
        labels["kind"] += [name] * count * len(steps)
        labels["window"] += [window for window in range(count) for _ in steps]
        labels["step"] += [step for _ in range(count) for step in steps]
    for key in ("value", "reward"):
        if key in said["real"]:
            labels[key] = torch.cat([one[key].flatten() for one in said.values()]).tolist()
    vectors = torch.cat([code.flatten(0, 1) for code in codes.values()])
    sprites = [picture.flatten(0, 1) for picture in frames.values()]
    return _cloud(vectors, torch.cat(sprites) if sprites else None, labels)


def chunk_cloud(agent: ACTJEPA, chunks: Chunks) -> Panel:
    """Features of the first rows of all windows looked at, as behaviour reads them."""
    parts = [dict(part.items()) for part in (chunks.batch, chunks.library)]
    number = torch.cat([part["task"] for part in parts])
    labels: dict[str, list[Any]] = {
        "task": [agent.tasks[i] for i in number.tolist()],
        "frame": [*chunks.places.tolist(), *chunks.stored.tolist()],
    }
    frames = None
    if "image" in parts[0]:
        frames = torch.cat([part["image"][:, 0] for part in parts])
    return _cloud(torch.cat([agent.features(part) for part in parts]), frames, labels)


def _cloud(vectors: Tensor, frames: Tensor | None, labels: dict[str, list[Any]]) -> Panel:
    sprites = None
    if frames is not None:
        small = [fitted(frame, (SPRITE, SPRITE)) for frame in frames.cpu().numpy()]
        sprites = np.stack(small)
    plain: NDArray[np.float32] = vectors.detach().float().cpu().numpy()
    return Panel(NAME, points=Points(plain, sprites, labels))
