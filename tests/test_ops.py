"""Golden values of every equation in the ledger; each test is named after its function."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reverie.world_models import losses, ops, targets

BINS = ops.symmetric_bins(255, 20.0)


def close(a: torch.Tensor, b: object, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        a.double(), torch.as_tensor(b, dtype=torch.float64), atol=tolerance, rtol=tolerance
    )


def test_symlog() -> None:
    close(ops.symlog(torch.tensor([0.0, math.e - 1, 1 - math.e**2, 9.0])), [0, 1, -2, math.log(10)])


def test_symexp() -> None:
    close(ops.symexp(torch.tensor([0.0, 1.0, -2.0])), [0, math.e - 1, 1 - math.e**2])
    x = torch.linspace(-50, 50, 33)
    close(ops.symexp(ops.symlog(x)), x.double(), 1e-4)


def test_symmetric_bins() -> None:
    assert torch.equal(ops.symmetric_bins(5, 2.0), torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]))
    assert torch.equal(BINS, -BINS.flip(0))
    assert len(BINS) == 255
    with pytest.raises(ValueError, match="odd"):
        ops.symmetric_bins(4, 1.0)


def test_two_hot() -> None:
    bins = ops.symmetric_bins(5, 2.0)
    code = ops.two_hot(torch.tensor([0.25, -2.0, 2.0, 7.0, -9.0, 1.0]), bins)
    close(
        code,
        [
            [0, 0, 0.75, 0.25, 0],
            [1, 0, 0, 0, 0],
            [0, 0, 0, 0, 1],
            [0, 0, 0, 0, 1],
            [1, 0, 0, 0, 0],
            [0, 0, 0, 1, 0],
        ],
    )


@given(st.floats(-1e6, 1e6))
def test_two_hot_round_trip_and_mass(value: float) -> None:
    code = ops.two_hot(ops.symlog(torch.tensor([value])), BINS)
    assert code.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert (code > 0).sum() <= 2
    decoded = ops.symexp((code * BINS).sum(-1))
    assert decoded.item() == pytest.approx(value, rel=1e-3, abs=1e-4)


def test_two_hot_mean() -> None:
    logits = torch.full((3, 255), 0.7)
    assert torch.equal(ops.two_hot_mean(logits, BINS), torch.zeros(3)), (
        "a fresh head says exactly 0"
    )
    peaked = torch.full((255,), -1e4)
    peaked[200] = 0.0
    close(ops.two_hot_mean(peaked, BINS), ops.symexp(BINS[200]).item(), 1e-4)


def test_trap_12_two_hot_expectation_is_in_symlog_space() -> None:
    bins = ops.symmetric_bins(3, 2.0)
    logits = torch.tensor([-1e4, 0.0, 0.0])
    # half 0, half 2: symexp(1), and not the mean of symexp(0) and symexp(2)
    close(ops.two_hot_mean(logits, bins), math.e - 1)
    clamped = ops.two_hot(ops.symlog(torch.tensor([1e12, -1e12])), BINS)
    assert clamped[0, -1] == 1 and clamped[1, 0] == 1


def test_two_hot_nll() -> None:
    torch.manual_seed(0)
    logits, value = torch.randn(7, 255), torch.randn(7) * 30
    code = ops.two_hot(ops.symlog(value), BINS)
    expected = -(code * torch.log_softmax(logits, -1)).sum(-1)
    close(ops.two_hot_nll(logits, value, BINS), expected.double(), 1e-4)
    zero = ops.two_hot_nll(torch.zeros(1, 255), torch.tensor([3.0]), BINS)
    close(zero, [math.log(255)])


def test_unimix() -> None:
    prob = ops.unimix(torch.tensor([1000.0, 0.0, 0.0, 0.0]), 0.01)
    close(prob, [0.9925, 0.0025, 0.0025, 0.0025])


def test_straight_through() -> None:
    logits = torch.tensor([0.2, -0.3, 0.9], requires_grad=True)
    prob = logits.softmax(-1)
    sample = torch.tensor([0.0, 0.0, 1.0])
    out = ops.straight_through(sample, prob)
    assert torch.equal(out, sample)
    weight = torch.tensor([1.0, 2.0, 5.0])
    (grad,) = torch.autograd.grad((out * weight).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad((prob * weight).sum(), logits)
    close(grad, expected.double())


def test_categorical_sample() -> None:
    generator = torch.Generator().manual_seed(3)
    prob = torch.tensor([0.1, 0.2, 0.7])
    noise = torch.empty(20_000, 3).exponential_(generator=generator)
    sample = ops.categorical_sample(prob.expand(20_000, 3), noise)
    assert torch.equal(sample.sum(-1), torch.ones(20_000))
    close(sample.mean(0), prob.double(), 0.02)


def test_categorical_kl() -> None:
    p = torch.tensor([[[0.5, 0.5], [0.9, 0.1]]])
    q = torch.tensor([[[0.25, 0.75], [0.9, 0.1]]])
    close(ops.categorical_kl(p, q), [0.5 * math.log(2) + 0.5 * math.log(2 / 3)])
    close(ops.categorical_kl(p, p), [0.0])


@pytest.mark.parametrize(("classes", "expected"), [(16, 7.3), (32, 8.0)])
def test_trap_02_unimix_is_inside_the_kl(classes: int, expected: float) -> None:
    one, other = torch.full((1, classes), -1e4), torch.full((1, classes), -1e4)
    one[0, 0] = other[0, 1] = 0.0
    kl = ops.categorical_kl(ops.unimix(one, 0.01), ops.unimix(other, 0.01)).item()
    exact = 0.99 * math.log((0.99 + 0.01 / classes) / (0.01 / classes))
    assert kl == pytest.approx(exact, rel=1e-4)
    assert kl == pytest.approx(expected, abs=0.06)


def test_categorical_entropy() -> None:
    close(ops.categorical_entropy(torch.full((2, 3, 4), 0.25)), [3 * math.log(4)] * 2)


def loop_return(
    r: np.ndarray, d: np.ndarray, v: np.ndarray, lambda_: float, last: np.ndarray
) -> np.ndarray:
    """O(T^2): the lambda-mixture of n-step returns, written from the definition, row by row."""
    steps = len(r)
    out = np.zeros(steps)
    for t in range(steps):
        total, weight, discount, acc = 0.0, 1.0, 1.0, 0.0
        for k in range(t, steps):
            acc += discount * r[k]
            discount *= d[k]
            n_step = acc + discount * v[k]
            end = k == steps - 1 or last[k]
            total += weight * (1.0 if end else 1 - lambda_) * n_step
            if end:
                break
            weight *= lambda_
        out[t] = total
    return out


@given(st.integers(0, 10_000))
def test_lambda_return(seed: int) -> None:
    rng = np.random.default_rng(seed)
    r, v = rng.normal(size=(2, 9)), rng.normal(size=(2, 9))
    terminal = rng.random((2, 9)) < 0.15
    last = terminal | (rng.random((2, 9)) < 0.15)
    d = 0.97 * (1 - terminal)
    out = ops.lambda_return(
        torch.tensor(r),
        torch.tensor(d),
        torch.tensor(v),
        lambda_=0.8,
        is_last_tp1=torch.tensor(last),
    )
    for row in range(2):
        expected = loop_return(r[row], d[row], v[row], 0.8, last[row])
        np.testing.assert_allclose(out[row].numpy(), expected, atol=1e-9)


def test_trap_10_returns_at_termination_truncation_and_neither() -> None:
    r = torch.tensor([[1.0, 2.0, 3.0]] * 3)
    v = torch.tensor([[10.0, 20.0, 30.0]] * 3)
    terminal = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]]).float()
    last = torch.tensor([[0, 1, 0], [0, 1, 0], [0, 0, 0]]).bool()
    out = ops.lambda_return(r, 0.5 * (1 - terminal), v, lambda_=0.5, is_last_tp1=last)
    third = 3 + 0.5 * 30
    neither = 2 + 0.5 * (0.5 * 20 + 0.5 * third)
    close(
        out,
        [
            [1 + 0.5 * (0.5 * 10 + 0.5 * 2), 2.0, third],
            [1 + 0.5 * (0.5 * 10 + 0.5 * 12), 12.0, third],
            [1 + 0.5 * (0.5 * 10 + 0.5 * neither), neither, third],
        ],
    )


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_lambda_return_limits(seed: int, lambda_: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    r, v = torch.randn(1, 6, generator=generator), torch.randn(1, 6, generator=generator)
    d = torch.full((1, 6), 0.9)
    td = ops.lambda_return(r, d, v, lambda_=0.0)
    close(td, (r + d * v).double())
    full = ops.lambda_return(r, d, v, lambda_=1.0)
    powers = 0.9 ** torch.arange(6)
    close(full[:, 0], ((r * powers).sum(1) + 0.9**6 * v[:, -1]).double())
    mixed = ops.lambda_return(r, d, v, lambda_=lambda_)
    assert mixed.abs().max() <= 10 * max(r.abs().max(), v.abs().max()) + 1e-5


def test_infinite_reward_one_has_value_one_over_one_minus_gamma() -> None:
    gamma, value = 0.9, torch.tensor(0.0)
    for _ in range(400):
        ones = torch.ones(1, 5)
        value = ops.lambda_return(ones, gamma * ones, value * ones, lambda_=0.95)[0, 0]
    assert value.item() == pytest.approx(1 / (1 - gamma), rel=1e-4)


def test_percentile_scale() -> None:
    returns = torch.arange(101.0)
    low, high, scale = ops.percentile_scale(
        returns, torch.tensor(0.0), torch.tensor(0.0), decay=0.5
    )
    close(torch.stack([low, high, scale]), [2.5, 47.5, 45.0])
    assert ops.percentile_scale(returns * 1e-3, low * 0, high * 0)[2] == 1.0, "floor of 1"
    drawn = torch.randn(37, 11, generator=torch.Generator().manual_seed(0))
    exact = torch.quantile(drawn, torch.tensor([0.05, 0.95]))
    found = ops.percentile_scale(drawn, torch.zeros(()), torch.zeros(()), decay=0.0)
    assert torch.equal(torch.stack(found[:2]), exact)


def test_trajectory_weight() -> None:
    weight = ops.trajectory_weight(torch.tensor([[0.9, 0.9, 0.0, 0.9]]), 0.9)
    close(weight, [[1.0, 0.9, 0.0, 0.0]])
    assert ops.trajectory_weight(torch.tensor([[0.0, 0.9]]), 0.9).sum() == 0, "root continuation"


def test_trap_11_imagined_weights_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    cont = (rng.random((4, 7)) < 0.8).astype(np.float64)
    weight = ops.trajectory_weight(torch.tensor(0.95 * cont), 0.95).numpy()
    for m in range(4):
        product = 1.0
        for t in range(7):
            product *= cont[m, t] * (0.95 if t else 1.0)
            assert weight[m, t] == pytest.approx(product)


def test_trap_13_one_discount_factor_per_imagined_step() -> None:
    gamma = 1 - 1 / 333
    weight = ops.trajectory_weight(torch.full((1, 5), gamma), gamma)
    close(weight[0, 1:] / weight[0, :-1], [gamma] * 4)
    out = ops.lambda_return(
        torch.zeros(1, 4), torch.full((1, 4), gamma), torch.ones(1, 4), lambda_=1.0
    )
    close(out[0, 0], gamma**4)


def test_normal_log_prob() -> None:
    out = ops.normal_log_prob(
        torch.tensor([0.3, -1.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.5, 2.0])
    )
    dist = torch.distributions.Normal(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 2.0]))
    close(out, dist.log_prob(torch.tensor([0.3, -1.0])).sum().item())


def test_normal_entropy() -> None:
    close(
        ops.normal_entropy(torch.tensor([0.5, 2.0])),
        torch.distributions.Normal(torch.zeros(2), torch.tensor([0.5, 2.0])).entropy().sum().item(),
    )


def test_feature_std() -> None:
    x = torch.tensor([[0.0, 5.0], [2.0, 5.0]])
    close(ops.feature_std(x), 0.5)
    assert ops.feature_std(torch.ones(4, 3)) == 0


def test_effective_rank() -> None:
    close(ops.effective_rank(torch.eye(6)), 6.0, 1e-4)
    close(ops.effective_rank(torch.ones(8, 5)), 1.0, 1e-3)


def test_kl_balanced() -> None:
    p = torch.tensor([[[[0.9, 0.1], [0.9, 0.1]]]], requires_grad=True)
    q = torch.tensor([[[[0.1, 0.9], [0.9, 0.1]]]], requires_grad=True)
    dyn, rep = losses.kl_balanced(p, q, 1.0)
    exact = 0.8 * math.log(9)
    close(dyn, [[exact]])
    close(rep, [[exact]])
    assert torch.autograd.grad(dyn.sum(), p, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(rep.sum(), q, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(dyn.sum(), q)[0].abs().sum() > 0
    small = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]]]], requires_grad=True)
    near = torch.tensor([[[[0.6, 0.4], [0.5, 0.5]]]], requires_grad=True)
    dyn, rep = losses.kl_balanced(small, near, 1.0)
    assert dyn.item() == rep.item() == 1.0
    grads = torch.autograd.grad((dyn + rep).sum(), [small, near])
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads), "free bits stop the gradient"


def test_trap_03_free_bits_clip_the_sum_over_groups_per_step() -> None:
    # step 1: two groups of 0.6 nats; step 2: none
    a = torch.tensor([1 - 1e-6, 1e-6])
    q = torch.tensor([math.exp(-0.6), 1 - math.exp(-0.6)])
    p_all = torch.stack([torch.stack([a, a]), torch.stack([a, a])])[None]
    q_all = torch.stack([torch.stack([q, q]), torch.stack([a, a])])[None]
    per_step = losses.kl_balanced(p_all, q_all, 1.0)[0].mean().item()
    kl = ops.categorical_kl(p_all.unsqueeze(-2), q_all.unsqueeze(-2))
    per_group = kl.clamp_min(1.0).sum(-1).mean().item()
    after_mean = max(ops.categorical_kl(p_all, q_all).mean().item(), 1.0)
    assert per_step == pytest.approx(1.1, abs=1e-3)
    assert per_group == pytest.approx(2.0, abs=1e-3)
    assert after_mean == pytest.approx(1.0, abs=1e-3)


def test_continue_nll() -> None:
    logit = torch.tensor([[0.0, 2.0]])
    close(
        losses.continue_nll(logit, torch.tensor([[True, False]])),
        [[math.log(2), math.log(1 + math.exp(-2))]],
    )


def test_continuous_action_nll() -> None:
    mean, std, action = torch.zeros(1, 1, 1), torch.ones(1, 1, 1), torch.ones(1, 1, 1)
    close(losses.continuous_action_nll(mean, std, action), [[0.5 + 0.5 * math.log(2 * math.pi)]])


def test_discrete_action_nll() -> None:
    prob = torch.tensor([[[0.2, 0.8]]])
    close(losses.discrete_action_nll(prob, torch.tensor([[[1.0, 0.0]]])), [[-math.log(0.2)]])


def test_image_mse() -> None:
    close(losses.image_mse(torch.zeros(1, 1, 3, 2, 2), torch.full((1, 1, 3, 2, 2), 0.5)), [[3.0]])


def test_actor_loss() -> None:
    out = losses.actor_loss(
        torch.tensor([[2.0]]), torch.tensor([[1.0]]), torch.tensor([[0.5]]), 0.1
    )
    close(out, [[-0.5 * 2.1]])


def test_ema_copy() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    copy = targets.ema_copy(net)
    assert not any(p.requires_grad for p in copy.parameters())
    assert not any(m.training for m in copy.modules())
    assert copy[0].weight.data_ptr() != net[0].weight.data_ptr()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_ema_update(as_tensor: bool) -> None:
    net = torch.nn.BatchNorm1d(2)
    copy = targets.ema_copy(net)
    with torch.no_grad():
        net.weight.fill_(3.0)
        net.running_mean.fill_(8.0)
        net.num_batches_tracked.fill_(5)
    targets.ema_update(copy, net, torch.tensor(0.25) if as_tensor else 0.25)
    close(copy.weight, [1.5, 1.5])
    close(copy.running_mean, [2.0, 2.0])
    assert copy.num_batches_tracked == 5
    before = copy.weight.clone()
    targets.ema_update(copy, net, torch.tensor(0.0))
    assert torch.equal(copy.weight, before)


def test_frozen_alias() -> None:
    net = torch.nn.Linear(2, 1)
    alias = targets.frozen_alias(net)
    x = torch.ones(1, 2, requires_grad=True)
    alias(x).sum().backward()
    assert x.grad is not None and net.weight.grad is None
    with torch.no_grad():
        net.weight.add_(1.0)
    assert torch.equal(alias.weight, net.weight), "the alias sees an in-place step"
