"""A MuDreamer of a few thousand weights, a batch for it, and a comparison of whole states."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from reverie.agents.mudreamer import MuDreamer
from reverie.agents.mudreamer_config import BehaviorConfig, MuDreamerConfig
from reverie.envs.specs import EnvSpec
from reverie.world_models.config import WorldModelConfig

MODEL = WorldModelConfig(deter=16, stoch=4, classes=4, units=16, layers=1, cnn_depth=2, bins=31)
CFG = MuDreamerConfig(model=MODEL, behavior=BehaviorConfig(horizon=4))
B, T = 3, 8


def agent(
    cfg: MuDreamerConfig = CFG, *, discrete: bool = False, seed: int = 0, **kwargs: Any
) -> MuDreamer:
    spec = EnvSpec("test/x", 3, discrete, (16, 16, 3))
    return MuDreamer(spec, cfg, seed=seed, batch_shape=(B, T), **kwargs)


def batch(*, discrete: bool = False, seed: int = 1) -> TensorDict:
    g = torch.Generator().manual_seed(seed)
    action = torch.rand(B, T, 3, generator=g) * 2 - 1
    if discrete:
        action = torch.nn.functional.one_hot(action.argmax(-1), 3).float()
    last = torch.zeros(B, T, dtype=torch.bool)
    last[0, 3] = True
    first = last.roll(1, 1)
    action[first] = 0.0
    image = torch.randint(0, 256, (B, T, 16, 16, 3), generator=g, dtype=torch.uint8)
    rows = {
        "image": image,
        "action": action,
        "reward": image[..., 0, 0, 0].float() / 255,
        "is_first": first,
        "is_last": last,
        "is_terminal": last,
    }
    return TensorDict(rows, [B, T])


def flat_state(of: MuDreamer) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Tensor):
            out[prefix] = value.detach().clone()
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix}/{key}", item)

    walk("", of.state_dict())
    return out


def assert_equal_states(a: dict[str, Tensor], b: dict[str, Tensor], *, spared: str = "\0") -> None:
    assert a.keys() == b.keys()
    for key in a:
        if not key.startswith(spared):
            assert torch.equal(a[key], b[key]), key
