"""Golden values of ACT-JEPA's and ACT's losses, and of the schedule of the target's momentum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reverie.world_models import losses, targets


def close(a: Tensor, b: object, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        a.double(), torch.as_tensor(b, dtype=torch.float64), atol=tolerance, rtol=tolerance
    )


def test_masked_l1() -> None:
    prediction = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[5.0, -1.0], [9.0, 9.0]]])
    target = torch.tensor([[[0.0, 4.0], [1.0, 0.0]], [[5.0, 1.0], [0.0, 0.0]]])
    valid = torch.tensor([[True, True], [True, False]])
    loss = losses.masked_l1(prediction, target, valid)
    # errors 1.5, 0.5, 1.0 of the valid entries; 4/3 makes their sum over 4 a mean over 3
    close(loss, [[2.0, 2 / 3], [4 / 3, 0.0]])
    close(loss.mean(), 1.0)
    close(losses.masked_l1(prediction, target, valid.float()), loss.double())
    close(losses.masked_l1(prediction, target, torch.ones(2, 2)).mean(), 3.0)
    scalar = losses.masked_l1(prediction[..., 0], target[..., 0], valid)
    close(scalar.mean(), 2 / 3)
    with pytest.raises(AssertionError, match="against"):
        losses.masked_l1(prediction, target[:, :1], valid)


def test_masked_l1_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    p, y = rng.normal(size=(2, 4, 6, 3, 5))
    valid = np.arange(6) < np.array([6, 1, 4, 3])[:, None]
    rows = [np.abs(p[b, t] - y[b, t]).mean() for b in range(4) for t in range(6) if valid[b, t]]
    loss = losses.masked_l1(torch.tensor(p), torch.tensor(y), torch.tensor(valid))
    assert loss.shape == (4, 6) and loss.dtype == torch.float32
    assert loss.mean().item() == pytest.approx(np.mean(rows), rel=1e-6)


@pytest.mark.parametrize("garbage", [1e30, float("nan"), float("inf")])
def test_masked_l1_ignores_padding_in_value_and_gradient(garbage: float) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 3, 4, 5, generator=generator)
    valid = torch.arange(4) < torch.tensor([[4], [2], [1]])
    clean = losses.masked_l1(prediction, target, valid)
    padded = ~valid.unsqueeze(-1)
    wild = torch.where(padded, garbage, prediction).requires_grad_()
    aim = torch.where(padded, -garbage, target).requires_grad_()
    loss = losses.masked_l1(wild, aim, valid)
    assert torch.equal(loss, clean)
    to_prediction, to_target = torch.autograd.grad(loss.mean(), [wild, aim])
    close(to_prediction, ~padded * torch.sign(prediction - target) / (7 * 5))
    assert torch.equal(to_target, -to_prediction)
    assert not losses.masked_l1(prediction, target, valid.float().requires_grad_()).requires_grad


def test_masked_l1_of_longer_padding_has_the_same_mean() -> None:
    prediction, target = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    valid = torch.arange(4) < torch.tensor([[4], [2], [1]])
    longer = [F.pad(x, (0, 0, 0, 8), value=c) for x, c in ((prediction, 7.0), (target, -7.0))]
    loss = losses.masked_l1(*longer, F.pad(valid, (0, 8)))
    assert torch.equal(loss[:, 4:], torch.zeros(3, 8))
    close(loss.mean(), losses.masked_l1(prediction, target, valid).mean().item())


def test_masked_l1_of_padding_alone_is_zero() -> None:
    prediction = torch.randn(2, 3, 4, requires_grad=True)
    loss = losses.masked_l1(prediction, torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    assert torch.equal(loss, torch.zeros(2, 3))
    (gradient,) = torch.autograd.grad(loss.mean(), prediction)
    assert torch.equal(gradient, torch.zeros(2, 3, 4))


def test_gaussian_kl() -> None:
    zeros = torch.zeros(2, 3)
    assert torch.equal(losses.gaussian_kl(zeros, zeros), torch.zeros(2))
    mean = torch.tensor([[1.0, -2.0], [0.0, 0.5]], requires_grad=True)
    log_var = torch.tensor([[0.0, np.log(4.0)], [np.log(0.25), 0.0]], requires_grad=True)
    kl = losses.gaussian_kl(mean, log_var)
    close(kl, [0.5 + 0.5 * (4 + 4 - 1 - np.log(4)), 0.5 * (0.25 - 1 + np.log(4)) + 0.125])
    own = torch.distributions.Normal(mean, torch.exp(0.5 * log_var))
    unit = torch.distributions.Normal(torch.zeros(2, 2), torch.ones(2, 2))
    close(kl, torch.distributions.kl_divergence(own, unit).sum(-1).double())
    to_mean, to_log_var = torch.autograd.grad(kl.sum(), [mean, log_var])
    close(to_mean, mean.double())
    close(to_log_var, 0.5 * (log_var.exp() - 1).double())
    half = losses.gaussian_kl(mean.bfloat16(), log_var.bfloat16())
    assert half.dtype == torch.float32


def test_linear_momentum() -> None:
    found = [targets.linear_momentum(k, 4000, 0.996, 1.0) for k in (0, 1000, 2000, 4000, 9999)]
    assert found == pytest.approx([0.996, 0.997, 0.998, 1.0, 1.0], abs=1e-12)
    assert found[3] == found[4] == 1.0, "exactly: the target is frozen at the end"
    assert targets.linear_momentum(7, 7, 0.9, 0.99) == 0.99
    assert targets.linear_momentum(-5, 7, 0.9, 0.99) == pytest.approx(0.9)
    constant = [targets.linear_momentum(k, 10, 0.99, 0.99) for k in range(12)]
    assert constant == [0.99] * 12


def test_linear_momentum_of_a_tensor_stays_a_tensor() -> None:
    step = torch.tensor([0, 2000, 4000, 5000])
    momentum = targets.linear_momentum(step, 4000, 0.996, 1.0)
    close(momentum, [0.996, 0.998, 1.0, 1.0], 1e-6)
    assert torch.equal(momentum[2:], torch.ones(2))


def test_one_step_of_the_target_is_momentum_times_old_and_the_rest_new() -> None:
    online = torch.nn.Linear(3, 2)
    target = targets.ema_copy(online)
    old = target.weight.clone()
    with torch.no_grad():
        online.weight.add_(1.0)
    for step in (0, torch.tensor(0)):
        before = target.weight.clone()
        targets.ema_update(target, online, 1 - targets.linear_momentum(step, 10, 0.996, 1.0))
        close(target.weight, (0.996 * before + 0.004 * online.weight).double(), 1e-6)
    moved = target.weight.clone()
    assert not torch.equal(moved, old)
    targets.ema_update(target, online, 1 - targets.linear_momentum(10, 10, 0.996, 1.0))
    assert torch.equal(target.weight, moved), "the last step leaves the target as it is"
