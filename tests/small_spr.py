"""An SPR agent of a few thousand weights, transitions for it, and its replay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from reverie.agents.replay.buffer import replay_schema
from reverie.agents.replay.priority import PriorityReplay
from reverie.agents.spr import SPR
from reverie.agents.spr_config import SPRConfig
from reverie.envs.specs import EnvSpec
from reverie.world_models.spr_config import SPRModelConfig

MODEL = SPRModelConfig(channels=(4, 8, 8), hidden=16, atoms=21)
CFG = SPRConfig(model=MODEL)
SPEC = EnvSpec("test/x", 3, True, (36, 36, 1))
B = 6


def with_model(cfg: SPRConfig = CFG, **changes: Any) -> SPRConfig:
    return replace(cfg, model=replace(cfg.model, **changes))


def agent(cfg: SPRConfig = CFG, *, seed: int = 0, updates: int = 100, **kwargs: Any) -> SPR:
    return SPR(SPEC, cfg, seed=seed, updates=updates, batch_size=B, **kwargs)


def transitions(cfg: SPRConfig = CFG, *, seed: int = 1) -> TensorDict:
    """A batch as `PriorityReplay.draw` gives it; episodes end in a few rows."""
    rng = np.random.default_rng(seed)
    count, n = cfg.model.predictions, cfg.max_n_step
    width = max(n, count + 1)
    last = np.zeros((B, width), bool)
    last[0, 2] = last[1, 0] = last[2, 7] = True
    terminal = last.copy()
    terminal[2] = False
    stacks = rng.integers(0, 256, (B, count + 2, cfg.model.history, 36, 36, 1))
    action = np.eye(3)[rng.integers(0, 3, (B, max(1, count)))]
    return TensorDict(
        {
            "index": torch.arange(B),
            "priority": torch.as_tensor(rng.uniform(0.2, 1.0, B), dtype=torch.float32),
            "image": torch.as_tensor(stacks.astype(np.uint8)),
            "action": torch.as_tensor(action, dtype=torch.float32),
            "reward": torch.as_tensor(rng.normal(size=(B, n)), dtype=torch.float32),
            "is_last": torch.as_tensor(last),
            "is_terminal": torch.as_tensor(terminal),
        },
        [B],
    )


def filled_replay(
    cfg: SPRConfig = CFG, *, rows: int = 120, seed: int = 2, device: str = "cpu"
) -> PriorityReplay:
    """Episodes of 20 steps whose pictures are random."""
    rng = np.random.default_rng(seed)
    replay = PriorityReplay(
        replay_schema(SPEC),
        num_envs=1,
        capacity=200,
        device=device,
        history=cfg.model.history,
        predictions=cfg.model.predictions,
        max_n_step=cfg.max_n_step,
    )
    for t in range(rows):
        first, last = t % 21 == 0, t % 21 == 20
        action = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 1)]
        replay.add(
            {
                "image": rng.integers(0, 256, (1, 36, 36, 1)).astype(np.uint8),
                "action": action * np.float32(not first),
                "reward": rng.normal(size=1).astype(np.float32),
                "is_first": np.array([first]),
                "is_last": np.array([last]),
                "is_terminal": np.array([last]),
            }
        )
    return replay


SHARED = with_model(
    replace(CFG, act_with="target"),
    target="shared",
    q_target_rate=0.1,
    noisy=False,
    head="shared",
    transition_norm="none",
)


def weights(player: SPR) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in player.model.state_dict().items()}
