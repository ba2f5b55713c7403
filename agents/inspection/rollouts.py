"""Open-loop rollouts from real contexts, and how far they stray from what really happened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from reverie.agents.inspection.neighbours import FrameLibrary
from reverie.world_models.core import WorldModel
from reverie.world_models.rssm import RSSM
from reverie.world_models.rssm_scan import backward_step, forward_step

SAME_NOISE = 0
"""Seed of rollouts that are compared: they differ by their actions alone."""


class Lens(Protocol):
    """What inspection asks of an agent whose model can be rolled out; changes nothing in it."""

    model: Any
    """A `WorldModel`."""
    reach: int | None
    """Steps that a rollout may take; None: as many as asked for."""
    gamma: float
    """Discount of the values."""

    def learned_reward(self, reward: Tensor) -> Tensor:
        """Stored rewards [...] as the values know them."""
        ...

    def code(self, latents: Any) -> Tensor:
        """The vector [..., F] that latents are searched and compared by."""
        ...

    def said(self, latents: Any) -> dict[str, Tensor]:
        """Readings of latents [B, T]: "reward", "value", "continue" [B, T], "policy" [B, T, A]."""
        ...

    def act(self, latents: Any) -> Tensor:
        """Actions [M, A] of the agent's policy in latents [M]."""
        ...

    def decoded(self, latents: Any) -> Tensor | None:
        """Pictures float [..., C, H, W] around 0, where the model has a decoder of its own."""
        ...


class Dream(NamedTuple):
    """A rollout of H steps from M starts; row 0 is the start itself."""

    code: Tensor
    """[M, H+1, F]."""
    action: Tensor
    """[M, H, A]: action t leads from row t to row t+1."""
    said: dict[str, Tensor]
    """Readings of the lens, [M, H+1, ...]."""
    pictures: Tensor | None
    """Of the model's own decoder, if it has one."""


class Errors(NamedTuple):
    """1 - cosine between what was predicted and what was filtered from real frames, [B, H]."""

    recorded: Tensor
    """Under the actions that were really taken."""
    shuffled: Tensor | None
    """Under those of another window; None: the model reads no actions."""
    held: Tensor
    """Of the start itself: nothing is predicted to change."""


@contextmanager
def undisturbed(model: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    """Inside, no gradient is kept and torch's own random numbers are a function of `seed`.

    Behind it the stream goes on as if nothing had been drawn. Recurrent steps run as written:
    windows of another shape would be compiled anew.
    """
    cores = [module for module in model.modules() if isinstance(module, RSSM)]
    kept = [(core, core.steps, core.__dict__.pop("imagine_step", None)) for core in cores]
    devices = [device] if device.type == "cuda" else []
    try:
        for core in cores:
            core.steps = (forward_step, backward_step)
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield
    finally:
        for core, steps, compiled in kept:
            core.steps = steps
            if compiled is not None:
                core.__dict__["imagine_step"] = compiled


def at(latents: Any, time: int) -> Any:
    """Row `time` of latents [B, T, ...], a named tuple of tensors."""
    return type(latents)(*(part[:, time] for part in latents))


def follow(lens: Lens, start: Any, actions: Tensor) -> Dream:
    """Roll out from `start` [M] under given `actions` [M, H, A]."""
    ahead = lens.model.rollout(start, actions)
    return _dream(lens, start, ahead, actions)


def wander(lens: Lens, start: Any, horizon: int) -> Dream:
    """Roll out from `start` [M] under the agent's own policy."""
    state, steps, actions = start, [], []
    for _ in range(horizon):
        actions.append(lens.act(state))
        state = at(lens.model.rollout(state, actions[-1].unsqueeze(1)), 0)
        steps.append(state)
    ahead = type(start)(*(torch.stack(parts, 1) for parts in zip(*steps, strict=True)))
    return _dream(lens, start, ahead, torch.stack(actions, 1))


def _dream(lens: Lens, start: Any, ahead: Any, actions: Tensor) -> Dream:
    pairs = zip(start, ahead, strict=True)
    whole = type(start)(*(torch.cat([first.unsqueeze(1), rest], 1) for first, rest in pairs))
    return Dream(lens.code(whole), actions, lens.said(whole), lens.decoded(whole))


def open_loop_errors(
    lens: Lens, latents: Any, actions: Tensor, library: FrameLibrary, context: int
) -> Errors:
    """Errors of rollouts from row `context - 1` of filtered `latents` [B, T].

    `actions` [B, T, A] led to their rows. Shuffled are whole sequences, by one window.
    """
    real = lens.code(latents)[:, context:]
    start, taken = at(latents, context - 1), actions[:, context:]
    model: WorldModel = lens.model

    def error(under: Tensor) -> Tensor:
        with undisturbed(lens.model, SAME_NOISE, actions.device):
            return library.distance(lens.code(model.rollout(start, under)), real)

    recorded = error(taken)
    shuffled = error(taken.roll(1, 0)) if model.action_conditioned and len(taken) > 1 else None
    held = library.distance(lens.code(latents)[:, context - 1 : context].expand_as(real), real)
    return Errors(recorded, shuffled, held)
