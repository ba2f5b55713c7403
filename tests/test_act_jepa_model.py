"""The ACT-JEPA model: sizes, padding, the style variable, running statistics."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain, combinations
from typing import Any, get_args

import pytest
import torch
from small_act_jepa import MODEL, demo_rows
from tiny_act_jepa import IMAGE, first_rows, losses, rows_for, tiny
from torch import Tensor

from reverie.world_models.act_jepa import ACTJEPAModel
from reverie.world_models.act_jepa_config import ACTJEPAModelConfig, Guard
from reverie.world_models.losses import masked_l1
from reverie.world_models.nets import count_parameters

GUARDS: tuple[Guard, ...] = get_args(Guard)
ALL = ("proprio", "state", "image")
P, W = MODEL.chunk, MODEL.width


# sizes


def linear(into: int, out: int) -> int:
    return into * out + out


def block(width: int, ffn: int, *, cross: bool) -> int:
    attention = 4 * linear(width, width)
    count = 2 if cross else 1
    return count * attention + 2 * width * ffn + (count + 1) * 2 * width


def conv(into: int, out: int, kernel: int) -> int:
    """Without a bias, and the batch norm behind it."""
    return into * out * kernel**2 + 2 * out


def resnet18() -> int:
    total = conv(3, 64, 7)
    for before, after in ((64, 64), (64, 128), (128, 256), (256, 512)):
        shortcut = conv(before, after, 1) if before != after else 0
        total += conv(before, after, 3) + 3 * conv(after, after, 3) + shortcut
    return total


def test_parameter_counts_are_those_of_the_released_code() -> None:
    net = ACTJEPAModel(
        ACTJEPAModelConfig(), action_size=4, vector_size=39, proprio_size=4, image_shape=(96, 96, 3)
    )
    trunk = 4 * block(512, 2048, cross=False) + 2 * 512
    assert count_parameters(net.encoder.trunk) == trunk == 12_600_320
    stem = net.encoder.embed["image"].get_submodule("stem")
    assert count_parameters(stem) == resnet18() == 11_176_512
    narrow = 30 * 128 + linear(512, 128) + 4 * block(128, 512, cross=True)
    narrow += 2 * 128 + linear(128, 512)
    assert net.predictor is not None and count_parameters(net.predictor) == narrow == 1_191_552
    decoder = 30 * 512 + block(512, 2048, cross=True) + 2 * 512 + linear(512, 4)
    assert count_parameters(net.policy) == decoder
    embed = 50 * 512 + linear(4, 512) + linear(512, 512)
    assert count_parameters(net) == trunk + resnet18() + embed + narrow + decoder == 29_479_108
    assert net.target is not None and count_parameters(net.target) == 0, "nothing there learns"
    frozen = sum(p.numel() for p in net.target.parameters())
    assert frozen == trunk + 50 * 512 + linear(4, 512), "no image is a target: no stem is copied"


# shapes


def choices(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return list(chain.from_iterable(combinations(names, n) for n in range(1, len(names) + 1)))


@pytest.mark.parametrize("inputs", choices(ALL), ids="+".join)
@pytest.mark.parametrize("conditioned", [False, True])
def test_shapes_for_every_choice_of_inputs_and_targets(
    inputs: tuple[str, ...], conditioned: bool
) -> None:
    tokens = 1 + sum(4 if name == "image" else 1 for name in inputs)
    for targets in choices(inputs):
        net = tiny(inputs=inputs, targets=targets, action_conditioned=conditioned)
        rows = rows_for(net.cfg)
        latents = net.context(first_rows(rows), rows["task"])
        assert latents.tokens.shape == (3, tokens, W)
        assert net.chunk(latents).shape == (3, P, 3)
        shape = (3, P, len(targets), W)
        assert net.predict(latents, rows["action"]).shape == shape
        assert net.target_latents(rows).shape == shape
        assert net.features(latents).shape == (3, net.feature_size)
        assert net.feature_size == (1 + len(inputs)) * W
        found = net.losses(rows)
        assert {name: loss.shape for name, loss in found.items()} == dict.fromkeys(
            ("action", "latent"), (3, P)
        )


@pytest.mark.parametrize(
    ("size", "tokens"), [((16, 16, 1), 1), ((48, 32, 3), 6), ((84, 84, 3), 25)]
)
@pytest.mark.parametrize("chunk", [2, 13])
def test_other_chunks_and_image_sizes(size: tuple[int, int, int], tokens: int, chunk: int) -> None:
    net = tiny(image=size, chunk=chunk, inputs=("image",), targets=("image",))
    rows = demo_rows(length=chunk, image=size)
    latents = net.context(first_rows(rows), rows["task"])
    assert latents.tokens.shape == (3, 1 + tokens, W)
    assert net.chunk(latents).shape == (3, chunk, 3)
    assert net.predict(latents, rows["action"]).shape == (3, chunk, 1, W)
    assert net.target_latents(rows).shape == (3, chunk, 1, W)


def test_images_alone_need_no_vector() -> None:
    cfg = replace(MODEL, inputs=("image",), targets=("image",))
    net = ACTJEPAModel(cfg, action_size=3, vector_size=0, image_shape=IMAGE)
    rows = rows_for(cfg)
    del rows["vector"]
    assert all(torch.isfinite(loss).all() for loss in net.losses(rows).values())
    with pytest.raises(AssertionError, match="inputs has state, the data has no vector"):
        ACTJEPAModel(replace(MODEL, inputs=("state",)), action_size=3, vector_size=0)
    with pytest.raises(AssertionError, match="inputs has image, the data has none"):
        ACTJEPAModel(cfg, action_size=3, vector_size=6)


def test_proprioception_is_the_head_of_the_vector_or_all_of_it() -> None:
    net, rows = tiny(), rows_for(MODEL)
    found = net.modalities(rows)
    assert torch.equal(found["proprio"], rows["vector"][..., :2])
    assert torch.equal(found["state"], rows["vector"])
    whole = ACTJEPAModel(replace(MODEL, inputs=("proprio",)), action_size=3, vector_size=6)
    assert torch.equal(whole.modalities(rows)["proprio"], rows["vector"])


@torch.no_grad()
def test_rollout_puts_predictions_in_the_place_of_their_input() -> None:
    net = tiny(inputs=ALL, targets=("image", "proprio"), action_conditioned=True)
    rows = rows_for(net.cfg)
    start = net.context(first_rows(rows), rows["task"])
    future = net.rollout(start, rows["action"][:, :3])
    assert future.tokens.shape == (3, 3, 7, W)
    predicted = net.predict(start, rows["action"])[:, 1:4]
    assert torch.equal(future.tokens[:, :, 1], predicted[:, :, 1]), "proprio"
    image = predicted[:, :, :1].expand(-1, -1, 4, -1)
    assert torch.equal(future.tokens[:, :, 3:], image), "every token of the image"
    for kept in (0, 2):
        assert torch.equal(future.tokens[:, :, kept], start.tokens[:, None, kept].expand(3, 3, W))
    with pytest.raises(ValueError, match="a chunk of 6 reaches 5 steps ahead, not 6"):
        net.rollout(start, rows["action"])


# padding


def with_other_padding(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    g, pad = torch.Generator().manual_seed(9), rows["is_pad"]
    assert pad.any() and not pad[:, 0].any()
    out = {key: value.clone() for key, value in rows.items()}
    for key in ("vector", "action"):
        out[key][pad] = 50.0 * torch.randn(out[key][pad].shape, generator=g)
    if "image" in out:
        shape = out["image"][pad].shape
        out["image"][pad] = torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)
    return out


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("guard", [*GUARDS, "ACT with style"])
def test_padding_changes_nothing(guard: str, train: bool) -> None:
    changes: dict[str, Any] = {"w_jepa": 0.0, "vae": True}
    if guard in GUARDS:
        changes = {"guard": guard, "targets": ALL, "action_conditioned": True}
    net = tiny(inputs=ALL, **changes)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    rows = rows_for(net.cfg, batch=5)
    rows["is_pad"][1, 1:], rows["is_pad"][2, -1] = True, True
    other, valid = with_other_padding(rows), ~rows["is_pad"]
    found, statistics = [], []
    for batch in (rows, other):
        net.load_state_dict(state)
        found.append(losses(net, batch, train=train))
        statistics.append([b.clone() for b in net.buffers()])
        latents = net.context(first_rows(batch), batch["task"])
        found[-1]["chunk"] = net.chunk(latents)
        if net.predictor is not None:
            found[-1]["target"] = net.target_latents(batch)[valid]
            # what leads to a valid step is valid: under the actions taken as well
            found[-1]["predicted"] = net.predict(latents, batch["action"])[valid]
    assert set(found[0]) > {"action", "chunk"}
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-6, atol=1e-6, msg=name)
        assert torch.isfinite(value).all()
    for one, two in zip(*statistics, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
    for name in net.loss_scales.keys() - {"guard", "kl"}:
        assert (found[0][name][~valid] == 0).all() and (found[0][name][valid] > 0).all()
    other["vector"][0, 0] += 1.0
    net.load_state_dict(state)
    changed = losses(net, other, train=train)["action"]
    assert not torch.allclose(changed, found[0]["action"]), "what is no padding matters"


# behaviour cloning and the style variable


def test_behaviour_cloning_has_no_attention_and_reads_the_same_tokens() -> None:
    net = tiny(policy="mlp", w_jepa=0.0, inputs=ALL)
    rows = rows_for(net.cfg)
    assert not list(net.encoder.trunk.blocks) and net.predictor is None and net.target is None
    found = losses(net, rows)
    assert found.keys() == net.loss_scales.keys() == {"action"}
    latents = net.context(first_rows(rows), rows["task"])
    assert latents.tokens.shape == (3, 7, W)
    want = net.policy(net.features(latents))
    assert torch.equal(net.chunk(latents), want) and want.shape == (3, P, 3)
    found["action"].mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


STYLE: dict[str, Any] = {"vae": True, "w_jepa": 0.0}


def test_kl_of_the_style_variable_has_its_closed_form() -> None:
    net, rows = tiny(**STYLE), rows_for(MODEL)
    assert net.style is not None
    with torch.no_grad():
        net.style.latent.weight.zero_()
        net.style.latent.bias.copy_(torch.tensor([1.0, 0.0, -2.0, 0.0, math.log(4.0), 0.0]))
    found = losses(net, rows)["kl"]
    want = 0.5 * (1.0 + (4.0 - 1.0 - math.log(4.0)) + 4.0)
    torch.testing.assert_close(found, torch.full((3, P), want))
    assert net.loss_scales == {"action": 1.0, "kl": MODEL.kl_scale}


@torch.no_grad()
def test_style_is_zero_when_acting_drawn_when_learning_and_its_mean_when_examined() -> None:
    net, rows = tiny(**STYLE, dropout=0.0), rows_for(MODEL)
    assert net.style is not None
    mean, log_var = net.style(rows["vector"][:, 0], rows["action"], rows["is_pad"], drop=0.0)

    def by_hand(z: Tensor) -> Tensor:
        vector = rows["vector"][:, 0]
        embed = net.encoder.embed
        parts = [net.encoder.task(rows["task"]), embed["proprio"](vector[:, :2])]
        parts += [embed["state"](vector), net.style.token(z)]  # type: ignore[union-attr]
        return net.policy(net.encoder.trunk(torch.stack(parts, 1)))

    played = net.chunk(net.context(first_rows(rows), rows["task"]))
    torch.testing.assert_close(played, by_hand(torch.zeros(3, MODEL.vae_size)))
    valid = ~rows["is_pad"]
    for train in (False, True):
        torch.manual_seed(5)
        z = mean + train * torch.randn_like(mean) * torch.exp(0.5 * log_var)
        want = masked_l1(by_hand(z), rows["action"], valid)
        torch.testing.assert_close(losses(net, rows, train=train)["action"], want)
    assert not torch.allclose(played, by_hand(mean))


@pytest.mark.parametrize("name", ["action", "kl"])
def test_style_encoder_gets_gradient_from_the_actions_and_from_its_prior(name: str) -> None:
    net, rows = tiny(**STYLE), rows_for(MODEL)
    losses(net, rows)[name].mean().backward()
    assert net.style is not None
    for weight_name, weight in net.style.named_parameters():
        # the prior is about z, and the token is made of z
        reached = name == "action" or not weight_name.startswith("token")
        assert (weight.grad is not None and bool(weight.grad.any())) == reached, weight_name


# running statistics


@pytest.mark.parametrize("guard", ["ema", "stop_gradient", "sigreg"])
def test_batch_statistics_move_in_learning_losses_alone(guard: str) -> None:
    net = tiny(inputs=ALL, targets=ALL, guard=guard)
    rows = rows_for(net.cfg)

    def running() -> dict[str, Tensor]:
        return {name: value.clone() for name, value in net.named_buffers()}

    before = running()
    latents = net.context(first_rows(rows), rows["task"])
    net.chunk(latents), net.predict(latents, rows["action"]), net.observe(rows)
    net.losses(rows), net.target_latents(rows), net.targets(rows)
    assert all(torch.equal(value, before[name]) for name, value in running().items())
    net.losses(rows, train=True)
    after = running()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    stem = {name for name in before if name.startswith("encoder.embed.image.stem.")}
    projector = {name for name in before if name.startswith("projector.")}
    assert moved == stem | projector and stem and bool(projector) == (guard == "sigreg")
    for name in moved:
        if name.endswith("num_batches_tracked"):
            once = MODEL.guard_offsets if name in projector else 1
            assert int(after[name] - before[name]) == once, "the first rows, no step of the targets"
    assert not any(module.training for module in net.modules())


def test_statistics_are_off_again_after_an_error() -> None:
    net = tiny(inputs=ALL)
    rows = rows_for(net.cfg)
    with pytest.raises(RuntimeError, match="shape"):
        net.losses({**rows, "vector": rows["vector"][..., :5]}, train=True)
    assert not any(module.training for module in net.modules())
