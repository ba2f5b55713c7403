"""Which loss reaches which weight: gradient routing on one window with detached leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import TINY, model, window_rows
from torch import Tensor, nn

from reverie.world_models.objectives import action_loss, kl_losses


def gradient_on(loss: Tensor, groups: dict[str, nn.Module | nn.Parameter]) -> dict[str, bool]:
    names, leaves = [], []
    for name, group in groups.items():
        for leaf in [group] if isinstance(group, nn.Parameter) else group.parameters():
            names.append(name)
            leaves.append(leaf)
    grads = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    found = dict.fromkeys(groups, False)
    for name, grad in zip(names, grads, strict=True):
        found[name] |= grad is not None and bool(grad.abs().sum() > 0)
    return found


def test_gradient_flow_table() -> None:
    net = model(replace(TINY, free_nats=0.0, decoder="grad"))
    losses = net.losses(window_rows())
    groups: dict[str, nn.Module | nn.Parameter] = {
        "encoder": net.encoder,
        "gru": net.rssm.gru,
        "posterior": net.rssm.post_out,
        "prior": net.rssm.prior_out,
        "initial": net.rssm.initial_h,
        "reward": net.reward,
        "continue": net.cont,
        "value": net.value,  # type: ignore[dict-item]
        "action": net.action,  # type: ignore[dict-item]
        "decoder": net.decoder,  # type: ignore[dict-item]
    }
    core = {"encoder", "gru", "posterior", "initial"}
    expected = {
        "dyn": core | {"prior"},  # encoder and posterior through h alone; see the next test
        "rep": core,
        "reward": core | {"reward"},
        "continue": core | {"continue"},
        "value": core | {"value"},
        "action": core | {"action"},
        "decoder": core | {"decoder"},
    }
    for name, loss in losses.items():
        flow = gradient_on(loss.sum(), groups)
        assert {k for k, v in flow.items() if v} == expected[name], name


def test_kl_halves_route_as_specified_given_h() -> None:
    net = model(replace(TINY, free_nats=0.0))
    window = net.window(window_rows())
    h = window.latents.h.detach()
    logits = window.latents.logits.detach().requires_grad_()
    prior_logits = net.rssm.prior_logits(h).detach().requires_grad_()
    prior = 0.99 * prior_logits.softmax(-1) + 0.01 / 4
    detached = window._replace(
        latents=window.latents._replace(h=h, logits=logits), prior_prob=prior
    )
    terms = kl_losses(net, detached)
    for name, reached, spared in (("dyn", prior_logits, logits), ("rep", logits, prior_logits)):
        a, b = torch.autograd.grad(
            terms[name].sum(), [reached, spared], allow_unused=True, retain_graph=True
        )
        assert a is not None and a.abs().sum() > 0
        assert b is None or b.abs().sum() == 0


@pytest.mark.parametrize("discrete", [False, True])
def test_action_head_reads_neither_h_t_nor_z_t_nor_the_action(discrete: bool) -> None:
    net = model(discrete=discrete)
    window = net.window(window_rows(discrete=discrete))
    feature = window.feature.detach().requires_grad_()
    embed = window.embed.detach().requires_grad_()
    action = window.batch["action"].clone().requires_grad_()
    probe = window._replace(
        feature=feature, embed=embed, batch=dict(window.batch) | {"action": action}
    )
    loss = action_loss(net, probe)
    t = 3
    grads = torch.autograd.grad(loss[:, t].sum(), [feature, embed, action], allow_unused=True)
    assert grads[0][:, t].abs().sum() == 0, "h_t and z_t leak the label"
    assert grads[0][:, t - 1].abs().sum() > 0
    assert grads[1][:, t].abs().sum() > 0
    assert grads[2] is None, "the label carries no gradient"
    assert (loss[:, 0] == 0).all(), "no action led to a window's first row"


def test_action_loss_is_masked_at_is_first() -> None:
    net, rows = model(), window_rows()
    rows["is_first"][1, 2] = True
    loss = action_loss(net, net.window(rows))
    assert loss[1, 2] == 0 and (loss[0, 1:] != 0).all()


def test_detached_decoder_trains_nothing_else() -> None:
    net = model(replace(TINY, decoder="detached"))
    assert net.decoder is not None
    flow = gradient_on(
        net.losses(window_rows())["decoder"].sum(),
        {"encoder": net.encoder, "rssm": net.rssm, "decoder": net.decoder},
    )
    assert flow == {"encoder": False, "rssm": False, "decoder": True}


def test_a_batch_without_is_first_still_trains_the_window_start() -> None:
    """The v1 preset starts every window from the initial state, by a mask of its own."""
    net = model()
    (grad,) = torch.autograd.grad(net.total_loss(net.losses(window_rows())), net.rssm.initial_h)
    assert grad.abs().sum() > 0
