"""Small agents that must learn: one batch by heart, a ring of three positions, to catch a ball."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_agent import CFG, MODEL, B, T, agent, batch
from tensordict import TensorDict

from reverie.agents.evaluate import evaluate
from reverie.agents.mudreamer_config import OptimConfig
from reverie.agents.resolve import resolve
from reverie.agents.trainer import build_env, train


@pytest.mark.learn
@pytest.mark.parametrize("discrete", [False, True])
def test_one_batch_is_overfitted(discrete: bool) -> None:
    cfg = replace(CFG, optim=OptimConfig(model_lr=3e-3, behavior_lr=1e-3))
    player, rows = agent(cfg, discrete=discrete), batch(discrete=discrete)
    first = player.update(rows)
    for _ in range(200):
        last = player.update(rows)
    assert last["loss/reward"] < 0.5 * first["loss/reward"]
    assert last["loss/action"] < first["loss/action"] - 0.3
    assert last["health/embed_std"] > 0.05
    assert last["nonfinite"] == 0


@pytest.mark.learn
@pytest.mark.slow
def test_trap_25_permuted_actions_raise_the_loss() -> None:
    """Three positions on a ring, moved by the action and shown in the image."""
    model = replace(MODEL, deter=32, units=32)
    cfg = replace(CFG, optim=OptimConfig(model_lr=1e-2), model=model)
    g = torch.Generator().manual_seed(0)

    def world(*, late: bool) -> TensorDict:
        rows, choice = batch(discrete=True), torch.randint(0, 3, (B, T), generator=g)
        place = choice.cumsum(1) % 3
        if late:  # the fault: every action one row behind the move it caused
            choice = choice.roll(1, 1)
        rows["action"] = torch.nn.functional.one_hot(choice, 3).float()
        rows["image"] = (place * 100).byte()[..., None, None, None].expand(B, T, 16, 16, 3).clone()
        rows["reward"] = place.float()
        for flag in ("is_first", "is_last", "is_terminal"):
            rows[flag] = torch.zeros(B, T, dtype=torch.bool)
        return rows

    ratios = []
    for late in (False, True):
        player = agent(cfg, discrete=True)
        for _ in range(250):
            player.update(world(late=late))
        reports = [player.report(world(late=late)) for _ in range(4)]
        ratios.append(sum(r["health/action_shuffle_ratio"].item() for r in reports) / 4)
    assert ratios[0] > 2.0 and ratios[1] < 1.5, ratios


@pytest.mark.learn
@pytest.mark.slow
def test_spr_learns_to_catch(tmp_path: Path) -> None:
    own = {
        "agent": "spr",
        "run": str(tmp_path / "run"),
        "env": {"image_size": 32},
        "train": {"steps": 1300, "prefill": 300, "eval_every": 0, "eval_episodes": 192},
        "spr": {
            "model": {"encoder": "nature_same"},
            "augment": {"shift": 1},
            "optim": {"lr": 1e-3},
        },
    }
    cfg = resolve(own, configs=["catch"])
    assert train(cfg) == 0
    score = json.loads((tmp_path / "run" / "status.json").read_text())["evaluation"]["mean"]
    env = build_env(cfg, "eval", 16)
    blind = evaluate(None, env, episodes=192, seed=0, control="random")["mean"]
    assert blind < -0.4 and score > blind + 0.3, (score, blind)
