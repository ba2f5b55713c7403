"""The world model: exact parameter counts, leaks, scan, batch-norm rules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import DREAMER, TINY, S, model, window_rows
from torch import Tensor

from reverie.agents.actor_critic import ActorCritic
from reverie.agents.mudreamer_config import BehaviorConfig
from reverie.world_models.config import WorldModelConfig
from reverie.world_models.mudreamer import MuDreamerModel
from reverie.world_models.nets import count_parameters
from reverie.world_models.objectives import action_loss, value_target
from reverie.world_models.rssm import RSSM
from reverie.world_models.rssm_scan import forward_step

# parameter counts: the table of the paper's sizes

COUNTS = [
    (1, False, 5_776_384, 1_051_650, 3_148_802, 17_918_340, 15_262_914),
    (6, False, 5_778_944, 1_056_780, 3_153_932, 17_926_030, 15_275_734),
    (12, False, 5_782_016, 1_062_936, 3_160_088, 17_935_258, 15_291_118),
    (4, True, 5_777_920, 1_052_676, 3_149_828, 17_920_902, 15_266_502),
    (18, True, 5_785_088, 1_059_858, 3_157_010, 17_935_252, 15_288_034),
]


@pytest.mark.parametrize(("a", "discrete", "rssm", "actor", "action", "dreamer", "total"), COUNTS)
def test_parameter_counts_equal_the_published_table(
    a: int, discrete: bool, rssm: int, actor: int, action: int, dreamer: int, total: int
) -> None:
    def build(cfg: WorldModelConfig) -> tuple[MuDreamerModel, ActorCritic]:
        net = MuDreamerModel(cfg, action_size=a, discrete=discrete, image_shape=(64, 64, 3))
        size = net.rssm.feature_size
        return net, ActorCritic(
            BehaviorConfig(), cfg, feature_size=size, action_size=a, discrete=discrete
        )

    net, behavior = build(S)
    assert net.value is not None and net.action is not None
    parts = [net.encoder, net.rssm, net.reward, net.cont, net.value, net.action]
    assert [count_parameters(p) for p in parts] == [
        690_624, rssm, 1_181_439, 1_051_137, 1_181_439, action,
    ]  # fmt: skip
    assert count_parameters(behavior.actor) == actor
    assert count_parameters(behavior.critic) == 1_181_439
    assert count_parameters(net, behavior) == total
    net, behavior = build(DREAMER)
    assert net.decoder is not None and count_parameters(net.decoder) == 6_985_667
    assert count_parameters(net, behavior) == dreamer


# the scan


def reference_scan(
    rssm: RSSM, embed: Tensor, action: Tensor, reset: Tensor, noise: Tensor
) -> list[Tensor]:
    """The same recurrence under plain autograd, one step at a time."""
    keep = 1 - reset.float().unsqueeze(-1)
    h0, z0 = rssm.initial()
    projected, moved = rssm.project_embed(embed), rssm.project_action(action * keep)
    h, z = h0.expand(len(embed), -1), z0.expand(len(embed), -1)
    out = []
    for t in range(embed.shape[1]):
        h, sample, logits, _ = forward_step(
            rssm.scan_weights(), rssm.sizes, projected[:, t], moved[:, t], keep[:, t], h0, z0,
            noise[:, t], h, z,
        )  # fmt: skip
        soft = torch.softmax(logits.unflatten(-1, noise.shape[-2:]), -1)
        mixed = (0.99 * soft + 0.01 / noise.shape[-1]).flatten(-2)
        z = sample + mixed - mixed.detach()
        out.append((h, z, logits))
    return [torch.stack(column, 1) for column in zip(*out, strict=True)]


@pytest.mark.parametrize("first_reset", [True, False])
def test_scan_backward_equals_autograd(first_reset: bool) -> None:
    rssm = model().rssm
    g = torch.Generator().manual_seed(2)
    embed = torch.randn(3, 7, 2 * 16, generator=g)
    embed = embed[..., : rssm.post_hidden.linear.in_features - 12].requires_grad_()
    action = torch.randn(3, 7, 2, generator=g).requires_grad_()
    reset = torch.zeros(3, 7, dtype=torch.bool)
    reset[:, 0], reset[1, 4] = first_reset, True
    noise = torch.empty(3, 7, 3, 4).exponential_(generator=g)
    fast = list(rssm.observe(embed, action, reset, noise))
    fast[2] = fast[2].flatten(-2)
    slow = reference_scan(rssm, embed, action, reset, noise)
    inputs = [embed, action, *(p for n, p in rssm.named_parameters() if "prior" not in n)]
    weights = [torch.randn(t.shape, generator=g) for t in slow]
    grads = [
        torch.autograd.grad(sum((t * w).sum() for t, w in zip(out, weights, strict=True)), inputs)
        for out in (fast, slow)
    ]
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    for a, b in zip(*grads, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-4)


def test_scan_leaves_the_sample_exactly_one_hot() -> None:
    latents = model().observe(window_rows())
    z = latents.z.unflatten(-1, (3, 4))
    assert torch.equal(z.sum(-1), torch.ones_like(z[..., 0]))
    assert ((z == 0) | (z == 1)).all()


# resets


def test_trap_08_reset_forgets_state_and_action_and_leaves_the_batch_alone() -> None:
    net, rows = model(), window_rows()
    rows["is_first"][:, 3] = True
    copies = {k: v.clone() for k, v in rows.items()}
    noise = net.draw_noise(3, 6)
    first = net.window(rows, noise).latents
    changed = rows | {"action": rows["action"].clone()}
    changed["action"][:, 3] = 0.77
    again = net.window(changed, noise).latents
    assert torch.equal(first.h[:, 3:], again.h[:, 3:])
    rows["is_first"][:, 3] = False
    assert not torch.equal(net.window(rows, noise).latents.h[:, 3], first.h[:, 3])
    rows["is_first"][:, 3] = True
    assert all(torch.equal(rows[k], v) for k, v in copies.items())


def test_trap_09_nothing_before_a_boundary_reaches_beyond_it() -> None:
    net, rows = model(), window_rows()
    rows["is_first"][:, 3] = True
    noise = net.draw_noise(3, 6)
    other = {k: v.clone() for k, v in rows.items()}
    for key in ("image", "action"):
        other[key][:, :3] = other[key][:, :3].flip(0)
    a, b = net.window(rows, noise).latents, net.window(other, noise).latents
    assert torch.equal(a.h[:, 3:], b.h[:, 3:]) and torch.equal(a.logits[:, 3:], b.logits[:, 3:])
    assert not torch.equal(a.h[:, 1:3], b.h[:, 1:3])


def test_train_mode_batch_statistics_are_the_only_leak_across_a_boundary() -> None:
    rows = window_rows()
    rows["is_first"][:, 3] = True
    other = rows | {"image": rows["image"].clone()}
    other["image"][:, :3] = 0
    for norm, equal in (("bn", False), ("ln", True)):
        net = model(replace(TINY, enc_norm=norm))  # type: ignore[arg-type]
        noise = net.draw_noise(3, 6)
        a = net.window(rows, noise, train=True).latents.logits
        b = net.window(other, noise, train=True).latents.logits
        assert torch.allclose(a[:, 3:], b[:, 3:], atol=1e-5) is equal


def test_windows_start_from_the_initial_state_and_is_first_stays_as_stored() -> None:
    net, rows = model(), window_rows()
    window = net.window(rows)
    assert not rows["is_first"].any() and window.reset[:, 0].all() and not window.reset[:, 1:].any()


# value target


def test_value_target_weights_and_bootstraps() -> None:
    net, rows = model(), window_rows(batch=3, length=4)
    rows["is_last"][0, 1] = rows["is_terminal"][0, 1] = rows["is_first"][0, 2] = True
    rows["is_last"][1, 1] = rows["is_first"][1, 2] = True
    window = net.window(rows)
    target, weight = value_target(net, window)
    assert weight.tolist() == [[1, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0]]
    value = net.bootstrap_value(window.feature).detach()
    r, g, lam = rows["reward"], TINY.gamma, TINY.lambda_
    assert target[0, 0].item() == pytest.approx(r[0, 1].item(), abs=1e-5)
    assert target[1, 0].item() == pytest.approx((r[1, 1] + g * value[1, 1]).item(), abs=1e-5)
    second = r[2, 3] + g * value[2, 3]
    first = r[2, 2] + g * ((1 - lam) * value[2, 2] + lam * second)
    assert target[2, 1].item() == pytest.approx(first.item(), abs=1e-5)
    assert not target.requires_grad


def test_nothing_behind_a_terminal_matters_before_it() -> None:
    net, rows = model(), window_rows()
    rows["is_last"][:, 2] = rows["is_terminal"][:, 2] = rows["is_first"][:, 3] = True
    noise = net.draw_noise(3, 6)
    other = {k: v.clone() for k, v in rows.items()}
    for key in ("image", "action", "reward"):
        other[key][:, 3:] = other[key][:, 3:].flip(0)
    a, b = net.losses(rows, net.window(rows, noise)), net.losses(other, net.window(other, noise))
    for name in a:
        assert torch.equal(a[name][:, :3], b[name][:, :3]), name


# batch norm and EMA


def test_batch_norm_moves_in_the_update_alone() -> None:
    net, rows = model(), window_rows()
    buffers = [b.clone() for b in net.encoder.buffers()]
    with torch.no_grad():
        net.losses(rows)
        net.encode({"image": rows["image"][0, :1]})
    assert all(torch.equal(a, b) for a, b in zip(net.encoder.buffers(), buffers, strict=True))
    train = net.window(rows, train=True)
    assert not any(m.training for m in net.modules()), "eval mode is restored"
    assert not all(torch.equal(a, b) for a, b in zip(net.encoder.buffers(), buffers, strict=True))
    assert not torch.allclose(train.embed, net.encode(rows)), "eval reads running statistics"


def test_trap_18_ema_follows_its_rule_on_parameters() -> None:
    net = model()
    assert net.value is not None and net.slow_value is not None
    old = [p.clone() for p in net.slow_value.parameters()]
    net.update_targets(0.02)
    for before, now, online in zip(
        old, net.slow_value.parameters(), net.value.parameters(), strict=True
    ):
        torch.testing.assert_close(now, before + 0.02 * (online - before))
    net.train()
    assert not any(m.training for m in net.slow_value.modules()), "slow nets stay in eval mode"


def test_trap_19_targets_carry_no_gradient() -> None:
    net = model()
    assert not any(t.requires_grad for t in net.targets(window_rows()))


# the contract


def test_rollout_continues_open_loop() -> None:
    net, rows = model(), window_rows()
    start = net.observe(rows)
    start = type(start)(*(t[:, 2].detach() for t in start))
    actions = rows["action"][:, 3:].clone().requires_grad_()
    noise = net.draw_noise(3, 3)
    out = net.rollout(start, actions, noise)
    assert out.h.shape == (3, 3, 12) and out.logits.shape == (3, 3, 3, 4)
    (grad,) = torch.autograd.grad(net.features(out).sum() + out.logits.square().sum(), actions)
    assert grad.abs().sum() > 0, "continuous gradients flow through the dynamics"


def test_losses_have_the_keys_of_the_weights_and_the_shape_of_the_window() -> None:
    for cfg in (TINY, replace(DREAMER, **{f: getattr(TINY, f) for f in (
        "deter", "stoch", "classes", "units", "layers", "cnn_depth", "bins")})):  # fmt: skip
        net = model(cfg)
        losses = net.losses(window_rows())
        assert losses.keys() == net.loss_scales.keys()
        assert all(v.shape == (3, 6) for v in losses.values())


def test_prior_action_state_and_slow_critic_are_switches() -> None:
    net = model(replace(TINY, action_state="prior"))
    assert action_loss(net, net.window(window_rows())).abs().sum() > 0
    other = model(replace(TINY, value_target="slow_critic"))
    with pytest.raises(ValueError, match="actor-critic"):
        other.losses(window_rows())


def test_trap_20_losses_are_float32_under_autocast() -> None:
    net, rows = model(), window_rows()
    copies = {k: v.clone() for k, v in rows.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = net.losses(rows)
    assert all(v.dtype == torch.float32 for v in losses.values())
    assert all(torch.isfinite(v).all() for v in losses.values())
    assert all(torch.equal(rows[k], v) for k, v in copies.items())


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_image_sizes_reduce_to_four_pixels(size: int) -> None:
    net = MuDreamerModel(TINY, action_size=1, discrete=False, image_shape=(size, size, 3))
    out = net.encode({"image": torch.zeros(2, size, size, 3, dtype=torch.uint8)})
    assert out.shape == (2, net.encoder.size)


def test_unusable_image_size_names_the_fix() -> None:
    with pytest.raises(ValueError, match=r"env\.image_size"):
        MuDreamerModel(TINY, action_size=1, discrete=False, image_shape=(84, 84, 3))


def test_vector_observations_need_no_image() -> None:
    net = MuDreamerModel(TINY, action_size=2, discrete=True, image_shape=None, vector_size=5)
    rows = window_rows(discrete=True)
    del rows["image"]
    rows["vector"] = torch.randn(3, 6, 5)
    assert net.losses(rows)["reward"].shape == (3, 6)
