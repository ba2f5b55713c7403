"""A world whose latent is known, a dot on a torus moved by its actions, and a model that knows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reverie.agents.replay.buffer import Replay, replay_schema
from reverie.envs.specs import EnvSpec

SIDE = 8
SPEC = EnvSpec("test/torus", 2, False, (SIDE, SIDE, 3), vector_size=2)
POLICY = torch.tensor([1.0, 0.0])
"""What the agent of this world always does."""


class Place(NamedTuple):
    """Where the dot is."""

    p: Tensor
    """[..., 2], whole numbers below SIDE."""


class Torus:
    """The true dynamics as a model; `sees` False: its rollouts do not read their actions."""

    action_conditioned = True

    def __init__(self, *, sees: bool = True, late: bool = False) -> None:
        self.sees, self.late = sees, late

    def modules(self) -> list[Any]:
        return []

    def observe(self, batch: Any) -> Place:
        return Place(batch["vector"].float())

    def rollout(self, start: Place, actions: Tensor) -> Place:
        moves = torch.round(actions) * float(self.sees)
        if self.late:  # the action of one step is taken for that of the next
            moves = torch.cat([torch.zeros_like(moves[:, :1]), moves[:, :-1]], 1)
        return Place((start.p[:, None] + moves.cumsum(1)) % SIDE)

    def features(self, latents: Place) -> Tensor:
        angle = latents.p * (2 * torch.pi / SIDE)
        return torch.cat([angle.cos(), angle.sin()], -1)


class TorusLens:
    """Shows the world's own state; it has no heads."""

    reach: int | None = None
    gamma = 0.9

    def __init__(self, model: Torus) -> None:
        self.model: Any = model

    def learned_reward(self, reward: Tensor) -> Tensor:
        return reward

    def code(self, latents: Place) -> Tensor:
        return self.model.features(latents)  # type: ignore[no-any-return]

    def said(self, latents: Place) -> dict[str, Tensor]:
        return {}

    def act(self, latents: Place) -> Tensor:
        return POLICY.expand(len(latents.p), 2)

    def decoded(self, latents: Place) -> Tensor | None:
        return None


def picture(p: Any) -> np.ndarray[Any, Any]:
    """uint8 [..., SIDE, SIDE, 3] of places [..., 2]: green at (x, y)."""
    places = np.asarray(p, np.int64)
    image = np.zeros((*places.shape[:-1], SIDE, SIDE, 3), np.uint8)
    flat = image.reshape(-1, SIDE, SIDE, 3)
    for row, (x, y) in zip(flat, places.reshape(-1, 2), strict=True):
        row[y, x, 1] = 255
    return image


def walk(*, rows: int = 900, slots: int = 2, episode: int = 60, seed: int = 0) -> Replay:
    """A random walk; episodes of `episode` rows begin anywhere."""
    rng = np.random.default_rng(seed)
    replay = Replay(replay_schema(SPEC), num_envs=slots, capacity=rows * slots)
    place = np.zeros((slots, 2), np.int64)
    for t in range(rows):
        first = np.full(slots, t % episode == 0)
        action = rng.integers(-1, 2, (slots, 2)) * ~first[:, None]
        fresh = rng.integers(0, SIDE, (slots, 2))
        place = np.where(first[:, None], fresh, (place + action) % SIDE)
        replay.add(
            {
                "image": picture(place),
                "vector": place.astype(np.float32),
                "action": action.astype(np.float32),
                "reward": np.zeros(slots, np.float32),
                "is_first": first,
                "is_last": np.full(slots, t % episode == episode - 1),
                "is_terminal": np.zeros(slots, np.bool_),
            }
        )
    return replay
