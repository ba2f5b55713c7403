"""The SPR family's update: order, targets, weights, schedules, resets, state."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from runs import assert_same, clone_tree
from small_spr import (
    CFG,
    MODEL,
    SHARED,
    SPEC,
    B,
    agent,
    filled_replay,
    transitions,
    weights,
    with_model,
)
from torch import Tensor

from reverie.agents.capture import warm_up
from reverie.agents.q_learning import view_order
from reverie.agents.spr import LOOKED_AT, SPR
from reverie.agents.spr_config import (
    AugmentConfig,
    QOptimConfig,
    ResetConfig,
    ReturnConfig,
    SPRConfig,
)
from reverie.world_models.losses import importance_weight
from reverie.world_models.nets import count_parameters

PLAIN = replace(CFG, augment=AugmentConfig(shift=0, intensity=0.0))


# the order of one update


def test_prediction_target_lags_one_gradient_step() -> None:
    player = agent()
    seen = []
    for seed in range(3):
        seen.append(weights(player))
        player.update(transitions(seed=seed))
        now = weights(player)
        for name in ("encoder.convs.0.weight", "head.value_hidden.mu.weight"):
            assert torch.equal(now[f"target_{name}"], seen[-1][name]), "online before this step"
            assert not torch.equal(now[f"target_{name}"], now[name])


def test_q_target_uses_the_noise_of_the_update_before(monkeypatch: pytest.MonkeyPatch) -> None:
    player = agent()
    calls: list[Tensor] = []
    forward = type(player.model.head).forward

    def spy(self: Any, latent: Tensor, noise: Tensor | None = None) -> Tensor:
        assert noise is not None
        calls.append(noise.clone())
        return forward(self, latent, noise)

    monkeypatch.setattr(type(player.model.head), "forward", spy)
    before = player.head_noise.clone()
    player.update(transitions())
    taken, ahead, bootstrap = calls
    assert torch.equal(taken, ahead) and torch.equal(bootstrap, before)
    assert torch.equal(player.head_noise, taken) and not torch.equal(taken, before)


def test_views_are_drawn_apart_and_only_where_they_are_needed() -> None:
    assert view_order(5) == [0, 6, 1, 2, 3, 4, 5, 6] and view_order(0) == [0, 1, 1]
    noise = agent().draw_noise().views
    assert noise.offset.shape == (8 * B, 2) and noise.brightness.shape == (8 * B,)
    assert noise.offset.min() >= 0 and noise.offset.max() <= 8
    assert len(torch.unique(noise.offset, dim=0)) > 20


# losses against loops


def manual_target(player: SPR, rows: Any, noise: Tensor, previous: Tensor) -> Tensor:
    """Projected distribution by loops, from the definitions."""
    model, cfg = player.model, player.cfg
    atoms = model.atom_values.tolist()
    step = atoms[1] - atoms[0]
    out = torch.zeros(B, len(atoms))
    for b in range(B):
        image = rows["image"][b, -1].movedim(-1, -3).flatten(0, 1)[None].float() / 255
        latent = model.online.latent(image).flatten(1)
        q = (model.head(latent, noise).softmax(-1)[0] * model.atom_values).sum(-1)
        prob = model.head(latent, previous).softmax(-1)[0, int(q.argmax())]
        total, discount = 0.0, 1.0
        for k in range(cfg.returns.n_step):
            total += discount * float(np.sign(float(rows["reward"][b, k])))
            discount *= cfg.returns.gamma
            if rows["is_last"][b, k]:
                discount *= 1.0 - float(rows["is_terminal"][b, k])
                break
        for p, atom in zip(prob.tolist(), atoms, strict=True):
            place = (min(max(total + discount * atom, atoms[0]), atoms[-1]) - atoms[0]) / step
            low = min(math.floor(place), len(atoms) - 2)
            out[b, low] += p * (low + 1 - place)
            out[b, low + 1] += p * (place - low)
    return out


@torch.no_grad()
def test_loss_and_priority_equal_their_definitions() -> None:
    player, rows = agent(PLAIN), transitions()
    player._begin_update()
    noise = player.draw_noise()
    target = manual_target(player, rows, noise.head, player.head_noise)
    found = player._losses(dict(rows.items()), noise, player.head_noise, player._schedule)
    weight = importance_weight(rows["priority"], player._schedule.beta)
    image = rows["image"][:, 0].movedim(-1, -3).flatten(1, 2).float() / 255
    latent = player.model.online.latent(image)
    taken = player.model.head(latent.flatten(1), noise.head)[
        torch.arange(B), rows["action"][:, 0].argmax(-1)
    ]
    nll = -(target * taken.log_softmax(-1)).sum(-1)
    kl = nll + torch.special.xlogy(target, target).sum(-1)
    torch.testing.assert_close(found.priority, kl.clamp(1e-6, 1e6).sqrt(), rtol=1e-4, atol=1e-5)
    fresh = agent(PLAIN).model
    fresh.load_state_dict(player.model.state_dict())
    predicted = fresh.predict(latent, rows["action"], train=True)
    total = torch.zeros(B)
    for b in range(B):
        for k in range(5):
            if rows["is_last"][b, : k + 2].any():
                continue
            future = rows["image"][b, k + 1].movedim(-1, -3).flatten(0, 1)[None].float() / 255
            y = fresh.target_projection(future)[0]
            cos = torch.nn.functional.cosine_similarity(predicted[b, k], y, dim=0)
            total[b] += 2.0 * (1.0 - cos)
    # the paper's form: minus cosine summed over k with weight 2
    torch.testing.assert_close(found.loss, (weight * (nll + total)).mean(), rtol=1e-4, atol=1e-5)


def test_rewards_are_signs_in_learning_and_raw_in_replay() -> None:
    big = transitions()
    big["reward"] = big["reward"] * 1000
    same = [agent(PLAIN).update(rows)["loss/q"] for rows in (transitions(), big)]
    assert torch.equal(same[0], same[1])
    raw = replace(PLAIN, returns=ReturnConfig(reward="raw"))
    other = [agent(raw).update(rows)["loss/q"] for rows in (transitions(), big)]
    assert not torch.equal(other[0], other[1])


def test_clipping_has_two_groups_and_spares_the_predictor() -> None:
    player = agent(replace(CFG, optim=QOptimConfig(clip=0.5)))
    groups = player._optimisers
    sizes = {name: sum(p.numel() for p in o.params) for name, o in groups.items()}
    model = player.model
    assert model.transition is not None and model.predictor is not None
    assert sizes == {
        "network": count_parameters(model.encoder, model.head),
        "transition": count_parameters(model.transition),
        "predictor": count_parameters(model.predictor),
    }
    assert [groups[n].clip for n in ("network", "transition", "predictor")] == [0.5, 0.5, math.inf]
    assert sum(sizes.values()) == count_parameters(model)


def test_weight_decay_spares_vectors_and_is_decoupled() -> None:
    player = agent(replace(CFG, optim=QOptimConfig(lr=1e-3, weight_decay=0.1)))
    adam = player._optimisers["network"].adam
    assert isinstance(adam, torch.optim.AdamW)
    decays = [group["weight_decay"] for group in adam.param_groups]
    assert decays == [0.1, 0.0]
    assert all(p.ndim > 1 for p in adam.param_groups[0]["params"])
    assert all(p.ndim <= 1 for p in adam.param_groups[1]["params"])


# faults, state, replay


def test_fault_16_a_poisoned_batch_changes_nothing_that_learns() -> None:
    player, replay = agent(SHARED), filled_replay(SHARED)
    player.learn_from(replay, np.random.default_rng(0), (B, 1))
    before = clone_tree(player.state_dict())
    leaves = replay.tree.leaves.clone()
    replay._columns["reward"][:, 40:60] = math.nan
    poisoned, metrics = player.learn_from(replay, np.random.default_rng(1), (B, 1))
    sound = poisoned["reward"].isfinite().all(1)
    assert metrics["nonfinite"] == 1.0 and sound.any() and not sound.all()
    after = player.state_dict()
    for part in ("model", "optimisers"):
        assert_same(before[part], after[part])
    assert torch.equal(leaves, replay.tree.leaves)
    replay._columns["reward"].fill_(1.0)
    assert player.learn_from(replay, np.random.default_rng(2), (B, 1))[1]["nonfinite"] == 0.0


def test_learning_moves_priorities_of_the_drawn_rows_alone() -> None:
    player, replay = agent(), filled_replay()
    before = replay.tree.leaves.clone()
    batch, metrics = player.learn_from(replay, np.random.default_rng(0), (B, 1))
    changed = (before != replay.tree.leaves).nonzero().flatten()
    assert set(changed.tolist()) == set(batch["index"].tolist())
    assert "priority" not in metrics and all(v.ndim == 0 for v in metrics.values())


@pytest.mark.parametrize("cfg", [CFG, SHARED, with_model(dropout=0.5), with_model(predictions=0)])
def test_state_round_trip_continues_bit_by_bit(cfg: SPRConfig) -> None:
    one, other = agent(cfg), agent(cfg, seed=5)
    for seed in range(2):
        one.update(transitions(cfg, seed=seed))
    other.seed = 0
    other.load_state_dict(clone_tree(one.state_dict()))
    for player in (one, other):
        player.update(transitions(cfg, seed=9))
    assert_same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("model", "target_head.value.mu.weight"),
        ("model", "transition.norm.running_var"),
        ("generators", "update"),
        ("optimisers", "transition"),
    ],
)
def test_every_missing_entry_is_refused(part: str, key: str) -> None:
    player = agent()
    state = clone_tree(player.state_dict())
    del state[part][key]
    with pytest.raises(ValueError, match="missing"):
        player.load_state_dict(state)


def test_trap_18_warm_up_leaves_no_trace() -> None:
    player, replay = agent(), filled_replay()
    before, leaves = clone_tree(player.state_dict()), replay.tree.leaves.clone()
    uniform = torch.rand(B, dtype=torch.float64)
    player._begin_update()
    player.updates = 0
    warm_up(
        lambda: player._draw_and_learn(replay, uniform),
        lambda: [*player._live_tensors(), *replay.priority_tensors()],
        [player._generators["update"]],
    )
    after = player.state_dict()
    for part in ("model", "generators", "head_noise"):
        assert_same(before[part], after[part])
    moments = [t for o in player._optimisers.values() for t in o.moments()]
    assert moments and not any(bool(t.any()) for t in moments)
    assert torch.equal(leaves, replay.tree.leaves)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["inductor", "graph"])
@pytest.mark.parametrize("cfg", [CFG, replace(SHARED, reset=ResetConfig(every=3))])
def test_captured_updates_equal_eager_ones(mode: str, cfg: SPRConfig) -> None:
    eager, other = (agent(cfg, device="cuda", compile=m) for m in ("off", mode))
    replays = [filled_replay(cfg, device="cuda") for _ in range(2)]
    for seed in range(7):
        for player, replay in zip((eager, other), replays, strict=True):
            player.learn_from(replay, np.random.default_rng(seed), (B, 1))
    torch.testing.assert_close(replays[1].tree.leaves, replays[0].tree.leaves, rtol=0.02, atol=1e-3)
    for name, value in eager.model.state_dict().items():
        torch.testing.assert_close(
            other.model.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name
        )


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["off", "graph"])
def test_an_update_never_waits_for_the_device(mode: str) -> None:
    player, replay = agent(device="cuda", compile=mode), filled_replay(device="cuda")
    player.learn_from(replay, np.random.default_rng(0), (B, 1))
    torch.cuda.set_sync_debug_mode("error")
    try:
        player.learn_from(replay, np.random.default_rng(1), (B, 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_compiled_updates_equal_eager_ones() -> None:
    torch._dynamo.reset()
    eager, other = agent(), agent(compile="inductor")
    for seed in range(3):
        one, two = (p.update(transitions(seed=seed)) for p in (eager, other))
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=name)
    for name, value in eager.model.state_dict().items():
        torch.testing.assert_close(
            other.model.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name
        )


def test_bf16_keeps_weights_and_losses_in_float32() -> None:
    player = agent(precision="bf16")
    metrics = player.update(transitions())
    assert metrics["nonfinite"] == 0 and metrics["loss/q"].dtype == torch.float32
    assert {p.dtype for p in player.model.parameters()} == {torch.float32}
    exact = agent().update(transitions())
    assert metrics["norm/network"] != exact["norm/network"], "nothing ran in bf16"
    torch.testing.assert_close(metrics["loss/q"], exact["loss/q"], rtol=0.05, atol=0.0)


@pytest.mark.parametrize("cfg", [PLAIN, replace(SHARED, augment=PLAIN.augment)])
def test_one_batch_is_overfitted(cfg: SPRConfig) -> None:
    player, batch = agent(replace(cfg, optim=QOptimConfig(lr=2e-3))), transitions(cfg)
    batch["is_last"].fill_(True)
    batch["is_terminal"].fill_(True)
    first = player.update(batch)
    for _ in range(120):
        last = player.update(batch)
    # every return is one reward: the distribution is a single atom or two
    assert last["loss/q"] < 0.25 * first["loss/q"], (first["loss/q"], last["loss/q"])
    batch["is_last"].fill_(False)
    first = player.update(batch)
    for _ in range(120):
        last = player.update(batch)
    assert last["loss/spr"] < 0.5 * first["loss/spr"], (first["loss/spr"], last["loss/spr"])


@torch.no_grad()
def test_prediction_ratio_is_the_loss_over_that_of_a_constant() -> None:
    player, rows = agent(PLAIN), transitions()
    rows["is_last"].fill_(False)
    player._begin_update()
    noise = player.draw_noise()
    found = player._losses(dict(rows.items()), noise, player.head_noise, player._schedule).metrics
    planes = rows["image"][:, 1:-1].flatten(0, 1).movedim(-1, -3).flatten(1, 2).float() / 255
    unit = torch.nn.functional.normalize(player.model.target_projection(planes), dim=-1)
    best = torch.nn.functional.normalize(unit.mean(0), dim=0)
    constant = (unit - best).square().sum(-1).mean()
    ratio = found["loss/spr"] / constant
    torch.testing.assert_close(found["health/prediction_ratio"], ratio, rtol=1e-3, atol=0.0)


def test_report_has_what_tells_a_collapse_and_changes_nothing() -> None:
    player, replay = agent(), filled_replay()
    before = clone_tree(player.state_dict())
    found = player.examine(replay, np.random.default_rng(0), (B, 1))
    names = "latent_rank latent_cosine action_shuffle_ratio loss_ratio variance_spread ema_distance"
    spread = "target_std target_cosine top_share rank rank_centred"
    assert set(found) == {f"health/{name}" for name in f"{names} {spread}".split()}
    assert 1.0 <= found["health/latent_rank"] <= LOOKED_AT
    alone = agent(with_model(predictions=0)).examine(replay, np.random.default_rng(0), (B, 1))
    assert set(alone) == {"health/latent_rank", "health/latent_cosine"}
    assert_same(before, player.state_dict())
    assert SPEC.action_size == 3 and MODEL.predictions == 5
