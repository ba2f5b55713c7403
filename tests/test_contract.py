"""What every model family owes to imagination, monitors and reports: the contract of `core`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from small_act_jepa import MODEL as SMALL_JEPA
from small_act_jepa import demo_rows
from small_spr import MODEL as SMALL_SPR
from tiny_models import TINY, model, window_rows
from torch import Tensor

from reverie.agents.registry import AGENTS
from reverie.world_models.act_jepa import ACTJEPAModel
from reverie.world_models.config import WorldModelConfig
from reverie.world_models.core import WorldModel
from reverie.world_models.spr import SPRModel, stack_frames

B, T, H = 3, 8, 4


class Case(NamedTuple):
    """One model and what to feed it."""

    model: Any
    batch: dict[str, Tensor]
    """Rows [B, T]."""
    obs: dict[str, Tensor]
    """What `encode` reads, [B, T]."""
    noise: Callable[[], tuple[Tensor, ...]]
    """Random numbers of a rollout of H steps from B starts, as its further arguments."""


def recurrent(cfg: WorldModelConfig) -> Case:
    net, rows = model(cfg), window_rows(batch=B, length=T)
    rows["is_last"][0, 3] = rows["is_terminal"][0, 3] = rows["is_first"][0, 4] = True
    return Case(net, rows, rows, lambda: (net.draw_noise(B, H),))


def convolutional(**changes: Any) -> Case:
    cfg = replace(SMALL_SPR, **changes)
    net = SPRModel(cfg, action_size=3, image_shape=(36, 36, 1))
    g = torch.Generator().manual_seed(1)
    action = torch.randint(0, 3, (B, T), generator=g)
    shape = (B, T, 36, 36, 1)
    flags = torch.zeros(B, T, dtype=torch.bool)
    rows = {
        "image": torch.randint(0, 256, shape, generator=g, dtype=torch.uint8),
        "action": torch.nn.functional.one_hot(action, 3).float(),
        "reward": torch.zeros(B, T),
        **{key: flags.clone() for key in ("is_first", "is_last", "is_terminal")},
    }
    rows["is_last"][0, 3] = rows["is_terminal"][0, 3] = rows["is_first"][0, 4] = True
    stacks = stack_frames(rows["image"], rows["is_first"], cfg.history)
    return Case(net, rows, {"image": stacks}, lambda: ())


def chunked(**changes: Any) -> Case:
    cfg = replace(SMALL_JEPA, chunk=T, **changes)
    image = (16, 16, 3) if "image" in cfg.inputs else None
    net = ACTJEPAModel(cfg, action_size=3, vector_size=6, proprio_size=2, image_shape=image)
    rows = demo_rows(batch=B, length=T, image=image)
    task = rows["task"].unsqueeze(1).expand(B, T)
    obs = {key: rows[key] for key in ("vector", "image") if key in rows}
    return Case(net, rows, {**obs, "task": task}, lambda: ())


LAGGING = {"target": "shared", "q_target_rate": 0.005, "noisy": False, "head": "shared"}

FAMILIES: dict[str, Callable[[], Case]] = {
    "mudreamer": lambda: recurrent(TINY),
    "dreamerv3": lambda: recurrent(replace(TINY, enc_norm="ln", heads=(), decoder="grad")),
    "mudreamer+spr": lambda: recurrent(replace(TINY, objectives=("spr",))),
    "mudreamer+barlow": lambda: recurrent(replace(TINY, objectives=("barlow",))),
    "spr": lambda: convolutional(),
    "spr-noaug": lambda: convolutional(dropout=0.5, target_rate=0.01),
    "sr-spr": lambda: convolutional(encoder="nature_same", transition_norm="none", **LAGGING),
    "act-jepa": lambda: chunked(),
    "act-jepa on actions": lambda: chunked(action_conditioned=True, targets=("proprio", "state")),
    "act-jepa on images": lambda: chunked(inputs=("image",), targets=("image",)),
    "bbf": lambda: convolutional(encoder="impala", transition_norm="none", **LAGGING),
}
"""Builder of every family; a further one is a line here."""


def test_every_agent_that_predicts_is_held_to_the_contract() -> None:
    # rainbow is the Q head of spr alone, act and bc are act-jepa without its predictor
    assert set(AGENTS) - {"rainbow", "act", "bc"} <= set(FAMILIES)


@pytest.fixture(params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return FAMILIES[request.param]()


def tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def start_of(case: Case) -> Any:
    """Detached states [B] of the second row."""
    latents = case.model.observe(case.batch)
    return type(latents)(*(t[:, 1].detach() for t in latents))


def test_verbs_return_the_declared_shapes(case: Case) -> None:
    net: WorldModel = case.model
    embed = net.encode(case.obs)
    assert embed.shape[:2] == (B, T) and embed.ndim == 3 and embed.dtype == torch.float32
    latents = net.observe(case.batch)
    assert all(t.shape[:2] == (B, T) for t in latents)
    feature = net.features(latents)
    assert feature.shape[:2] == (B, T) and feature.ndim == 3
    future = net.rollout(start_of(case), case.batch["action"][:, 2 : 2 + H].float())
    assert type(future) is type(latents)
    for now, later in zip(latents, future, strict=True):
        assert later.shape == (B, H, *now.shape[2:])
    assert net.features(future).shape == (B, H, feature.shape[-1])
    for out in (embed, feature, net.features(future)):
        assert torch.isfinite(out).all()


def test_losses_have_the_declared_keys_and_dimensions(case: Case) -> None:
    losses = case.model.losses(case.batch)
    assert losses.keys() == case.model.loss_scales.keys() and losses
    shape = tuple({"B": B, "T": T}[letter] for letter in case.model.loss_dims)
    assert case.model.loss_dims[0] == "B"
    for name, loss in losses.items():
        assert loss.shape == shape and loss.dtype == torch.float32, name
        assert torch.isfinite(loss).all() and loss.requires_grad, name
    assert all(scale > 0 for scale in case.model.loss_scales.values())


def test_losses_reach_the_encoder_and_no_target_network(case: Case) -> None:
    losses = case.model.losses(case.batch)
    sum(case.model.loss_scales[k] * v.mean() for k, v in losses.items()).backward()
    for name, weight in case.model.named_parameters():
        if not weight.requires_grad:
            assert weight.grad is None, name
        elif name.startswith("encoder."):
            assert weight.grad is not None and weight.grad.abs().sum() > 0, name
        assert weight.grad is None or torch.isfinite(weight.grad).all(), name


def test_targets_carry_no_gradient(case: Case) -> None:
    found = tensors(case.model.targets(case.batch))
    assert found and all(t.shape[0] == B for t in found)
    assert not any(t.requires_grad for t in found)


def test_rollout_is_a_function_of_start_actions_and_noise(case: Case) -> None:
    start, noise = start_of(case), case.noise()
    action = case.batch["action"][:, 2 : 2 + H].float().clone().requires_grad_()
    first = case.model.rollout(start, action, *noise)
    again = case.model.rollout(start, action, *noise)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    if not case.model.action_conditioned:
        with pytest.raises(RuntimeError, match="not have been used"):
            torch.autograd.grad(case.model.features(first).square().sum(), action)
        return
    other = action.detach().clone()
    other[:, -1] = other[:, -1].roll(1, -1)
    changed = case.model.rollout(start, other, *noise)
    for a, b in zip(first, changed, strict=True):
        assert torch.equal(a[:, :-1], b[:, :-1]), "an action reached a state before it"
    assert not torch.equal(case.model.features(first)[:, -1], case.model.features(changed)[:, -1])
    (grad,) = torch.autograd.grad(case.model.features(first).square().sum(), action)
    assert (grad[:, 0].abs().sum() > 0) and torch.isfinite(grad).all()


def test_nothing_but_an_update_moves_running_statistics(case: Case) -> None:
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    rows = {name: value.clone() for name, value in case.batch.items()}
    case.model.encode({name: value[:1, :1] for name, value in case.obs.items()})
    case.model.targets(case.batch)
    case.model.rollout(start_of(case), case.batch["action"][:, :H].float())
    case.model.losses(case.batch)
    assert all(torch.equal(case.model.state_dict()[name], old) for name, old in before.items())
    assert not any(module.training for module in case.model.modules())
    assert all(torch.equal(case.batch[name], old) for name, old in rows.items())
