"""Composable objectives: `spr` and `barlow` beside MuDreamer's own losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import clone_tree
from small_agent import CFG, MODEL, agent, assert_equal_states, batch, flat_state
from tensordict import TensorDict
from tiny_models import TINY, model, window_rows
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from reverie.agents.collector import Collector
from reverie.agents.configs import ConfigError
from reverie.agents.flags import config_from_args
from reverie.agents.mudreamer import MuDreamer
from reverie.agents.registry import build_agent, build_replay
from reverie.agents.resolve import resolve
from reverie.envs.registry import make_vec
from reverie.world_models.extra_objectives import ahead, barlow_objective, spr_objective
from reverie.world_models.losses import barlow_loss
from reverie.world_models.mudreamer import MuDreamerModel
from reverie.world_models.ops import effective_rank, feature_std

STEPS = 3
BOTH = replace(TINY, objectives=("spr", "barlow"), spr_steps=STEPS)
B, T = 3, 8


def small(*objectives: str, seed: int = 0) -> MuDreamer:
    changed = replace(MODEL, objectives=objectives)  # type: ignore[arg-type]
    return agent(replace(CFG, model=changed), seed=seed)


def rows_with_boundary() -> dict[str, Tensor]:
    rows = window_rows(batch=B, length=T)
    rows["is_last"][:, 2] = rows["is_terminal"][:, 2] = rows["is_first"][:, 3] = True
    return rows


def window_losses(net: MuDreamerModel, rows: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    noise = net.draw_noise(B, T, generator=g)
    rollout = net.draw_rollout_noise(B, T, generator=g)
    return net.losses(rows, net.window(rows, noise, rollout_noise=rollout))


# values


def test_ahead_holds_the_rows_that_follow() -> None:
    rows = torch.arange(10).reshape(2, 5)
    assert ahead(rows, 2).tolist() == [[[1, 2], [2, 3], [3, 4]], [[6, 7], [7, 8], [8, 9]]]
    wide = torch.randn(2, 5, 3, 4)
    assert torch.equal(ahead(wide, 3)[:, 1, 2], wide[:, 4])


def test_spr_equals_a_plain_loop_over_starts_and_steps() -> None:
    net, rows = model(BOTH), window_rows(batch=B, length=T)
    rows["is_first"][0, 3] = rows["is_first"][1, 1] = rows["is_first"][2, 7] = True
    noise, rollout = net.draw_noise(B, T), net.draw_rollout_noise(B, T)
    assert rollout is not None and net.spr is not None
    window = net.window(rows, noise, rollout_noise=rollout)
    found = net.losses(rows, window)["spr"]
    weight = net.spr.target.linear.weight[:, -net.encoder.size :]
    target = (window.embed @ weight.T) / (net.spr.norm.running_var + 1e-5).sqrt()
    expected = torch.zeros(B, T)
    for b in range(B):
        for t in range(T - STEPS):
            h, z = window.latents.h[b, t : t + 1], window.latents.z[b, t : t + 1]
            for k in range(1, STEPS + 1):
                row = t + k
                draw = rollout[b * (T - STEPS) + t, k - 1 : k]
                h, z, _ = net.rssm.imagine_step(h, z, rows["action"][b, row : row + 1], draw)
                if rows["is_first"][b, t + 1 : row + 1].any():
                    break
                prediction = net.spr(torch.cat([h, z], -1))[0]
                cosine = F.cosine_similarity(prediction, target[b, row], dim=0)
                expected[b, t] += (2 - 2 * cosine) / STEPS
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert found[:, T - STEPS :].abs().sum() == 0 and (found[2, : T - STEPS] > 0).all()


def test_barlow_is_the_batch_loss_over_the_width_on_every_row() -> None:
    net, rows = model(replace(TINY, objectives=("barlow",), projector_width=7)), window_rows()
    window = net.window(rows)
    assert net.barlow is not None
    views = net.barlow.feature(window.feature), net.barlow.embed(window.embed)
    expected = barlow_loss(*(view.flatten(0, 1) for view in views)) / 7
    loss = net.losses(rows, window)["barlow"]
    assert loss.shape == (3, 6) and torch.equal(loss, expected.expand(3, 6))


def test_losses_of_the_size_of_the_others_at_the_start() -> None:
    metrics = small("spr", "barlow").update(batch())
    assert 0.2 < metrics["loss/spr"] < 2.0
    assert 0.5 < metrics["loss/barlow"] < 2.0
    assert metrics["loss/model_total"] > metrics["loss/reward"] + metrics["loss/value"]


# boundaries


def test_nothing_behind_a_boundary_matters_before_it() -> None:
    net, rows = model(BOTH), rows_with_boundary()
    other = {k: v.clone() for k, v in rows.items()}
    for key in ("image", "action", "reward"):
        other[key][:, 3:] = other[key][:, 3:].flip(0)
    a, b = window_losses(net, rows)["spr"], window_losses(net, other)["spr"]
    assert torch.equal(a[:, :3], b[:, :3]) and not torch.equal(a[:, 3:], b[:, 3:])
    assert a[:, 2].abs().sum() == 0, "nothing follows an episode's last row"
    assert (a[:, :2] > 0).all()


def test_nothing_before_a_boundary_matters_behind_it() -> None:
    net, rows = model(BOTH), rows_with_boundary()
    other = {k: v.clone() for k, v in rows.items()}
    for key in ("image", "action"):
        other[key][:, :3] = other[key][:, :3].flip(0)
    a, b = window_losses(net, rows)["spr"], window_losses(net, other)["spr"]
    assert torch.equal(a[:, 3:], b[:, 3:]) and not torch.equal(a[:, :2], b[:, :2])


def test_the_action_of_a_row_is_the_one_that_led_to_it() -> None:
    net, rows = model(BOTH), window_rows(batch=B, length=T)
    other = rows | {"action": rows["action"].clone()}
    other["action"][:, 4] *= -1
    noise, rollout = net.draw_noise(B, T), net.draw_rollout_noise(B, T)
    window = net.window(rows, noise, rollout_noise=rollout)
    a = net.losses(rows, window)["spr"]
    b = net.losses(rows, window._replace(batch=other))["spr"]
    changed = (a != b).any(0).tolist()
    assert changed == [False, True, True, True, False, False, False, False]


# gradients


def touched(loss: Tensor, *modules: nn.Module) -> list[bool]:
    found = []
    for module in modules:
        leaves = [p for p in module.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
        found.append(any(g is not None and bool(g.abs().sum() > 0) for g in grads))
    return found


def test_trap_19_spr_trains_the_prediction_and_no_target() -> None:
    net, rows = model(BOTH), window_rows(batch=B, length=T)
    assert net.spr is not None
    window = net.window(rows)
    parts = (net.spr.project, net.spr.predict, net.rssm.gru, net.rssm.prior_out, net.encoder)
    assert touched(net.losses(rows, window)["spr"].sum(), *parts) == [True] * 5
    assert not any(p.requires_grad for p in net.spr.target.parameters())
    assert window.spr_target is not None and not window.spr_target.requires_grad
    cut = window._replace(latents=window.latents.detach())
    flow = touched(net.losses(rows, cut)["spr"].sum(), *parts)
    assert flow == [True] * 4 + [False], "the encoder learns through the state alone"
    others = (net.reward, net.cont, net.value, net.action)
    assert not any(touched(net.losses(rows, window)["spr"].sum(), *others))  # type: ignore[arg-type]


def test_trap_19_barlow_reaches_the_encoder_through_the_features_alone() -> None:
    net, rows = model(BOTH), window_rows(batch=B, length=T)
    assert net.barlow is not None
    window = net.window(rows)
    parts = (net.barlow.feature, net.barlow.embed, net.rssm.gru, net.encoder)
    assert touched(net.losses(rows, window)["barlow"].sum(), *parts) == [True] * 4
    cut = window._replace(feature=window.feature.detach())
    flow = touched(net.losses(rows, cut)["barlow"].sum(), *parts)
    assert flow == [True, True, False, False]


def test_a_constant_embedding_leaves_both_losses_high() -> None:
    """Collapse must not pay: identical pictures leave nothing to predict or to correlate."""
    net, rows = model(replace(BOTH, enc_norm="ln")), window_rows(batch=B, length=T)
    constant = rows | {"image": torch.full_like(rows["image"], 99)}
    window = net.window(constant, train=True)
    assert feature_std(window.embed) < 1e-3
    losses = net.losses(constant, window)
    assert losses["barlow"].mean() > 0.99
    live = losses["spr"][:, : T - STEPS]
    assert live.mean() > 0.9, "no direction is left that a constant could predict"


# copies, noise and state


def test_trap_18_the_target_of_spr_follows_its_rule_in_eval_mode() -> None:
    net = model(BOTH)
    assert net.spr is not None
    old = net.spr.target.linear.weight.clone()
    net.update_targets(0.25)
    online = net.rssm.post_hidden.linear.weight
    torch.testing.assert_close(net.spr.target.linear.weight, old + 0.25 * (online - old))
    net.train()
    assert not any(m.training for m in net.spr.target.modules())
    net.eval()


def test_the_agent_moves_the_target_once_per_update() -> None:
    player = small("spr")
    assert player.model.spr is not None
    target = player.model.spr.target.linear.weight
    old = target.clone()
    player.update(batch())
    online = player.model.rssm.post_hidden.linear.weight
    torch.testing.assert_close(target, old + 0.02 * (online - old))
    assert player.model.spr.norm.num_batches_tracked == 1


def test_a_bad_update_leaves_statistics_and_target_alone() -> None:
    player = small("spr", "barlow")
    player.update(batch())
    before = flat_state(player)
    broken = batch()
    broken["reward"][0, 0] = float("nan")
    assert player.update(broken)["nonfinite"] == 1
    assert "/model/spr.norm.running_mean" in before
    assert_equal_states(before, flat_state(player), spared="/generators")


def test_models_without_objectives_are_what_they_were() -> None:
    plain, more = small(), small("spr", "barlow")
    a, b = (dict(p.model.named_parameters()) for p in (plain, more))
    assert a.keys() < b.keys() and list(b)[: len(a)] == list(a), "further networks come last"
    assert all(torch.equal(a[name], b[name]) for name in a)
    first, second = plain.draw_noise(), more.draw_noise()
    assert torch.equal(first.posterior, second.posterior)
    assert torch.equal(first.behavior.action, second.behavior.action)
    assert first.rollout is None and second.rollout is not None
    assert not {k for k in plain.model.state_dict() if "spr" in k or "barlow" in k}


def test_an_update_is_a_function_of_batch_and_noise() -> None:
    rows, players = dict(batch().items()), [small("spr", "barlow") for _ in range(3)]
    noise = players[0].draw_noise()
    other = noise._replace(rollout=players[0].draw_noise().rollout)
    for player, drawn in zip(players, (noise, noise, other), strict=True):
        player.learn(rows, drawn)
    a, b, c = (flat_state(player) for player in players)
    assert_equal_states(a, b, spared="/generators")
    assert not torch.equal(a["/model/spr.predict.weight"], c["/model/spr.predict.weight"])


def test_a_checkpoint_continues_bit_by_bit() -> None:
    player, copy = small("spr", "barlow"), small("spr", "barlow", seed=7)
    player.update(batch())
    copy.load_state_dict(clone_tree(player.state_dict()))
    for run in (player, copy):
        run.update(batch(seed=2))
    assert_equal_states(flat_state(player), flat_state(copy))
    with pytest.raises(ValueError, match="another agent"):
        small().load_state_dict(player.state_dict())


class HostReads(TorchDispatchMode):
    """Collects operations whose result has to reach the host before the next can start."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found += [str(func) for name in self.names if name in str(func)]
        return func(*args, **(kwargs or {}))


def test_the_objectives_never_wait_for_the_device() -> None:
    net, rows = model(BOTH), window_rows(batch=B, length=T)
    noise, rollout = net.draw_noise(B, T), net.draw_rollout_noise(B, T)
    window = net.window(rows, noise, train=True, rollout_noise=rollout)
    assert net.spr is not None
    net.spr.norm.train()
    with HostReads() as reads:
        net.spr.targets(window.embed)
        loss = (spr_objective(net, window) + barlow_objective(net, window)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        net.update_targets(torch.full((), 0.02))
    assert not reads.found
    with HostReads() as reads:
        loss.item()
    assert reads.found, "the probe sees a host read"


# configuration


def test_objectives_are_a_flag() -> None:
    words = ["mudreamer", "--config", "debug", "--task", "toy/dot"]
    cfg = config_from_args([*words, "--mudreamer.model.objectives", "spr"])
    assert cfg.mudreamer.model.objectives == ("spr",)
    assert config_from_args(words).mudreamer.model.objectives == ()
    for value in (["spr", "barlow"], ["spr,barlow"]):
        both = config_from_args([*words, "--mudreamer.model.objectives", *value])
        assert both.mudreamer.model.objectives == ("spr", "barlow")
    none = config_from_args([*words, "--mudreamer.model.objectives", "none"])
    assert none == config_from_args(words)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"objectives": ["spr", "spr"]}, "each objective once, found spr, spr"),
        ({"objectives": ["spt"]}, "did you mean spr?"),
        ({"objectives": ["spr"], "spr_steps": 8}, "do not fit a window of train.batch_length 8"),
        ({"spr_steps": 0}, "spr_steps: expected more than 0"),
        ({"projector_width": 0}, "projector_width: expected more than 0"),
        ({"barlow_scale": -1.0}, "barlow_scale: expected at least 0"),
    ],
)
def test_fault_24_impossible_objectives_are_explained(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"task": "toy/dot", "mudreamer": {"model": bad}}, configs=["debug"])
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


def test_long_predictions_are_fine_where_nothing_is_predicted() -> None:
    tree = {"task": "toy/dot", "mudreamer": {"model": {"spr_steps": 9}}}
    assert resolve(tree, configs=["debug"]).mudreamer.model.spr_steps == 9


# learning


def real_updates(
    objective: str, directory: Path
) -> Iterator[tuple[MuDreamer, TensorDict, dict[str, Tensor]]]:
    """Updates of the debug preset with one more word, on real rows of a world that counts."""
    tree = {"task": "toy/counter", "mudreamer": {"model": {"objectives": objective}}}
    cfg = resolve(tree, configs=["debug"])
    size = cfg.env.image_size
    env = make_vec(cfg.task, cfg.env.num_envs, seed=0, purpose="train", image_size=size)
    player = build_agent(env.spec, cfg)
    assert isinstance(player, MuDreamer)
    cpu = torch.device("cpu")
    collector = Collector(env, player, seed=0, device=cpu)
    replay = build_replay(env.spec, cfg, directory=directory, device=cpu)
    while len(replay) < 400:
        replay.add(collector.advance(random=True))
    env.close()
    rng, shape = np.random.default_rng(0), (cfg.train.batch_size, cfg.train.batch_length)
    while True:
        yield player, *player.learn_from(replay, rng, shape)


@pytest.mark.learn
@pytest.mark.parametrize(("objective", "share"), [("spr", 0.9), ("barlow", 0.92)])
def test_one_word_of_configuration_trains(objective: str, share: float, tmp_path: Path) -> None:
    updates = list(islice(real_updates(objective, tmp_path / "replay"), 200))
    history = [{name: value.item() for name, value in row.items()} for _, _, row in updates]
    player, rows, _ = updates[-1]
    assert not any(row["nonfinite"] for row in history)
    assert all(np.isfinite(list(row.values())).all() for row in history)
    first, last = (
        {name: float(np.mean([row[name] for row in part])) for name in history[0]}
        for part in (history[:20], history[-20:])
    )
    assert last[f"loss/{objective}"] < share * first[f"loss/{objective}"]
    assert last["loss/model_total"] < first["loss/model_total"]
    assert last["health/feature_std"] > 0.15 and last["health/embed_std"] > 0.2
    feature = player.model.features(player.model.observe(rows)).detach().flatten(0, 1)
    assert effective_rank(feature) > 5, "of 16 rows"
