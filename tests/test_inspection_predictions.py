"""What SPR and ACT-JEPA predict, held against what came: rows and offsets are the right ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_imitator
import small_spr
import torch
from torch import Tensor

from reverie.agents.configs import RunConfig
from reverie.agents.inspection.chunks import look_at_chunks, numbers
from reverie.agents.inspection.contexts import draw_contexts
from reverie.agents.inspection.inspector import inspect_agent
from reverie.agents.inspection.scenes import Look
from reverie.agents.inspection.similarity import similarities, similarity_panel

CPU = torch.device("cpu")
CONTEXT = 5


@pytest.mark.parametrize("off", [0, 1])
def test_similarity_is_one_where_the_targets_themselves_are_predicted(
    off: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = small_spr.with_model(history=1, predictions=3)
    agent, replay = small_spr.agent(cfg), small_spr.filled_replay(cfg)
    windows = draw_contexts(
        replay, np.random.default_rng(0), count=4, context=CONTEXT, horizon=5, device=CPU
    )
    assert windows is not None
    begin = CONTEXT - 1 + off
    later = {key: value[:, begin:] for key, value in windows.rows.items()}
    seen: list[Tensor] = []

    def predict(latent: Tensor, action: Tensor) -> Tensor:
        seen.append(action)
        return agent.model.targets(later)

    monkeypatch.setattr(agent.model, "predict", predict)
    found = similarities(agent.model, windows.rows, CONTEXT)
    assert all(cosine.shape == (4, 3) for cosine in found.values())
    exact = torch.allclose(found["recorded"], torch.ones(4, 3), atol=1e-5)
    assert exact == (off == 0), "the frame after the context is what the first step predicts"
    assert torch.equal(seen[0], windows.rows["action"][:, CONTEXT : CONTEXT + 3])
    assert torch.equal(seen[1], seen[0].roll(1, 0)), "the control has another window's actions"
    assert not torch.allclose(found["held"], torch.ones(4, 3), atol=1e-5)


def test_similarities_are_drawn_and_counted_per_step() -> None:
    cosine = torch.tensor([[0.9, 0.5], [0.7, 0.3]])
    found = {"recorded": cosine, "shuffled": cosine - 0.2, "held": cosine * 0}
    panel = similarity_panel(found, title="spr")
    assert panel.frames is not None and panel.frames.shape[0] == 1
    assert panel.scalars == pytest.approx(
        {"similarity_1": 0.8, "similarity_2": 0.4, "similarity_shuffled_last": 0.2}
    )


def learned(folder: Path, updates: int) -> dict[str, float]:
    own = {"width": 32, "ffn": 64, "dropout": 0.0, "ema_start": 0.9, "predictor_width": 16}
    cfg = small_imitator.with_model(small_imitator.CFG, **own)
    cfg = replace(cfg, optim=replace(cfg.optim, lr=5e-3, weight_decay=0.0))
    windows = small_imitator.walks(folder, episodes=10)
    agent = small_imitator.walker(windows, cfg, updates=updates)
    for update in range(updates):
        agent.learn_from(windows, np.random.default_rng(update), (64, 1))
    rng = np.random.default_rng(0)
    return numbers(look_at_chunks(agent, windows, Look(windows=32), rng=rng, seed=0))


def test_a_trained_prediction_resembles_its_own_target_and_no_other(tmp_path: Path) -> None:
    fresh, after = learned(tmp_path / "a", 1), learned(tmp_path / "b", 120)
    assert fresh["error_last"] > 0.8 and fresh["error_first"] > 0.8
    assert after["error_last"] < 0.4 < 0.7 < after["error_other_last"]
    assert after["chunk_error"] < 0.5 * fresh["chunk_error"]
    assert after["neighbour_distance"] < 0.3


def test_neighbours_come_from_other_episodes_and_whole_chunks(tmp_path: Path) -> None:
    windows = small_imitator.walks(tmp_path, episodes=6)
    agent = small_imitator.walker(windows)
    rng = np.random.default_rng(0)
    chunks = look_at_chunks(agent, windows, Look(windows=8, shown=2), rng=rng, seed=0)
    drawn = {windows.episode_of(int(i)) for i in chunks.places[:2]}
    assert drawn.isdisjoint(windows.episode_of(int(i)) for i in chunks.stored)
    assert not chunks.library["is_pad"].any() and len(chunks.stored) > 20
    assert torch.equal(chunks.batch["action"], windows.gather(chunks.places)["action"])
    assert torch.equal(chunks.library["action"], windows.gather(chunks.stored)["action"])


def test_neighbours_are_counted_where_they_come_from_other_episodes(tmp_path: Path) -> None:
    windows = small_imitator.walks(tmp_path, episodes=6)
    agent = small_imitator.walker(windows)
    rng = np.random.default_rng(0)
    chunks = look_at_chunks(agent, windows, Look(windows=8, shown=2), rng=rng, seed=0)
    assert chunks.latents is not None
    own = {windows.episode_of(int(i)) for i in chunks.places[2:]}
    assert own & {windows.episode_of(int(i)) for i in chunks.stored}, "of windows not shown"
    near = chunks.latents.near
    distance = [
        float(near.distance[step, window])
        for window in range(2)
        for step in range(6)
        if not chunks.batch["is_pad"][window, step]
    ]
    assert numbers(chunks)["neighbour_distance"] == pytest.approx(np.mean(distance), rel=1e-5)


def test_padded_rows_count_for_nothing(tmp_path: Path) -> None:
    windows = small_imitator.walks(tmp_path, episodes=6)
    agent = small_imitator.walker(windows)
    rng = np.random.default_rng(0)
    chunks = look_at_chunks(agent, windows, Look(windows=40), rng=rng, seed=0)
    pad = chunks.batch["is_pad"]
    assert pad.any()
    poisoned = chunks.predicted.masked_fill(pad.unsqueeze(-1), torch.nan)
    assert numbers(chunks._replace(predicted=poisoned)) == numbers(chunks)


def test_a_chunk_with_images_is_an_animation_of_its_rows(tmp_path: Path) -> None:
    cfg = small_imitator.with_model(small_imitator.CFG, **small_imitator.SEEING)
    windows = small_imitator.walks(tmp_path, images="first", episodes=4, length=20)
    agent = small_imitator.walker(windows, small_imitator.with_model(cfg, targets=("proprio",)))
    run = replace(RunConfig(), agent="act-jepa")
    panels = inspect_agent(agent, windows, run, step=0, look=Look(windows=4, shown=1))
    named = {panel.name: panel for panel in panels}
    assert named.keys() == {"chunk_0", "error", "numbers", "latents"}
    frames = named["chunk_0"].frames
    assert frames is not None and 1 < len(frames) <= small_imitator.MODEL.chunk
