"""The imitation agent: its update, schedules, units, faults, state, compiled forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from runs import assert_same, clone_tree
from small_imitator import (
    CFG,
    SEEING,
    TASKS,
    B,
    agent,
    batch_for,
    observed,
    statistics,
    with_model,
)
from torch import Tensor, nn

from reverie.agents.act_jepa import ACTJEPA, MIN_SCALE, warmup_cosine
from reverie.agents.act_jepa_config import ACTJEPAConfig, ImitationOptimConfig
from reverie.agents.resolve import resolve
from reverie.world_models.chunk_heads import ActionDecoder

EVEN = replace(CFG, optim=ImitationOptimConfig(warmup=0.0))
"""Learns from the first update on."""

KINDS: dict[str, ACTJEPAConfig] = {
    "ema": CFG,
    "images": with_model(**SEEING),
    "images, sigreg": with_model(**SEEING, guard="sigreg"),
    "barlow": with_model(guard="barlow"),
    "none, on actions": with_model(guard="none", action_conditioned=True),
    "act": with_model(w_jepa=0.0),
    "act with style": with_model(w_jepa=0.0, vae=True),
    "bc": with_model(w_jepa=0.0, policy="mlp"),
}

kinds = pytest.mark.parametrize("cfg", KINDS.values(), ids=KINDS)


def weights(player: ACTJEPA) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in player.model.state_dict().items()}


# one update


@kinds
def test_an_update_moves_everything_that_learns_and_nothing_else(cfg: ACTJEPAConfig) -> None:
    player = agent(replace(cfg, optim=EVEN.optim), statistics=statistics())
    before, scales = weights(player), clone_tree(player.state_dict()["statistics"])
    batch = batch_for(cfg)
    given = batch.clone()
    metrics = player.update(batch)
    assert metrics["nonfinite"] == 0 and all(v.ndim == 0 for v in metrics.values())
    names = {f"loss/{name}" for name in player.model.loss_scales}
    assert metrics.keys() == names | {"loss/total", "norm/model", "nonfinite"}
    parts = [player.model.loss_scales[n.removeprefix("loss/")] * metrics[n] for n in names]
    torch.testing.assert_close(metrics["loss/total"], sum(parts))
    for name, value in player.model.state_dict().items():
        assert not torch.equal(value, before[name]), name
    assert_same(scales, player.state_dict()["statistics"])
    assert player.updates == 1 and all(torch.equal(batch[key], given[key]) for key in given.keys())
    assert not any(module.training for module in player.model.modules())


def reference_run(player: ACTJEPA, cfg: ACTJEPAConfig, total: int) -> None:
    """`total` updates of the agent's model with torch's own optimiser, clip and schedule."""
    model, optim = player.model, cfg.optim
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=optim.lr, betas=(0.9, 0.999), eps=optim.eps)
    for step in range(total):
        rise = round(optim.warmup * total)
        part = step / rise if step < rise else (step - rise) / (total - rise)
        share = part if step < rise else (1 + math.cos(math.pi * part)) / 2
        for group in adam.param_groups:
            group["lr"] = optim.lr * share
        rows = batch_for(cfg, seed=step)
        rows["vector"] = (rows["vector"] - statistics()["vector_mean"]) / statistics()["vector_std"]
        rows["action"] = (rows["action"] - statistics()["action_mean"]) / statistics()["action_std"]
        found = model.losses(dict(rows.items()), train=True)
        adam.zero_grad()
        (found["action"].mean() + cfg.model.w_jepa * found["latent"].mean()).backward()
        nn.utils.clip_grad_norm_(learning, optim.clip)
        adam.step()
        momentum = 0.9 + 0.1 * step / total
        assert model.target is not None
        sources = dict(model.encoder.named_parameters())
        with torch.no_grad():
            for name, value in model.target.named_parameters():
                value.copy_(momentum * value + (1 - momentum) * sources[name])


def test_updates_equal_torchs_adamw_clip_cosine_and_the_ema_formula() -> None:
    cfg = with_model(dropout=0.0, ema_start=0.9, w_jepa=3.0)
    cfg = replace(cfg, optim=ImitationOptimConfig(lr=1e-2, warmup=0.25, clip=0.5))
    player, other = (agent(cfg, updates=8, statistics=statistics()) for _ in range(2))
    norms = [float(player.update(batch_for(cfg, seed=k))["norm/model"]) for k in range(8)]
    assert min(norms) > 0.5, "every gradient was clipped"
    reference_run(other, cfg, 8)
    fresh = weights(agent(cfg))
    for name, value in player.model.state_dict().items():
        if name.endswith(("project.bias", "memory.bias")):
            continue  # a bias of keys has no gradient but rounding noise, which Adam makes large
        torch.testing.assert_close(value, other.model.state_dict()[name], rtol=1e-3, atol=1e-4)
        assert (value - fresh[name]).abs().max() > 3e-3, "far beyond the tolerance"


def test_target_follows_its_schedule_over_a_run() -> None:
    cfg = replace(with_model(**SEEING, ema_start=0.9), optim=EVEN.optim)
    player = agent(cfg, updates=5)
    assert player.model.target is not None
    expected = {k: v.clone() for k, v in player.model.target.state_dict().items()}
    for step in range(5):
        momentum = 0.9 + 0.1 * step / 5
        player.update(batch_for(cfg, seed=step))
        new = weights(player)
        for name, value in player.model.target.state_dict().items():
            if value.is_floating_point():
                own = new[f"encoder.{name}"]
                expected[name] = momentum * expected[name] + (1 - momentum) * own
                torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
            else:
                assert torch.equal(value, new[f"encoder.{name}"]) and int(value) == step + 1
    player.update(batch_for(cfg, seed=5))  # beyond the end: momentum 1
    for name, value in player.model.target.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_learning_rate_rises_for_four_percent_and_falls_to_zero() -> None:
    found = [warmup_cosine(step, 4000, 0.04) for step in range(4001)]
    anchors = {0: 0.0, 80: 0.5, 160: 1.0, 2080: 0.5, 4000: 0.0}
    assert {step: round(found[step], 12) for step in anchors} == anchors
    rise, fall = found[:161], found[160:]
    assert rise == sorted(rise) and fall == sorted(fall, reverse=True)
    assert warmup_cosine(5000, 4000, 0.04) == 0.0 and warmup_cosine(0, 10, 0.04) == 1.0


def test_the_rate_of_the_update_is_that_of_the_schedule() -> None:
    player, rates = agent(updates=50), []
    start = weights(player)
    for step in range(4):
        player.update(batch_for(seed=step))
        rates.append(player._optimiser.adam.param_groups[1]["lr"] / CFG.optim.lr)
        if step == 0:
            assert_same(start, weights(player))
    torch.testing.assert_close(rates, [0.0, 0.5, 1.0, (1 + math.cos(math.pi / 48)) / 2])
    decays = [group["weight_decay"] for group in player._optimiser.adam.param_groups]
    dims = [{p.ndim > 1 for p in g["params"]} for g in player._optimiser.adam.param_groups]
    assert decays == [0.1, 0.0] and dims == [{True}, {False}]


# units


@torch.no_grad()
def test_actions_come_back_in_the_units_of_the_environment() -> None:
    scales = statistics()
    scales["action_std"][1] = 1e-6
    player, batch = agent(statistics=scales), batch_for()
    rows = player.normalised(batch)
    floor = scales["action_std"].clamp_min(0.01)
    assert floor[1] == MIN_SCALE == 0.01
    torch.testing.assert_close(rows["action"] * floor + scales["action_mean"], batch["action"])
    torch.testing.assert_close(
        rows["vector"] * scales["vector_std"] + scales["vector_mean"], batch["vector"]
    )
    first = {"vector": rows["vector"][:, 0]}
    own = player.model.chunk(player.model.context(first, batch["task"]))
    found = player.predict_chunk(observed(batch), batch["task"])
    torch.testing.assert_close(found, own * floor + scales["action_mean"])
    plain = agent(replace(CFG, normalise=False), statistics=scales)
    assert torch.equal(plain.normalised(batch)["vector"], batch["vector"])
    with pytest.raises(ValueError, match=r"statistics: missing \['action_std'\]"):
        agent(statistics={k: v for k, v in scales.items() if k != "action_std"})


@torch.no_grad()
def test_played_actions_are_clipped_or_one_hot() -> None:
    scales = statistics()
    scales["action_std"].fill_(30.0)
    batch, first = batch_for(), torch.ones(B, dtype=torch.bool)
    player = agent(statistics=scales)
    raw = player.predict_chunk(observed(batch), batch["task"])[:, 0]
    carry = player.initial_carry(B) | {"task": batch["task"]}
    for mode in ("train", "eval"):
        action = player.act(carry, observed(batch), first, mode=mode)[1]  # type: ignore[arg-type]
        assert torch.equal(action, raw.clamp(-1, 1)) and (raw.abs() > 1).any()
    choosing = agent(discrete=True, statistics=scales)
    assert torch.equal(choosing.normalised(batch)["action"], batch["action"]), "one-hot rows stay"
    assert isinstance(choosing.model.policy, ActionDecoder)
    mean = choosing.predict_chunk(observed(batch), batch["task"])[:, 0].mean(0)
    choosing.model.policy.action.bias.sub_(mean)
    raw = choosing.predict_chunk(observed(batch), batch["task"])[:, 0]
    action = choosing.act(carry, observed(batch), first)[1]
    assert torch.equal(action, torch.eye(3)[raw.argmax(-1)]) and len(action.unique(dim=0)) > 1


@torch.no_grad()
def test_playing_a_task_is_acting_with_its_number() -> None:
    player, batch = agent(), batch_for()
    first = torch.ones(B, dtype=torch.bool)
    actions = []
    for number, task in enumerate(TASKS):
        one = player.playing(task)
        carry = one.initial_carry(B)
        assert carry["task"].tolist() == [number] * B
        carry, action = one.act(carry, observed(batch), first)
        want = player.predict_chunk(observed(batch), torch.full((B,), number))[:, 0]
        assert torch.equal(action, want.clamp(-1, 1)) and carry["task"].tolist() == [number] * B
        actions.append(action)
    assert not torch.equal(actions[0], actions[1])
    with pytest.raises(ValueError, match=r"expected one of test/a, .*, found 'test/z'"):
        player.playing("test/z")


@torch.no_grad()
def test_features_are_those_of_the_first_rows_and_nothing_moves() -> None:
    cfg = with_model(**SEEING)
    player, batch = agent(cfg, statistics=statistics()), batch_for(cfg)
    before = weights(player)
    found = player.features(batch)
    rows = player.normalised(observed(batch))
    want = player.model.features(player.model.context(rows, batch["task"]))
    assert torch.equal(found, want) and found.shape == (B, player.model.feature_size)
    changed = batch.clone()
    changed["vector"][:, 1:] += 1.0
    changed["image"][:, 1:] = 0
    assert torch.equal(player.features(changed), found)
    assert_same(before, weights(player))


# faults


def poisoned(part: str, value: float) -> Callable[[Any], Any]:
    def poison(batch: Any) -> Any:
        batch[part][1, 0, 0] = value
        return batch

    return poison


@pytest.mark.parametrize(("part", "value"), [("vector", math.nan), ("action", math.inf)])
@kinds
def test_a_poisoned_batch_changes_nothing_and_the_next_is_learned(
    cfg: ACTJEPAConfig, part: str, value: float
) -> None:
    cfg = replace(cfg, optim=EVEN.optim)
    player, twin = agent(cfg), agent(cfg)
    for one in (player, twin):
        one.update(batch_for(cfg))
    before = clone_tree(player.state_dict())
    metrics = player.update(poisoned(part, value)(batch_for(cfg, seed=1)))
    assert metrics["nonfinite"] == 1.0
    after = player.state_dict()
    assert after.pop("updates") == before.pop("updates") + 1
    assert_same(before, after)
    # as if the bad batch had never been
    twin.updates += 1
    for one in (player, twin):
        assert one.update(batch_for(cfg, seed=2))["nonfinite"] == 0.0
    assert_same(twin.state_dict(), player.state_dict())


# ACT and behaviour cloning


def preset(name: str, **changes: Any) -> ACTJEPAConfig:
    return resolve({"agent": name, "task": "metaworld/six", **changes}).act_jepa


def test_presets_are_one_agent_with_switches() -> None:
    jepa, act, bc = preset("act-jepa"), preset("act"), preset("bc")
    assert jepa.model.w_jepa == 1.0 and jepa.model.guard == "ema"
    assert act == with_model(jepa, w_jepa=0.0)
    assert bc == with_model(act, policy="mlp")
    off = preset("act-jepa", act_jepa={"model": {"w_jepa": 0.0}})
    assert off == act


def test_act_is_act_jepa_without_its_loss_bit_for_bit() -> None:
    sizes = {"chunk": 6, "width": 16, "ffn": 32, "heads": 2, "encoder_layers": 2}
    small = {"act_jepa": {"model": sizes}}
    act = agent(preset("act", **small), updates=5)
    off = agent(preset("act-jepa", act_jepa={"model": {**sizes, "w_jepa": 0.0}}), updates=5)
    jepa = agent(preset("act-jepa", **small), updates=5)
    for step in range(5):
        rows = batch_for(act.cfg, seed=step)
        found, same, both = (player.update(rows) for player in (act, off, jepa))
        assert_same(found, same)
        if step == 0:  # before the latent loss has moved anything, dropout included
            assert torch.equal(found["loss/action"], both["loss/action"])
            assert found["loss/total"] < both["loss/total"]
    assert_same(act.state_dict(), off.state_dict())
    assert not torch.equal(found["loss/action"], both["loss/action"])


# state


@kinds
def test_state_round_trip_continues_bit_by_bit(cfg: ACTJEPAConfig) -> None:
    one, other = agent(cfg, statistics=statistics()), agent(cfg, seed=5)
    for seed in range(3):
        one.update(batch_for(cfg, seed=seed))
    other.seed = 0
    other.load_state_dict(clone_tree(one.state_dict()))
    torch.manual_seed(11)  # draws of others do not matter
    torch.rand(7)
    for seed in range(3, 6):
        found, same = (player.update(batch_for(cfg, seed=seed)) for player in (one, other))
        assert_same(found, same)
    assert_same(one.state_dict(), other.state_dict())
    rows = batch_for(cfg)
    chunks = [p.predict_chunk(observed(rows), rows["task"]) for p in (one, other)]
    assert torch.equal(*chunks)


def test_draws_are_functions_of_seed_and_update_and_leave_torchs_own_alone() -> None:
    cfg = replace(CFG, optim=ImitationOptimConfig(lr=0.0))
    rows = batch_for(cfg)
    one, again, other = agent(cfg), agent(cfg), agent(cfg)
    other.seed = 1  # equal weights, other draws
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    losses = [float(one.update(rows)["loss/action"]) for _ in range(3)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    assert losses == [float(again.update(rows)["loss/action"]) for _ in range(3)]
    assert len({*losses, float(other.update(rows)["loss/action"])}) == 4


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("model", "target.trunk.norm.weight"),
        ("model", "encoder.embed.image.stem.1.running_var"),
        ("statistics", "action_std"),
        (None, "tasks"),
        (None, "optimiser"),
    ],
)
def test_every_missing_entry_is_refused(part: str | None, key: str) -> None:
    player = agent(with_model(**SEEING))
    state = clone_tree(player.state_dict())
    del (state if part is None else state[part])[key]
    with pytest.raises(ValueError, match="missing"):
        player.load_state_dict(state)


@pytest.mark.parametrize("changes", [{"width": 32}, {"chunk": 7}, {"task_slots": 5}])
def test_states_of_another_size_are_refused(changes: dict[str, Any]) -> None:
    other = agent(with_model(**changes))
    with pytest.raises((RuntimeError, ValueError), match="size mismatch"):
        agent().load_state_dict(clone_tree(other.state_dict()))


def test_states_of_other_models_tasks_or_units_are_refused() -> None:
    player, state = agent(), clone_tree(agent().state_dict())
    with pytest.raises(ValueError, match=r"tasks: expected \['test/a'\], found \['test/a', "):
        agent(tasks=TASKS[:1]).load_state_dict(state)
    with pytest.raises(ValueError, match=r"tasks: .*their numbers are part of what was learned"):
        agent(tasks=TASKS[::-1]).load_state_dict(state)
    with pytest.raises(ValueError, match=r"model: missing .*predictor.*of another agent"):
        player.load_state_dict(clone_tree(agent(with_model(w_jepa=0.0)).state_dict()))
    state["statistics"]["action_std"] = torch.ones(4)
    with pytest.raises(ValueError, match=r"statistics.action_std: expected \(3,\), found \(4,\)"):
        player.load_state_dict(state)


def test_policies_that_replan_early_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for cfg in (CFG, replace(CFG, execute=6), replace(CFG, execute=1, ensemble=0.01)):
        agent(cfg)
    assert not caplog.records
    agent(replace(CFG, execute=2))
    assert "2 of 6 actions of a chunk are played" in caplog.text
