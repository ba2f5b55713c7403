"""A tiny agent of each family in a world that it can learn, and what its examinations say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from small_imitator import walker, walks, with_model

from reverie.agents.act_jepa_config import ImitationOptimConfig
from reverie.agents.mudreamer import MuDreamer
from reverie.agents.mudreamer_config import BehaviorConfig, MuDreamerConfig, OptimConfig
from reverie.agents.replay.buffer import Replay, replay_schema
from reverie.agents.replay.priority import PriorityReplay
from reverie.agents.seeding import stream
from reverie.agents.spr import SPR
from reverie.agents.spr_config import AugmentConfig, QOptimConfig, SPRConfig
from reverie.envs.specs import EnvSpec
from reverie.world_models.config import WorldModelConfig
from reverie.world_models.spr_config import SPRModelConfig

GRID, ACTIONS, EPISODE = 6, 5, 20
MOVES = np.array([[0, 0], [0, 1], [0, -1], [1, 0], [-1, 0]])
Look = dict[str, float]

MUDREAMER = MuDreamerConfig(
    model=WorldModelConfig(
        deter=32, stoch=8, classes=8, units=32, layers=1, cnn_depth=4, bins=31, gamma=0.9
    ),
    behavior=BehaviorConfig(horizon=3),
    optim=OptimConfig(model_lr=3e-3),
)
SPR_CFG = SPRConfig(
    model=SPRModelConfig(channels=(8, 16, 16), hidden=32, encoder="nature_same", history=1),
    augment=AugmentConfig(shift=1),
    optim=QOptimConfig(lr=1e-3),
)
FORCED: dict[str, dict[str, Any]] = {
    "mudreamer": {"kl_dyn": 1.0, "kl_rep": 1.0, "pred_scale": 0.0},
    "spr": {"target": "online"},
    "act_jepa": {"guard": "none", "w_action": 0.0},
}
"""Settings of the model that leave nothing to hold the latents."""


def grid_rows(count: int, pixels: int, *, seed: int, constant: bool = False) -> Iterator[Any]:
    """Rows of a block that random actions move over a grid, once around its edges."""
    rng, place = np.random.default_rng(seed), np.zeros(2, int)
    cell = pixels // GRID
    for t in range(count):
        first, last = t % (EPISODE + 1) == 0, t % (EPISODE + 1) == EPISODE
        choice = int(rng.integers(ACTIONS))
        place = rng.integers(0, GRID, 2) if first else (place + MOVES[choice]) % GRID
        image = np.full((1, pixels, pixels, 1), 40, np.uint8)
        y, x = (0, 0) if constant else place * cell
        image[0, y : y + cell, x : x + cell] = 220
        yield {
            "image": image,
            "action": np.eye(ACTIONS, dtype=np.float32)[[choice]] * np.float32(not first),
            "reward": np.array([float(place[0] == 0)], np.float32),
            "is_first": np.array([first]),
            "is_last": np.array([last]),
            "is_terminal": np.array([False]),
        }


def fill(replay: Any, pixels: int, *, seed: int, constant: bool) -> Any:
    for row in grid_rows(1500, pixels, seed=seed, constant=constant):
        replay.add(row)
    return replay


def looks(
    agent: Any,
    data: Any,
    held_out: Any,
    shape: tuple[int, int],
    *,
    seed: int,
    updates: int,
    every: int,
) -> list[Look]:
    """What an agent reports at every `every`-th update."""
    found = []
    for update in range(1, updates + 1):
        metrics = agent.learn_from(data, stream(seed, "replay", update), shape)[1]
        assert metrics["nonfinite"] == 0.0
        if update % every == 0:
            look = agent.examine(held_out, stream(seed, "report", update), shape)
            found.append({name: float(value) for name, value in look.items()})
    return found


def mudreamer(
    *, seed: int, constant: bool = False, updates: int = 600, every: int = 100, **model: Any
) -> list[Look]:
    spec = EnvSpec("test/grid", ACTIONS, True, (16, 16, 1))
    cfg = replace(MUDREAMER, model=replace(MUDREAMER.model, **model))
    agent = MuDreamer(spec, cfg, seed=seed, batch_shape=(8, 16))
    replay = fill(
        Replay(replay_schema(spec), num_envs=1, capacity=1500), 16, seed=seed, constant=constant
    )
    return looks(agent, replay, replay, (8, 16), seed=seed, updates=updates, every=every)


def spr(
    *,
    seed: int,
    constant: bool = False,
    updates: int = 600,
    every: int = 100,
    q_scale: float = 1.0,
    **model: Any,
) -> list[Look]:
    spec = EnvSpec("test/grid", ACTIONS, True, (36, 36, 1))
    cfg = replace(SPR_CFG, model=replace(SPR_CFG.model, **model), q_scale=q_scale)
    agent = SPR(spec, cfg, seed=seed, updates=updates, batch_size=32)
    replay = PriorityReplay(
        replay_schema(spec),
        num_envs=1,
        capacity=1500,
        device="cpu",
        history=cfg.model.history,
        predictions=cfg.model.predictions,
        max_n_step=cfg.max_n_step,
    )
    fill(replay, 36, seed=seed, constant=constant)
    return looks(agent, replay, replay, (32, 1), seed=seed, updates=updates, every=every)


def act_jepa(
    folder: Path,
    *,
    seed: int,
    constant: bool = False,
    updates: int = 300,
    every: int = 50,
    **model: Any,
) -> list[Look]:
    data = walks(folder / f"train {seed}", episodes=24, seed=seed, constant=constant)
    held_out = walks(folder / f"held out {seed}", episodes=8, seed=100 + seed, constant=constant)
    small = {"encoder_layers": 1, "predictor_layers": 1, "ema_start": 0.99, "dropout": 0.0}
    cfg = replace(with_model(**{**small, **model}), optim=ImitationOptimConfig(lr=5e-3))
    agent = walker(data, cfg, seed=seed, updates=updates)
    return looks(agent, data, held_out, (32, 6), seed=seed, updates=updates, every=every)
