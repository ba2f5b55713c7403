"""Networks of the SPR family: sizes, routes of the gradient, modes, stacks of frames."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_spr import MODEL
from torch import Tensor

from reverie.world_models.conv_encoders import ImpalaEncoder, build_encoder, same_pad
from reverie.world_models.losses import spr_loss
from reverie.world_models.nets import count_parameters
from reverie.world_models.q_network import DuelingC51, LayerNoise, NoisyLinear
from reverie.world_models.spr import SPRModel, stack_frames, to_planes
from reverie.world_models.spr_config import SPRModelConfig

PAPER = SPRModelConfig()
BBF = SPRModelConfig(
    encoder="impala",
    channels=(64, 128, 128),
    hidden=2048,
    head="shared",
    noisy=False,
    transition_norm="none",
    target="shared",
    q_target_rate=0.005,
)
TOTALS = {
    3: (3_748_067, 3_317_195, 90_232, 14_520),
    4: (3_775_151, 3_343_409, 91_102, 14_814),
    6: (3_829_319, 3_395_837, 92_842, 15_402),
    9: (3_910_571, 3_474_479, 95_452, 16_284),
    18: (4_154_327, 3_710_405, 103_282, 18_930),
}
"""Actions -> total, head, transition and dead part of the released code."""


def tiny(**changes: object) -> SPRModel:
    torch.manual_seed(0)
    cfg = replace(MODEL, **changes)  # type: ignore[arg-type]
    return SPRModel(cfg, action_size=3, image_shape=(36, 36, 1))


def window(length: int = 8, *, batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shape = (batch, length, 36, 36, 1)
    action = torch.randint(0, 3, (batch, length), generator=g)
    flags = torch.zeros(batch, length, dtype=torch.bool)
    return {
        "image": torch.randint(0, 256, shape, generator=g, dtype=torch.uint8),
        "action": torch.nn.functional.one_hot(action, 3).float(),
        "is_first": flags.clone(),
        "is_last": flags.clone(),
    }


# sizes


@pytest.mark.parametrize("actions", sorted(TOTALS))
def test_parameter_counts_are_those_of_the_released_code(actions: int) -> None:
    model = SPRModel(PAPER, action_size=actions, image_shape=(84, 84, 1))
    total, head, transition, dead = TOTALS[actions]
    assert model.latent_shape == (64, 7, 7)
    assert count_parameters(model.encoder) == 77_984
    assert count_parameters(model.head) == head
    assert model.transition is not None and model.predictor is not None
    assert count_parameters(model.transition) == transition - dead
    assert count_parameters(model.predictor) == 262_656
    assert count_parameters(model) == total - dead


def test_encoders_of_the_relatives() -> None:
    model = SPRModel(BBF, action_size=6, image_shape=(84, 84, 1))
    assert model.latent_shape == (128, 11, 11) and isinstance(model.encoder, ImpalaEncoder)
    convs = [m for m in model.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == 15
    assert model.head.projection_size == 2048 and model.head.noise_size == 0
    same = SPRModel(
        replace(PAPER, encoder="nature_same", hidden=512, head="shared", noisy=False),
        action_size=6,
        image_shape=(84, 84, 1),
    )
    assert same.latent_shape == (64, 11, 11)
    with pytest.raises(ValueError, match="three numbers"):
        build_encoder(replace(PAPER, channels=(3, 4)), 4)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(84, 8, 4), (21, 4, 2), (42, 3, 2)])
def test_same_padding_puts_the_odd_pixel_at_the_far_end(
    size: int, kernel: int, stride: int
) -> None:
    x = torch.ones(1, 1, size, size)
    padded = same_pad(x, kernel, stride)
    out = math.ceil(size / stride)
    assert (padded.shape[-1] - kernel) // stride + 1 == out
    total = max((out - 1) * stride + kernel - size, 0)
    before = int((padded[0, 0, size // 2] == 0).nonzero().lt(size // 2).sum())
    assert before == total // 2 and padded.shape[-1] - size == total


def test_initial_distances_are_those_of_nearly_orthogonal_vectors() -> None:
    torch.manual_seed(0)
    model = SPRModel(PAPER, action_size=6, image_shape=(84, 84, 1))
    image = torch.rand(32, 4, 84, 84)
    action = torch.nn.functional.one_hot(torch.randint(0, 6, (32, 5)), 6).float()
    with torch.no_grad():
        predicted = model.predict(model.online.latent(image), action, train=True)
        target = model.target_projection(torch.rand(32 * 5, 4, 84, 84)).view(32, 5, -1)
        for k in range(5):
            ones = torch.ones(32, 1)
            distance = spr_loss(predicted[:, k : k + 1], target[:, k : k + 1], ones).mean()
            assert abs(float(distance) - 2.0) < 0.15, (k, float(distance))


# the Q head


def test_noisy_weights_are_mean_plus_factorised_noise() -> None:
    torch.manual_seed(0)
    layer, x = NoisyLinear(5, 4, 0.5), torch.randn(3, 5)
    noise = LayerNoise(torch.randn(5), torch.randn(4))
    weight = layer.mu.weight + layer.sigma.weight * noise.outer[:, None] * noise.inner
    bias = layer.mu.bias + layer.sigma.bias * noise.outer
    torch.testing.assert_close(layer(x, noise), x @ weight.T + bias)
    torch.testing.assert_close(layer(x), x @ layer.mu.weight.T + layer.mu.bias)
    assert torch.allclose(layer.sigma.weight, torch.tensor(0.5 / math.sqrt(5)))
    assert torch.allclose(layer.sigma.bias, torch.tensor(0.5 / math.sqrt(4)))
    assert float(layer.mu.weight.detach().abs().max()) <= 1 / math.sqrt(5)


def test_every_noise_number_is_used_once_and_mapped() -> None:
    head = DuelingC51(7, 3, MODEL)
    assert head.noise_size == 2 * (7 + 16) + (16 + 21) + (16 + 63)
    latent, noise = torch.randn(2, 7), torch.randn(head.noise_size)
    before = head(latent, noise)
    # relu can hide a hidden unit, never an input or an output
    shown = [*range(7), *range(23, 30), *range(46, 46 + 37 + 79)]
    blind = [i for i in shown if torch.equal(before, _moved(head, latent, noise, i))]
    assert len(blind) <= 16, "more than the dead hidden units do not matter"
    split = head._split(noise)
    assert split[0] is not None
    torch.testing.assert_close(split[0].inner, noise[:7].sign() * noise[:7].abs().sqrt())


def _moved(head: DuelingC51, latent: Tensor, noise: Tensor, index: int) -> Tensor:
    other = noise.clone()
    other[index] += 1.0
    out: Tensor = head(latent, other)
    return out


def test_dueling_mean_is_the_value_and_the_gradient_into_the_latent_is_scaled() -> None:
    torch.manual_seed(0)
    head = DuelingC51(7, 3, MODEL)
    latent = torch.randn(2, 7, requires_grad=True)
    logits = head(latent)
    assert logits.shape == (2, 3, 21)
    value = head.value(torch.relu(head.value_hidden(latent)))
    torch.testing.assert_close(logits.mean(1), value)
    scaled = torch.autograd.grad(value.sum(), latent)[0] / math.sqrt(2)
    torch.testing.assert_close(torch.autograd.grad(logits.mean(1).sum(), latent)[0], scaled)
    one = DuelingC51(7, 3, replace(MODEL, head="shared", noisy=False))
    value = one.value(torch.relu(one.value_hidden(latent)))
    whole = torch.autograd.grad(value.sum(), latent)[0]
    torch.testing.assert_close(torch.autograd.grad(one(latent).mean(1).sum(), latent)[0], whole)


def test_projection_is_both_hidden_layers_without_noise_and_relu() -> None:
    head, latent = DuelingC51(7, 3, MODEL), torch.randn(2, 7, requires_grad=True)
    assert head.advantage_hidden is not None
    projected = head.project(latent)
    both = torch.cat([head.value_hidden.mu(latent), head.advantage_hidden.mu(latent)], -1)
    torch.testing.assert_close(projected, both)
    assert (projected < 0).any() and projected.shape == (2, head.projection_size)
    # the dueling factor touches the Q path alone
    direct = torch.autograd.grad(both.sum(), latent)[0]
    torch.testing.assert_close(torch.autograd.grad(head.project(latent).sum(), latent)[0], direct)


# prediction


def touched(model: SPRModel) -> set[str]:
    groups = ("encoder", "head", "transition", "predictor", "target_encoder", "target_head")
    return {
        name
        for name in groups
        if any(
            p.grad is not None and bool((p.grad != 0).any())
            for p in getattr(model, name).parameters()
        )
    }


def test_gradient_routes_of_prediction_and_of_q() -> None:
    model = tiny()
    model.losses(window())["spr"].mean().backward()
    assert touched(model) == {"encoder", "head", "transition", "predictor"}
    assert isinstance(model.head.value_hidden, NoisyLinear)
    assert model.head.value_hidden.sigma.weight.grad is None, "projection is free of noise"
    assert model.head.value.mu.weight.grad is None, "the output layers are no projection"
    model = tiny()
    noise = torch.randn(model.head.noise_size)
    model.head(
        model.online.latent(torch.rand(2, 4, 36, 36)).flatten(1), noise
    ).square().sum().backward()
    assert touched(model) == {"encoder", "head"}
    assert not model.targets(window()).requires_grad


def test_batch_statistics_move_in_training_predictions_alone() -> None:
    model = tiny()
    assert model.transition is not None

    def running() -> list[Tensor]:
        assert model.transition is not None
        return [b.clone() for b in model.transition.buffers()]

    before = running()
    rows = window()
    model.losses(rows), model.targets(rows), model.observe(rows)
    assert all(torch.equal(a, b) for a, b in zip(before, running(), strict=True))
    model.predict(model.observe(rows).z[:, 0], rows["action"][:, 1:6], train=True)
    after = running()
    assert not torch.equal(before[0], after[0])
    assert int(after[-1]) - int(before[-1]) == MODEL.predictions, "one step of statistics per k"
    assert not model.transition.training and not model.training


def test_prediction_target_copies_the_online_network_exactly_at_rate_one() -> None:
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model.update_prediction_target()
    assert model.target_encoder is not None and model.target_head is not None
    pairs = [(model.target_encoder, model.encoder), (model.target_head, model.head)]
    for copy, source in pairs:
        for a, b in zip(copy.parameters(), source.parameters(), strict=True):
            assert torch.equal(a, b) and not a.requires_grad
    slow = tiny(target_rate=0.01)
    assert slow.target_encoder is not None
    old = [p.clone() for p in slow.target_encoder.parameters()]
    with torch.no_grad():
        for parameter in slow.encoder.parameters():
            parameter.add_(1.0)
    slow.update_prediction_target()
    for a, b in zip(slow.target_encoder.parameters(), old, strict=True):
        torch.testing.assert_close(a, b + 0.01)


def test_shared_target_is_the_q_target() -> None:
    model = tiny(target="shared", q_target_rate=0.5, noisy=False, head="shared")
    assert model.target_encoder is None and model.q_target_encoder is not None
    assert model.prediction_target.encoder is model.q_target_encoder
    plain = tiny()
    assert plain.q_target.encoder is plain.encoder, "period 1: the online network itself"
    assert plain.prediction_target.encoder is plain.target_encoder
    rainbow = tiny(predictions=0)
    assert rainbow.transition is None and rainbow.target_encoder is None
    assert rainbow.losses(window()) == {} == rainbow.loss_scales


def test_latents_are_renormalised_everywhere() -> None:
    model, rows = tiny(), window()
    latents = model.observe(rows)
    assert latents.z.shape == (3, 8, *model.latent_shape)
    rolled = model.rollout(latents._replace(z=latents.z[:, 0]), rows["action"][:, :5])
    for z in (latents.z, rolled.z):
        flat = z.flatten(-3)
        assert torch.equal(flat.amin(-1), torch.zeros(z.shape[:2]))
        assert torch.allclose(flat.amax(-1), torch.ones(z.shape[:2]))
    assert model.features(rolled).shape == (3, 5, latents.z[0, 0].numel())


# stacks


def test_stacks_begin_with_the_episode_or_the_window() -> None:
    rng = np.random.default_rng(0)
    image = torch.as_tensor(rng.integers(1, 256, (2, 9, 2, 2, 3)).astype(np.uint8))
    first = torch.zeros(2, 9, dtype=torch.bool)
    first[0, 0] = first[0, 4] = first[0, 5] = first[1, 2] = True
    stacks = stack_frames(image, first, 4)
    for b in range(2):
        for t in range(9):
            start = max([s for s in range(t + 1) if first[b, s]], default=0)
            for back in range(4):
                want = image[b, t - back] if t - back >= start else torch.zeros_like(image[b, 0])
                assert torch.equal(stacks[b, t, 3 - back], want), (b, t, back)
    planes = to_planes(stacks)
    assert planes.shape == (2, 9, 12, 2, 2)
    assert torch.equal(planes[0, 3, 3 * 2 + 1], stacks[0, 3, 2, :, :, 1])


@torch.no_grad()
def test_dropout_is_drawn_from_its_generator_and_keeps_the_mean() -> None:
    encoder = build_encoder(replace(PAPER, dropout=0.5), 4)
    image = torch.rand(4, 4, 84, 84)
    plain = encoder(image)
    assert torch.equal(plain, encoder(image)), "no generator, nothing dropped"
    draws = [encoder(image, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    lit = plain > 0
    assert 0.45 < float((draws[0][lit] == 0).float().mean()) < 0.9
