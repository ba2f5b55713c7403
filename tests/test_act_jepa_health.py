"""What examine reports, a forced collapse that it sees, one episode learned by heart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import assert_same, clone_tree
from small_imitator import CFG, SEEING, WALKS, walker, walks, with_model

from reverie.agents.act_jepa import ACTJEPA
from reverie.agents.act_jepa_config import ACTJEPAConfig, ImitationOptimConfig
from reverie.agents.collapse_monitor import SEVERAL_TASKS
from reverie.agents.demos.windows import DemoWindows
from reverie.agents.latent_health import MOST
from reverie.world_models.collapse import cosine_to_mean, loss_over_mean_prediction
from reverie.world_models.ops import effective_rank, feature_std

SHAPE = (16, CFG.model.chunk)
ALWAYS = {"held_out/action", "held_out/latent"}
ALWAYS |= {f"health/{n}" for n in ("top_share", "rank", "rank_centred", "task_std")}
ALWAYS |= {
    f"health/{n}{step}"
    for n in ("target_std", "target_cosine", "loss_ratio")
    for step in ("", "_first", "_last")
}
PROJECTED = {"health/projected_std", "health/sigreg"}
COPY = {"health/ema_distance"}


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def examined(player: ACTJEPA, windows: DemoWindows) -> dict[str, float]:
    return {k: float(v) for k, v in player.examine(windows, rng(), SHAPE).items()}


@pytest.mark.parametrize(
    ("cfg", "keys"),
    [
        (CFG, ALWAYS | COPY),
        (with_model(guard="sigreg"), ALWAYS | PROJECTED),
        (with_model(**SEEING, action_conditioned=True), ALWAYS | COPY),
        (with_model(w_jepa=0.0), {"held_out/action"}),
        (with_model(w_jepa=0.0, vae=True), {"held_out/action", "held_out/kl"}),
    ],
)
def test_examine_reports_finite_numbers_in_their_ranges_and_changes_nothing(
    cfg: ACTJEPAConfig, keys: set[str], tmp_path: Path
) -> None:
    windows = walks(tmp_path, images="all" if "image" in cfg.model.inputs else "none")
    player = walker(windows, cfg)
    before = clone_tree(player.state_dict())
    found = examined(player, windows)
    assert found.keys() == keys and all(math.isfinite(value) for value in found.values())
    width = cfg.model.width * len(cfg.model.targets)
    for name, value in found.items():
        if "cosine" in name:
            assert -1 <= value <= 1 + 1e-6, name
        elif "rank" in name:
            assert 1 <= value <= width, name
        elif name == "health/top_share":
            assert 1 / width <= value <= 1
        elif name == "health/ema_distance":
            assert value == 0.0, "a copy that has not been left behind yet"
        else:
            assert value > 0, name
    assert_same(before, player.state_dict())
    assert found == examined(player, windows), "the same numbers at every look"


@torch.no_grad()
def test_examined_numbers_are_those_of_the_latents_at_one_step(tmp_path: Path) -> None:
    windows = walks(tmp_path)
    player = walker(windows)
    assert len(windows) <= MOST
    batch = windows.gather(np.arange(len(windows)))
    rows, model = player.normalised(batch), player.model
    target = model.target_latents(rows)[:, :, 0]
    guess = model.predict(
        model.context({"vector": rows["vector"][:, 0]}, rows["task"]), rows["action"]
    )
    found = examined(player, windows)
    for name, step in (("_first", 0), ("", 3), ("_last", 5)):
        here = ~batch["is_pad"][:, step]
        z = target[here, step]
        torch.testing.assert_close(found[f"health/target_std{name}"], float(feature_std(z)))
        torch.testing.assert_close(found[f"health/target_cosine{name}"], float(cosine_to_mean(z)))
        ratio = loss_over_mean_prediction(guess[here, step, 0], z)
        torch.testing.assert_close(found[f"health/loss_ratio{name}"], float(ratio))
        if not name:
            assert found["health/rank"] == pytest.approx(float(effective_rank(z)), rel=1e-4)
            task = batch["task"][here]
            counts = task.bincount()
            assert counts[0] != counts[1] or int(task.mode().values) == 0
            one = z[task == int(task.mode().values)]
            torch.testing.assert_close(found["health/task_std"], float(feature_std(one)))
    whole = player.examine(windows, rng(), (len(windows), 6))
    losses = model.losses(rows)
    for name in ("action", "latent"):
        torch.testing.assert_close(whole[f"held_out/{name}"], losses[name].mean())


def test_windows_shorter_than_a_chunk_leave_out_its_later_steps(tmp_path: Path) -> None:
    windows = walks(tmp_path, length=2, episodes=1)  # 2 frames: steps 3 and 5 do not exist
    found = examined(walker(windows), windows)
    assert {name for name in found if name.startswith("health/")} == {
        "health/target_std_first",
        "health/target_cosine_first",
        "health/loss_ratio_first",
    }


# collapse


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., dict[str, float]]:
    """Numbers of held-out windows after a few hundred updates."""
    windows = walks(tmp_path / "train", episodes=24)
    held_out = walks(tmp_path / "held out", episodes=8, seed=1)

    def train(*, actions: bool, **changes: object) -> dict[str, float]:
        small = {"encoder_layers": 1, "predictor_layers": 1, "ema_start": 0.99, "dropout": 0.0}
        cfg = with_model(**{**small, **changes})
        cfg = replace(cfg, optim=ImitationOptimConfig(lr=5e-3))
        player = walker(windows, cfg, updates=250)
        player.model.loss_scales["action"] *= actions
        before = examined(player, held_out)["held_out/action"]
        for step in range(250):
            metrics = player.learn_from(windows, np.random.default_rng(step), (32, 6))[1]
            assert metrics["nonfinite"] == 0.0
        found = examined(player, held_out)
        return {**found, "learned": 1.0 - found["held_out/action"] / before}

    return train


@pytest.mark.slow
@pytest.mark.parametrize("actions", [False, True], ids=["latents alone", "with actions"])
def test_a_forced_collapse_is_seen_in_the_latents_and_nowhere_else(
    trained: Callable[..., dict[str, float]], actions: bool
) -> None:
    sound, dead = trained(actions=actions), trained(actions=actions, guard="none")
    for step in ("_first", "", "_last"):
        assert sound[f"health/target_std{step}"] > 0.25, sound
        assert dead[f"health/target_std{step}"] < 0.02, dead
        assert dead[f"health/target_cosine{step}"] > 0.999 > sound[f"health/target_cosine{step}"]
        assert dead[f"health/loss_ratio{step}"] > 1.0, dead
    assert sound["health/loss_ratio"] < 0.75, sound
    assert dead["held_out/latent"] < 0.1 * sound["held_out/latent"], "the loss looks splendid"
    breached = {gate.name for gate in SEVERAL_TASKS if gate.breach(dead[gate.name])}
    assert {"health/target_std", "health/target_cosine", "health/task_std"} <= breached
    for found in (sound, dead):
        assert (found["learned"] > 0.5) == actions, "the policy learns, collapsed or not"


@pytest.mark.learn
@pytest.mark.slow
def test_one_episode_is_overfitted(tmp_path: Path) -> None:
    windows = walks(tmp_path, tasks=WALKS[:1], episodes=1)
    cfg = with_model(dropout=0.0, width=32, ffn=64)
    player = walker(windows, replace(cfg, optim=ImitationOptimConfig(lr=3e-3)), updates=500)
    for step in range(500):
        player.learn_from(windows, np.random.default_rng(step), (16, 6))
    batch = windows.gather(np.arange(len(windows)))
    found = player.predict_chunk({"vector": batch["vector"][:, 0]}, batch["task"])
    error = (found - batch["action"]).abs()[~batch["is_pad"]].mean()
    assert error < 0.02, error
    assert batch["action"].abs().mean() > 0.1, "actions that are not all zero"
