"""Everything that is shown of a few windows: what happened, what was dreamt, what it resembles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reverie.agents.inspection.contexts import Windows, draw_contexts, draw_windows, outside
from reverie.agents.inspection.neighbours import FrameLibrary, Neighbours
from reverie.agents.inspection.probe_decoder import ProbeDecoder, to_uint8
from reverie.agents.inspection.rollouts import (
    SAME_NOISE,
    Dream,
    Errors,
    Lens,
    at,
    follow,
    open_loop_errors,
    undisturbed,
    wander,
)
from reverie.agents.replay.buffer import Replay
from reverie.world_models.ops import lambda_return

AT_ONCE = 16
"""Windows filtered together: a bound on memory."""


@dataclass(frozen=True)
class Look:
    """How much is looked at."""

    context: int = 5
    """Real frames before the first imagined one."""
    horizon: int = 20
    """Imagined steps, at most."""
    windows: int = 16
    """Windows that errors are averaged over."""
    shown: int = 2
    """Windows that are drawn."""
    library: int = 2048
    """Frames searched for neighbours, about."""
    probe: int = 0
    """Updates of the probe decoder; 0, or a model that draws its own pictures: none is trained."""


class Filtered(NamedTuple):
    """Windows, seen in full."""

    latents: Any
    code: Tensor
    """[B, T, F]."""
    said: dict[str, Tensor]
    """[B, T, ...]."""


class Scene(NamedTuple):
    """Windows [B, T] with the rollouts [B, H+1] that begin in their row `context - 1`."""

    context: int
    rows: dict[str, Tensor]
    real: Filtered
    returns: Tensor
    """[B, T]: discounted rewards that came, and the value of the last row."""
    recorded: Dream
    """Under the actions taken."""
    policy: Dream
    """Under the agent's policy."""
    errors: Errors
    library: FrameLibrary
    frames: Tensor | None
    """uint8 [R, H, W, C]: the library's, if there are images."""
    near: dict[str, Neighbours]
    """Of "real" [B, T], "recorded" and "policy" [B, H+1]."""
    pictures: Tensor | None
    """uint8 [B, H+1, h, w, C], decoded from "recorded"."""
    decoder: str
    """Who decoded them."""
    probe_error: float | None

    @property
    def horizon(self) -> int:
        """H."""
        return int(self.recorded.action.shape[1])


def make_scene(
    lens: Lens,
    replay: Replay,
    look: Look,
    *,
    rng: np.random.Generator,
    seed: int,
    device: torch.device,
) -> Scene | None:
    """Draw windows from the replay, dream from them, and search for what the dreams resemble.

    None: the model cannot be rolled out, or no episode is longer than the context.
    """
    horizon = look.horizon if lens.reach is None else min(look.horizon, lens.reach)
    shown = None
    if horizon:
        shown = draw_contexts(
            replay, rng, count=look.windows, context=look.context, horizon=horizon, device=device
        )
    if shown is None:
        return None
    length = shown.rows["reward"].shape[1]
    count = max(1, look.library // (length - look.context + 1))
    stored = draw_windows(replay, rng, count=count, length=length, device=device)
    assert stored is not None, "the windows shown have this length"
    with undisturbed(lens.model, seed, device):
        return _dreamt(lens, shown, stored, look, seed)


def _dreamt(lens: Lens, shown: Windows, stored: Windows, look: Look, seed: int) -> Scene:
    rows, context = shown.rows, look.context
    real = _filtered(lens, rows)
    code, frames = _stored_codes(lens, stored, shown, context)
    library = FrameLibrary(code)
    start, actions = at(real.latents, context - 1), rows["action"].float()
    with undisturbed(lens.model, SAME_NOISE, actions.device):  # the dream that errors are of
        recorded = follow(lens, start, actions[:, context:])
    policy = wander(lens, start, actions.shape[1] - context)
    codes = {"real": real.code, "recorded": recorded.code, "policy": policy.code}
    pictures, decoder, error = recorded.pictures, "decoder", None
    if look.probe and frames is not None and pictures is None:
        shape = frames.shape[1:]
        probe = ProbeDecoder(code.shape[-1], tuple(shape), seed=seed, device=code.device)  # type: ignore[arg-type]
        error = probe.fit(code, frames, updates=look.probe)
        pictures, decoder = probe.pictures(recorded.code[: look.shown]), "probe decoder"
    return Scene(
        context,
        rows,
        real,
        _returns(lens, rows, real.said),
        recorded,
        policy,
        open_loop_errors(lens, real.latents, actions, library, context),
        library,
        frames,
        {name: library.nearest(code) for name, code in codes.items()},
        None if pictures is None else to_uint8(pictures),
        decoder,
        error,
    )


def _filtered(lens: Lens, rows: dict[str, Tensor]) -> Filtered:
    latents = lens.model.observe(rows)
    return Filtered(latents, lens.code(latents), lens.said(latents))


def _stored_codes(
    lens: Lens, stored: Windows, shown: Windows, context: int
) -> tuple[Tensor, Tensor | None]:
    """Codes [R, F] of stored frames that are in no window shown, and the frames themselves."""
    count = len(stored.slots)
    parts = [
        lens.code(lens.model.observe({k: v[i : i + AT_ONCE] for k, v in stored.rows.items()}))
        for i in range(0, count, AT_ONCE)
    ]
    keep = outside(stored, shown)
    keep[:, : context - 1] = False  # latents that have seen less than a context
    if not keep.any():  # a replay of a few rows: better the frames themselves than none
        keep[:, context - 1 :] = True
    frames = stored.rows["image"][keep] if "image" in stored.rows else None
    return torch.cat(parts)[keep], frames


def _returns(lens: Lens, rows: dict[str, Tensor], said: dict[str, Tensor]) -> Tensor:
    reward = lens.learned_reward(rows["reward"].float())
    if "value" not in said:
        return torch.full_like(reward, torch.nan)
    discount = lens.gamma * (1.0 - rows["is_terminal"].float())
    value = said["value"].float()
    come = lambda_return(reward[:, 1:], discount[:, 1:], value[:, 1:], lambda_=1.0)
    return torch.cat([come, torch.full_like(value[:, -1:], torch.nan)], 1)
