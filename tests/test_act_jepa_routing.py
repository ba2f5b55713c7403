"""ACT-JEPA: which loss moves which weight, what the EMA target does, and ACT inside it."""

from __future__ import annotations

import re
from typing import get_args

import pytest
import torch
from small_act_jepa import MODEL
from tiny_act_jepa import first_rows, losses, rows_for, tiny
from torch import Tensor

from reverie.world_models.act_jepa import OWN_TARGETS, REGULARISED, ACTJEPAModel
from reverie.world_models.act_jepa_config import Guard
from reverie.world_models.losses import masked_l1

GUARDS: tuple[Guard, ...] = get_args(Guard)
ALL = ("proprio", "state", "image")
PART = re.compile(r"target|projector|encoder\.trunk\.blocks\.\d+|\w+\.blocks\.\d+|\w+\.\w+")
"""What stands or falls together: blocks one by one, the rest by module."""

LAYERS = {"encoder_layers": 3, "decoder_layers": 3, "predictor_layers": 3}
ENCODER = {"encoder.task", "encoder.embed", "encoder.trunk"}
ENCODER |= {f"encoder.trunk.blocks.{i}" for i in range(3)}
POLICY = {"policy.query", "policy.norm", "policy.action", *(f"policy.blocks.{i}" for i in range(3))}
PREDICTOR = {f"predictor.{name}" for name in ("query", "entry", "norm", "out", "action")}
PREDICTOR |= {f"predictor.blocks.{i}" for i in range(3)}
MOVED = {
    ("action", "any"): ENCODER | POLICY,
    ("latent", "any"): ENCODER | PREDICTOR,
    ("guard", "sigreg"): ENCODER | {"projector"},
    ("guard", "vicreg"): ENCODER | {"projector"},
    ("guard", "barlow"): ENCODER | PREDICTOR | {"projector"},
}
"""Loss and guard -> parts that it moves, all of their weights."""


def moved_by(net: ACTJEPAModel, loss: Tensor) -> set[str]:
    """Parts with gradient; within a part, every weight has it or none has."""
    net.zero_grad(set_to_none=True)
    loss.mean().backward(retain_graph=True)
    parts: dict[str, dict[str, bool]] = {}
    for name, weight in net.named_parameters():
        found = PART.match(name)
        assert found, name
        reached = weight.grad is not None and bool(weight.grad.any())
        parts.setdefault(found.group(), {})[name] = reached
    for weights in parts.values():
        assert len(set(weights.values())) == 1, weights
    return {part for part, weights in parts.items() if all(weights.values())}


@pytest.mark.parametrize("inputs", [("proprio", "state"), ALL], ids="+".join)
@pytest.mark.parametrize("guard", GUARDS)
def test_every_loss_moves_its_parts_down_to_the_last_layer(
    guard: Guard, inputs: tuple[str, ...]
) -> None:
    net = tiny(guard=guard, inputs=inputs, targets=inputs, action_conditioned=True, **LAYERS)
    rows = rows_for(net.cfg, batch=8)
    for name, loss in losses(net, rows, train=False).items():
        expected = MOVED[name, guard if name == "guard" else "any"]
        assert moved_by(net, loss) == expected, name
    assert (net.target is None) == (guard in OWN_TARGETS)
    if net.target is not None:
        assert not any(weight.requires_grad for weight in net.target.parameters())


def test_the_decoder_has_gradient_in_every_one_of_seven_layers() -> None:
    net = tiny(w_jepa=0.0, decoder_layers=7)
    found = moved_by(net, losses(net, rows_for(net.cfg))["action"])
    assert {f"policy.blocks.{i}" for i in range(7)} <= found


def encoder_gradient(net: ACTJEPAModel, loss: Tensor) -> list[Tensor]:
    weights = list(net.encoder.parameters())
    found = torch.autograd.grad(loss.mean(), weights, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]


@pytest.mark.parametrize("guard", GUARDS)
def test_targets_let_the_gradient_in_where_the_guard_says_so(guard: Guard) -> None:
    rows, net, shut = rows_for(MODEL), tiny(guard=guard), tiny(guard="stop_gradient")
    found = losses(net, rows, train=False)["latent"]
    same = losses(shut, rows, train=False)["latent"]
    torch.testing.assert_close(found, same, msg="an EMA target begins as the encoder")
    gradient, through = encoder_gradient(net, found), encoder_gradient(shut, same)
    open_ = guard in ("none", *REGULARISED)
    assert net.target_latents(rows).requires_grad == open_
    assert not net.targets(rows).requires_grad
    if open_:  # what comes in through the targets alone
        latents = net.context(first_rows(rows), rows["task"])
        predicted = net.predict(latents, rows["action"]).detach().flatten(2)
        target = net.target_latents(rows).flatten(2)
        inwards = encoder_gradient(net, masked_l1(predicted, target, ~rows["is_pad"]))
        assert sum(float(g.abs().sum()) for g in inwards) > 1e-3
        through = [a + b for a, b in zip(through, inwards, strict=True)]
    for one, two in zip(gradient, through, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


# the EMA target


def shaken_target(**changes: object) -> ACTJEPAModel:
    """A model whose encoder has moved away from its target, running statistics too."""
    net = tiny(inputs=ALL, targets=("proprio", "image"), **changes)
    with torch.no_grad():
        for weight in net.encoder.parameters():
            weight.add_(torch.randn_like(weight))
    for seed in range(2):
        net.losses(rows_for(net.cfg, seed=seed), train=True)
    return net


def tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


@pytest.mark.parametrize("rate", [0.004, 0.3, 0.0, 1.0])
@pytest.mark.parametrize("on_device", [False, True])
def test_target_is_momentum_times_old_and_the_rest_new(rate: float, on_device: bool) -> None:
    net = shaken_target()
    assert net.target is not None
    old, new = tensors(net.target), tensors(net.encoder)
    assert set(old) < set(new) and "embed.state.weight" not in old
    net.update_target(torch.tensor(rate) if on_device else rate)
    whole = [name for name, value in old.items() if not value.is_floating_point()]
    statistics = [name for name in old if name.endswith("running_var")]
    assert len(whole) == len(statistics) == 4
    for name, value in tensors(net.target).items():
        if name in whole:
            assert torch.equal(value, new[name]) and int(value) == 2, name
            continue
        torch.testing.assert_close(value, (1 - rate) * old[name] + rate * new[name], msg=name)
        if rate == 0.0:
            assert torch.equal(value, old[name]), "bit for bit"
        elif not name.endswith((".mean", ".std", "place")):
            assert not torch.equal(value, old[name]), name
    for name, value in tensors(net.encoder).items():
        assert torch.equal(value, new[name]), "the encoder stays"


def test_target_latents_are_those_of_the_target() -> None:
    net = shaken_target()
    rows = rows_for(net.cfg)
    before = net.target_latents(rows)
    net.update_target(1.0)
    after = net.target_latents(rows)
    own = shaken_target(guard="stop_gradient").target_latents(rows)
    assert not torch.allclose(before, after) and not before.requires_grad
    torch.testing.assert_close(after, own, msg="a whole step makes the target the encoder")


def test_guards_without_a_target_have_nothing_to_move() -> None:
    net = tiny(guard="stop_gradient")
    before = tensors(net)
    net.update_target(0.5)
    assert net.target is None
    assert all(torch.equal(value, before[name]) for name, value in tensors(net).items())


# ACT


@pytest.mark.parametrize("inputs", [("proprio", "state"), ALL], ids="+".join)
@pytest.mark.parametrize("guard", GUARDS)
def test_without_the_latent_loss_the_model_is_act_bit_for_bit(
    guard: Guard, inputs: tuple[str, ...]
) -> None:
    act = tiny(guard=guard, inputs=inputs, w_jepa=0.0)
    jepa = tiny(guard=guard, inputs=inputs)
    assert act.predictor is None and act.target is None and act.projector is None
    assert act.loss_scales == {"action": 1.0}
    own, whole = act.state_dict(), jepa.state_dict()
    assert {name.partition(".")[0] for name in own} == {"encoder", "policy"}
    assert own.keys() == {n for n in whole if n.startswith(("encoder.", "policy."))}
    for name, value in own.items():
        assert torch.equal(value, whole[name]), name
    rows = rows_for(act.cfg)
    found, other = losses(act, rows), losses(jepa, rows)
    assert found.keys() == {"action"} and torch.equal(found["action"], other["action"])
    assert not torch.equal(found["action"], losses(act, rows, train=False)["action"]), "dropout"
    gradients = [
        encoder_gradient(net, loss["action"]) for net, loss in ((act, found), (jepa, other))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    with pytest.raises(AssertionError, match="w_jepa is 0: this model predicts no latent"):
        act.predict(act.context(first_rows(rows), rows["task"]), rows["action"])
