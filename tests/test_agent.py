"""MuDreamer as an agent: acting, one update, what must stay untouched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from runs import clone_tree
from small_agent import CFG, MODEL, B, T, agent, assert_equal_states, batch, flat_state
from torch import Tensor

from reverie.agents.actor_critic import BehaviorNoise
from reverie.world_models.rssm import Latents

# acting


@pytest.mark.parametrize("discrete", [False, True])
def test_acting_is_explicit_and_leaves_running_statistics_alone(discrete: bool) -> None:
    player = agent(discrete=discrete)
    before = [b.clone() for b in player.model.encoder.buffers()]
    carry = player.initial_carry(2)
    obs = {"image": batch()["image"][:2, 0]}
    first = torch.ones(2, dtype=torch.bool)
    carry, action = player.act(carry, obs, first)
    assert action.shape == (2, 3) and action.dtype == torch.float32
    if discrete:
        assert torch.equal(action.sum(-1), torch.ones(2))
    else:
        assert action.abs().max() <= 1.0
    carry, _ = player.act(carry, obs, ~first)
    assert set(carry) == {"h", "z", "action"} and all(len(v) == 2 for v in carry.values())
    for old, new in zip(before, player.model.encoder.buffers(), strict=True):
        assert torch.equal(old, new)
    player.act(player.initial_carry(1), {"image": obs["image"][:1]}, first[:1])  # batch of one


def test_trap_08_acting_forgets_everything_at_is_first() -> None:
    player = agent()
    carry = {k: torch.randn_like(v) for k, v in player.initial_carry(1).items()}
    obs, first = {"image": batch()["image"][:1, 0]}, torch.ones(1, dtype=torch.bool)
    a, _ = player.act(player.initial_carry(1), obs, first, mode="eval")
    player.initial_carry(1)
    b, _ = player.act(carry, obs, first, mode="eval")
    assert all(torch.equal(a[k], b[k]) for k in a)
    player.initial_carry(1)
    c, _ = player.act(carry, obs, ~first, mode="eval")
    assert not torch.equal(a["h"], c["h"])


def test_acting_equals_the_filter_of_the_update() -> None:
    player, rows = agent(), batch()
    carry = player.initial_carry(B)
    embed = player.model.encode(rows)
    noise = player.model.draw_noise(B, T)
    reset = rows["is_first"].clone()
    reset[:, 0] = True
    whole = player.model.rssm.observe(embed, rows["action"], reset, noise)
    state = (carry["h"], carry["z"])
    for t in range(T):
        step = player.model.rssm.filter(
            state, embed[:, t], rows["action"][:, t], reset[:, t], noise[:, t]
        )
        torch.testing.assert_close(step.h, whole.h[:, t], atol=1e-5, rtol=1e-4)
        state = (step.h, step.z)


# the update


@pytest.mark.parametrize("discrete", [False, True])
def test_same_seed_same_bits_other_seed_other_weights(discrete: bool) -> None:
    runs = [agent(discrete=discrete, seed=s) for s in (0, 0, 1)]
    for _ in range(2):
        for run in runs:
            run.update(batch(discrete=discrete))
    a, b, c = (flat_state(r) for r in runs)
    assert_equal_states(a, b)
    assert not torch.equal(a["/model/rssm.gru.weight"], c["/model/rssm.gru.weight"])


@pytest.mark.parametrize("discrete", [False, True])
def test_behaviour_losses_touch_no_weight_of_the_world_model(discrete: bool) -> None:
    player, rows = agent(discrete=discrete), batch(discrete=discrete)
    window = player.model.window(rows)
    start = Latents(*(t.flatten(0, 1) for t in window.latents))
    noise = player.draw_noise().behavior
    losses = player.behavior.losses(player.frozen, start, torch.ones(B * T), noise)
    (losses.actor.sum() + losses.critic.sum()).backward()
    assert all(p.grad is None for p in player.model.parameters())
    assert all(p.grad is None for p in player.behavior.slow_critic.parameters())
    assert any(
        p.grad.abs().sum() > 0 for p in player.behavior.actor.parameters() if p.grad is not None
    )


def test_actor_and_critic_losses_meet_in_no_weight() -> None:
    player, rows = agent(), batch()
    start = Latents(*(t.flatten(0, 1).detach() for t in player.model.window(rows).latents))
    losses = player.behavior.losses(
        player.frozen, start, torch.ones(B * T), player.draw_noise().behavior
    )
    parts = {"actor": player.behavior.actor, "critic": player.behavior.critic}
    for name, loss, other in (
        ("actor", losses.actor, "critic"),
        ("critic", losses.critic, "actor"),
    ):
        own = torch.autograd.grad(
            loss.sum(), list(parts[name].parameters()), allow_unused=True, retain_graph=True
        )
        foreign = torch.autograd.grad(
            loss.sum(), list(parts[other].parameters()), allow_unused=True, retain_graph=True
        )
        assert any(g is not None and g.abs().sum() > 0 for g in own)
        assert all(g is None or g.abs().sum() == 0 for g in foreign)


def test_continuous_gradients_flow_through_the_frozen_dynamics() -> None:
    """With the entropy bonus off, only reward and value of later states can move the actor."""
    cfg = replace(CFG, behavior=replace(CFG.behavior, entropy=0.0))
    grads = {}
    for mode in ("dynamics", "reinforce"):
        player = agent(replace(cfg, behavior=replace(cfg.behavior, actor_grad=mode)))  # type: ignore[arg-type]
        with torch.no_grad():
            for head in (player.model.reward.output.weight, player.behavior.critic.output.weight):
                head.normal_(generator=torch.Generator().manual_seed(0))
        start = Latents(*(t.flatten(0, 1).detach() for t in player.model.window(batch()).latents))
        noise = player.draw_noise().behavior
        losses = player.behavior.losses(player.frozen, start, torch.ones(B * T), noise)
        grads[mode] = torch.autograd.grad(
            losses.actor.mean(), list(player.behavior.actor.parameters())
        )
    for found in grads.values():
        assert sum(g.abs().sum() for g in found) > 0
    pairs = zip(grads["dynamics"], grads["reinforce"], strict=True)
    assert any(not torch.allclose(a, b) for a, b in pairs)


def raw_rewards(x: Tensor, bins: Tensor) -> Tensor:
    """Stands for the two-hot read-out: rewards [H, M] as they are, values 0."""
    return x if x.ndim == 2 else 0.0 * x.sum(-1) * bins.sum()


@pytest.mark.parametrize("discrete", [False, True])
def test_trap_04_tenfold_rewards_leave_the_policy_gradient_unchanged(discrete: bool) -> None:
    cfg = replace(CFG, behavior=replace(CFG.behavior, entropy=0.0, return_decay=0.0))
    player = agent(cfg, discrete=discrete)
    start = Latents(
        *(t.flatten(0, 1).detach() for t in player.model.window(batch(discrete=discrete)).latents)
    )
    noise = player.draw_noise().behavior
    grads = []
    for factor in (1000.0, 10_000.0):
        player.frozen.reward = lambda f, k=factor: f.sum(-1) * k  # type: ignore[assignment,misc]
        with pytest.MonkeyPatch.context() as patch:
            import reverie.agents.actor_critic as module

            patch.setattr(module, "two_hot_mean", raw_rewards)
            losses = player.behavior.losses(player.frozen, start, torch.ones(B * T), noise)
        grads.append(
            torch.autograd.grad(losses.actor.mean(), list(player.behavior.actor.parameters()))
        )
    assert sum(g.abs().sum() for g in grads[0]) > 0
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-7)


def test_fault_16_poisoned_batch_changes_nothing_and_the_next_one_does() -> None:
    player = agent()
    player.update(batch())
    before = flat_state(player)
    poisoned = batch()
    poisoned["reward"][1, 2] = float("nan")
    metrics = player.update(poisoned)
    assert metrics["nonfinite"].item() == 1.0
    assert_equal_states(before, flat_state(player), spared="/generators")
    assert player.update(batch())["nonfinite"].item() == 0.0
    assert not torch.equal(
        before["/model/rssm.gru.weight"], flat_state(player)["/model/rssm.gru.weight"]
    )


def test_fault_16_poisoned_weight_changes_nothing_else() -> None:
    player = agent()
    player.update(batch())
    with torch.no_grad():
        player.model.rssm.gru.weight[0, 0] = float("inf")
    before = flat_state(player)
    assert player.update(batch())["nonfinite"].item() == 1.0
    assert_equal_states(before, flat_state(player), spared="/generators")


def test_trap_18_update_moves_copies_by_their_rule() -> None:
    player = agent()
    player.update(batch())
    slow = [p.clone() for p in player.behavior.slow_critic.parameters()]
    player.update(batch())
    for old, now, online in zip(
        slow,
        player.behavior.slow_critic.parameters(),
        player.behavior.critic.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(now, old + 0.02 * (online - old), atol=1e-6, rtol=1e-5)
    assert not player.behavior.slow_critic.training
    assert player.model.encoder.image.layers[1].num_batches_tracked == 2  # type: ignore[union-attr]


def test_frozen_aliases_follow_the_update() -> None:
    player = agent()
    player.update(batch())
    assert torch.equal(player.frozen.rssm.gru.weight, player.model.rssm.gru.weight)
    state = clone_tree(agent(seed=5).state_dict())
    state["optimisers"] = player.state_dict()["optimisers"]
    player.load_state_dict(state)
    assert torch.equal(player.frozen.rssm.gru.weight, state["model"]["rssm.gru.weight"])


def test_the_callers_batch_is_left_alone() -> None:
    rows = batch()
    copy = rows.clone()
    agent().update(rows)
    assert (rows == copy).all()


def test_a_batch_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="one fixed shape"):
        agent().update(batch()[:, :4])


# state


def test_state_round_trip_continues_bit_for_bit() -> None:
    player, other = agent(), agent()
    player.update(batch())
    other.update(batch(seed=7))
    other.load_state_dict(clone_tree(player.state_dict()))
    for run in (player, other):
        run.update(batch(seed=2))
        run.act(run.initial_carry(1), {"image": batch()["image"][:1, 0]}, torch.ones(1).bool())
    assert_equal_states(flat_state(player), flat_state(other))


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("model", "encoder.image.layers.1.running_mean"),
        ("model", "encoder.image.layers.1.num_batches_tracked"),
        ("model", "slow_value.output.bias"),
        ("behavior", "slow_critic.output.bias"),
        ("behavior", "return_low"),
        ("optimisers", "actor"),
        ("generators", "update"),
    ],
)
def test_every_missing_entry_is_refused(part: str, key: str) -> None:
    player = agent()
    state = clone_tree(player.state_dict())
    del state[part][key]
    with pytest.raises(ValueError, match="missing"):
        player.load_state_dict(state)


def test_report_disturbs_nothing() -> None:
    player = agent()
    player.update(batch())
    before = flat_state(player)
    player.report(batch())
    assert_equal_states(before, flat_state(player))


# returns of the behaviour


def test_imagined_weights_include_the_root_continuation() -> None:
    player = agent()
    start = Latents(*(t.flatten(0, 1).detach() for t in player.model.window(batch()).latents))
    first = torch.ones(B * T)
    first[5] = 0.0
    noise = player.draw_noise().behavior
    losses = player.behavior.losses(player.frozen, start, first, noise)
    assert (losses.actor[5] == 0).all() and (losses.critic[5] == 0).all()
    assert (losses.critic[4] != 0).any()


def test_behaviour_noise_shapes_are_time_first() -> None:
    noise = agent().draw_noise()
    assert isinstance(noise.behavior, BehaviorNoise)
    assert noise.posterior.shape == (B, T, 4, 4)
    assert noise.behavior.latent.shape == (4, B * T, 4, 4)
    assert noise.behavior.action.shape == (4, B * T, 3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_update_is_finite_in_every_precision(precision: str) -> None:
    player = agent(precision=precision)
    for _ in range(3):
        metrics = player.update(batch())
    assert metrics["nonfinite"] == 0
    assert all(p.dtype == torch.float32 for p in player.model.parameters())


def test_every_ablation_row_is_a_switch() -> None:
    rows = [
        {"enc_norm": "ln"},
        {"heads": ("value",)},
        {"heads": ("action",)},
        {"heads": ()},
        {"decoder": "grad", "enc_norm": "ln", "heads": (), "kl_dyn": 0.5, "kl_rep": 0.1},
        {"decoder": "detached"},
        {"value_target": "slow_critic"},
        {"action_state": "prior"},
        {"value_slow_reg": 1.0},
        {"decoder": "grad"},
    ]
    for row in rows:
        metrics = agent(replace(CFG, model=replace(MODEL, **row))).update(batch())  # type: ignore[arg-type]
        assert metrics["nonfinite"] == 0, row


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["inductor", "graph"])
def test_trap_18_capture_equals_eager_and_its_warm_up_leaves_no_trace(mode: str) -> None:
    eager = agent(device="cuda")
    other = agent(device="cuda", compile=mode)
    for seed in range(3):
        rows = batch(seed=seed).to("cuda")
        eager.update(rows)
        other.update(rows)
        a, b = flat_state(eager), flat_state(other)
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-4, msg=key)
