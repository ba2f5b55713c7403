"""Imagined beside real along an episode: what the model foresaw some steps before it came."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reverie.agents.inspection.episodes import Played, lens_of
from reverie.agents.inspection.lenses import MuDreamerLens, SPRLens
from reverie.agents.inspection.neighbours import FrameLibrary
from reverie.agents.inspection.probe_decoder import to_uint8
from reverie.agents.inspection.rollouts import follow, undisturbed
from reverie.agents.inspection.scenes import AT_ONCE

if TYPE_CHECKING:
    from reverie.agents.act_jepa import ACTJEPA
    from reverie.agents.configs import RunConfig

Values = NDArray[np.float64]
Index = NDArray[np.int64]


class Foresight(NamedTuple):
    """For each of T rows, what was imagined of it at most `horizon` steps before.

    Row 0 was imagined by no one: `ahead` is 0 there, and the other entries say nothing.
    """

    horizon: int
    ahead: Index
    """[T]: steps between the last real frame and this row."""
    frame: Index
    """[T]: the row of the episode that the imagined latent resembles most."""
    distance: Values
    """[T]: 1 - cosine to it."""
    error: Values
    """[T]: 1 - cosine to what really came."""
    pictures: NDArray[np.uint8] | None
    """[T, h, w, C], of the model's own decoder."""


def foresee(
    agent: Any, cfg: RunConfig, played: Played, *, horizon: int, seed: int
) -> Foresight | None:
    """Imagine the whole episode in pieces of `horizon` steps, under the actions that were taken.

    None: the model imagines nothing, or nothing was played.
    """
    lens, count = lens_of(agent, cfg), played.steps
    if not count:
        return None
    if lens is None:
        return _chunks(agent, played, horizon, seed=seed)
    reach = horizon if lens.reach is None else min(horizon, lens.reach)
    return _rollouts(lens, played, reach, seed=seed) if reach else None


def _rollouts(
    lens: MuDreamerLens | SPRLens, played: Played, horizon: int, *, seed: int
) -> Foresight:
    count, device = played.steps, played.action.device
    pieces = -(-count // horizon)
    taken = played.action[:-1]
    missing = taken.new_zeros(pieces * horizon - count, taken.shape[-1])
    actions = torch.cat([taken, missing]).view(pieces, horizon, -1)
    starts = torch.arange(pieces, device=device) * horizon
    begin: Any = type(played.latents)(*(part[starts] for part in played.latents))
    with undisturbed(lens.model, seed, device):
        dream = follow(lens, begin, actions)
        real = lens.code(played.latents)
    library = FrameLibrary(real)
    code = dream.code[:, 1:].flatten(0, 1)[:count]
    near = library.nearest(code)
    pictures = None
    if dream.pictures is not None:
        drawn = to_uint8(dream.pictures[:, 1:].flatten(0, 1)[:count])
        pictures = torch.cat([drawn[:1], drawn]).cpu().numpy()
    found = Foresight(
        horizon,
        _ahead(count, horizon),
        _late(near.frame, 0).astype(np.int64),
        _late(near.distance, np.nan),
        _late(library.distance(code, real[1:]), np.nan),
        pictures,
    )
    return found


def _ahead(count: int, horizon: int) -> Index:
    found: Index = np.concatenate([[0], np.arange(count) % horizon + 1]).astype(np.int64)
    return found


def _late(values: Tensor, first: float) -> Values:
    """Values of rows 1 .. T-1 behind `first`."""
    found: Values = np.concatenate([[first], values.cpu().double().numpy()])
    return found


# chunks


def _chunks(agent: ACTJEPA, played: Played, horizon: int, *, seed: int) -> Foresight | None:
    """Predicted latents of chunks; compared, as they are trained, with those of the same offset."""
    model = agent.model
    reach = min(horizon, model.cfg.chunk - 1)
    if model.predictor is None or not reach:
        return None
    count = played.steps
    ahead = _ahead(count, reach)
    with undisturbed(model, seed, agent.device):
        target = torch.cat(
            [
                model.target_latents(_windows(agent, played, part)).flatten(2)
                for part in torch.split(torch.arange(count + 1), AT_ONCE)
            ]
        )
        starts = torch.arange(0, count, reach)
        rows = _windows(agent, played, starts)
        first = {key: rows[key][:, 0] for key in ("vector", "image") if key in rows}
        context = model.context(first, rows["task"])
        guess = model.predict(context, rows["action"]).flatten(2)
    frame, distance, error = np.zeros(count + 1, np.int64), *np.full((2, count + 1), np.nan)
    for k in range(1, reach + 1):
        times = np.flatnonzero(ahead == k)
        if not len(times):
            continue
        library = FrameLibrary(target[: count + 1 - k, k])
        imagined = guess[: len(times), k]
        near = library.nearest(imagined)
        frame[times] = near.frame.cpu().numpy() + k
        distance[times] = near.distance.cpu().double().numpy()
        came = target[torch.from_numpy(times - k).to(target.device), k]
        error[times] = library.distance(imagined, came).cpu().double().numpy()
    return Foresight(reach, ahead, frame, distance, error, None)


def _windows(agent: ACTJEPA, played: Played, starts: Tensor) -> dict[str, Tensor]:
    """Normalised windows [B, P] of the episode, padded behind its end with its last row."""
    device = played.action.device
    at = (starts[:, None] + torch.arange(agent.cfg.model.chunk)).to(device)
    is_pad = at > played.steps
    at = at.clamp_max(played.steps)
    rows = agent.normalised({key: value[at] for key, value in played.obs.items()})
    rows |= agent.normalised({"action": played.action[at]})
    task = torch.full((len(starts),), played.number or 0, device=device)
    return rows | {"is_pad": is_pad, "task": task}
