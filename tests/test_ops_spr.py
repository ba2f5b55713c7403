"""Golden values and plain-loop oracles of SPR's equations and of the Barlow Twins loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from reverie.world_models import losses, ops

ATOMS = torch.linspace(-10.0, 10.0, 51)
SEEDS = st.integers(0, 10_000)


def close(a: Tensor, b: object, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        a.double(), torch.as_tensor(b, dtype=torch.float64), atol=tolerance, rtol=tolerance
    )


def test_renormalise() -> None:
    latent = torch.tensor([[[[2.0, 4.0]], [[3.0, 6.0]]], [[[5.0, 5.0]], [[5.0, 5.0]]]])
    close(ops.renormalise(latent), [[[[0.0, 0.5]], [[0.25, 1.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])
    tiny = 1e-7 * torch.arange(4.0).reshape(1, 2, 2)
    close(ops.renormalise(tiny), tiny.double() / 1e-5, 1e-6)


def test_renormalise_ignores_scale_and_shift_and_carries_gradient() -> None:
    latent = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    out = ops.renormalise(latent)
    assert torch.equal(out.amin((-3, -2, -1)), torch.zeros(2, 3))
    assert torch.equal(out.amax((-3, -2, -1)), torch.ones(2, 3))
    close(ops.renormalise(7 * latent - 3), out.double())
    x = latent[0, :1].double().requires_grad_()
    torch.autograd.gradcheck(ops.renormalise, x)


def loop_n_step(
    r: np.ndarray, last: np.ndarray, terminal: np.ndarray, gamma: float, steps: int
) -> tuple[float, float]:
    total, discount = 0.0, 1.0
    for k in range(steps):
        total += discount * r[k]
        discount *= gamma
        if last[k]:
            return total, 0.0 if terminal[k] else discount
    return total, discount


@given(SEEDS, st.integers(1, 6), st.booleans())
def test_n_step_return(seed: int, steps: int, on_device: bool) -> None:
    rng = np.random.default_rng(seed)
    r = rng.normal(size=(4, 6))
    terminal = rng.random((4, 8)) < 0.15
    last = terminal | (rng.random((4, 8)) < 0.15)
    total, discount = ops.n_step_return(
        torch.tensor(r),
        torch.tensor(last),
        torch.tensor(terminal),
        gamma=torch.tensor(0.9, dtype=torch.float64) if on_device else 0.9,
        steps=torch.tensor(steps) if on_device else steps,
    )
    for b in range(4):
        expected = loop_n_step(r[b], last[b], terminal[b], 0.9, steps)
        np.testing.assert_allclose([total[b], discount[b]], expected, atol=1e-12)


def test_n_step_return_at_termination_time_limit_and_neither() -> None:
    r = torch.tensor([[1.0, 2.0, 4.0]] * 3, requires_grad=True)
    last = torch.tensor([[0, 1, 0], [0, 1, 0], [0, 0, 0]]).bool()
    terminal = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]]).bool()
    total, discount = ops.n_step_return(r, last, terminal, gamma=0.5, steps=3)
    close(total, [2.0, 2.0, 3.0])
    close(discount, [0.0, 0.25, 0.125])
    assert not total.requires_grad and not discount.requires_grad
    close(ops.n_step_return(r[:, :1], last, terminal, gamma=0.5, steps=1)[1], [0.5] * 3)


def loop_projection(p: Tensor, reward: float, discount: float, atoms: Tensor) -> Tensor:
    """The textbook double loop with floor and ceiling, in float64."""
    low, high = atoms[0].item(), atoms[-1].item()
    delta = (high - low) / (len(atoms) - 1)
    out = torch.zeros(len(atoms), dtype=torch.float64)
    for j in range(len(atoms)):
        moved = min(max(reward + discount * atoms[j].item(), low), high)
        b = round((moved - low) / delta, 9)
        below, above = math.floor(b), math.ceil(b)
        if below == above:
            out[below] += p[j].item()
        else:
            out[below] += p[j].item() * (above - b)
            out[above] += p[j].item() * (b - below)
    return out


def test_categorical_projection_of_exact_hits_and_ends() -> None:
    atoms = torch.tensor([-1.0, 0.0, 1.0])
    prob = torch.tensor([[0.2, 0.3, 0.5]])

    def project(reward: float, discount: float) -> Tensor:
        return ops.categorical_projection(
            prob, torch.tensor([reward]), torch.tensor([discount]), atoms
        )

    assert torch.equal(project(0.0, 1.0), prob), "nothing moves"
    close(project(1.0, 1.0), [[0.0, 0.2, 0.8]])
    close(project(-1.0, 0.0), [[1.0, 0.0, 0.0]])
    close(project(0.5, 0.5), [[0.0, 0.2 + 0.15, 0.15 + 0.5]])
    close(project(0.25, 0.0), [[0.0, 0.75, 0.25]])
    close(project(99.0, 1.0), [[0.0, 0.0, 1.0]])


@given(SEEDS)
def test_categorical_projection(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prob = torch.randn(6, 51, generator=generator).softmax(-1)
    reward = torch.tensor([0.0, 1.0, -0.4, 9.7, -30.0, 30.0])
    discount = torch.tensor([1.0, 0.99, 0.5, 0.97, 0.9, 0.0])
    out = ops.categorical_projection(prob.requires_grad_(), reward, discount, ATOMS)
    assert not out.requires_grad
    for b in range(6):
        expected = loop_projection(prob[b], reward[b].item(), discount[b].item(), ATOMS)
        close(out[b], expected, 2e-6)


@given(SEEDS, st.floats(-0.5, 0.5), st.floats(0.0, 0.9))
def test_categorical_projection_keeps_mass_and_mean(
    seed: int, reward: float, discount: float
) -> None:
    prob = torch.randn(1, 51, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    out = ops.categorical_projection(prob, torch.tensor([reward]), torch.tensor([discount]), ATOMS)
    assert out.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert out.min() >= 0
    mean = reward + discount * (prob * ATOMS).sum().item()
    assert (out * ATOMS).sum().item() == pytest.approx(mean, abs=1e-4), "all of it is inside"


def test_sequence_mask() -> None:
    last = torch.zeros(5, 4, dtype=torch.bool)
    for row in range(4):
        last[row, row] = True
    # the last row at t+1, t+2, t+3, t+4, none; o_{t+k} itself is lost where t+k+1 is last
    close(ops.sequence_mask(last), [[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]])


@given(SEEDS)
def test_sequence_mask_equals_the_flags_of_the_released_code(seed: int) -> None:
    rng = np.random.default_rng(seed)
    done = rng.random((3, 6)) < 0.2  # done[i]: the action taken at o_{t+i} ended the episode
    mask = ops.sequence_mask(torch.tensor(done))  # and row t+i+1 is what it led to
    for b in range(3):
        assert mask[b].tolist() == [float(not done[b, : k + 1].any()) for k in range(1, 6)]
    assert (mask[:, 1:] <= mask[:, :-1]).all(), "what is behind an end stays masked"


def pad_and_crop(image: Tensor, offset: Tensor, pad: int) -> Tensor:
    padded = F.pad(image.float(), (pad,) * 4, mode="replicate").to(image.dtype)
    height, width = image.shape[-2:]
    return torch.stack(
        [
            frame[:, y : y + height, x : x + width]
            for frame, (y, x) in zip(padded, offset.tolist(), strict=True)
        ]
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_random_shift(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (25, 4, 6, 9), generator=generator).to(dtype)
    offset = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    out = ops.random_shift(image, offset, 2)
    assert out.dtype == dtype
    assert torch.equal(out, pad_and_crop(image, offset, 2))
    assert torch.equal(ops.random_shift(image, torch.full((25, 2), 2), 2), image)
    strided = image.movedim(1, -1).contiguous().movedim(-1, 1)
    assert torch.equal(ops.random_shift(strided, offset, 2), out)


def test_random_shift_moves_all_channels_together() -> None:
    frame = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    out = ops.random_shift(frame.expand(1, 4, 8, 8), torch.tensor([[0, 7]]), 4)
    assert torch.equal(out, out[:, :1].expand(1, 4, 8, 8))
    assert out[0, 0, 4, 0] == 3, "row 4 of the padded image is row 0; column 0 is column 3"


def test_spr_loss() -> None:
    prediction = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [-0.5, 0.0], [1.0, 0.0]]])
    target = torch.tensor([[[9.0, 0.0], [1.0, 0.0], [4.0, 0.0], [-1.0, 0.0]]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    close(losses.spr_loss(prediction, target, mask), [(0 + 2 + 4 + 0) / 4])
    for k, expected in enumerate([0.0, 2.0, 4.0, 4.0]):
        one = losses.spr_loss(prediction[:, k : k + 1], target[:, k : k + 1], torch.ones(1, 1))
        close(one, [expected])
    short = torch.tensor([[[5e-4, 0.0]]])
    close(losses.spr_loss(short, target[:, :1], torch.ones(1, 1)), [0.25])
    zero = torch.zeros(1, 1, 2, requires_grad=True)
    out = losses.spr_loss(zero, target[:, :1], torch.ones(1, 1))
    close(out, [1.0])
    assert torch.isfinite(torch.autograd.grad(out.sum(), zero)[0]).all()


def test_spr_loss_weights_of_code_and_paper_agree() -> None:
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 3, 5, 8)
    prediction.requires_grad_()
    target.requires_grad_()
    code = 5 * losses.spr_loss(prediction, target, torch.ones(3, 5))
    paper = 2 * (1 - F.cosine_similarity(prediction, target, dim=-1)).sum(1)
    close(code, paper.double())
    (grad,) = torch.autograd.grad(code.sum(), prediction, retain_graph=True)
    (expected,) = torch.autograd.grad(paper.sum(), prediction, retain_graph=True)
    close(grad, expected.double())
    assert torch.autograd.grad(code.sum(), target, allow_unused=True)[0] is None
    half = losses.spr_loss(prediction.bfloat16(), target.bfloat16(), torch.ones(3, 5))
    assert half.dtype == torch.float32


def test_categorical_nll() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], requires_grad=True)
    target = torch.tensor([[0.3, 0.7], [1.0, 0.0]], requires_grad=True)
    out = losses.categorical_nll(logits, target)
    close(out, [math.log(2), math.log(4 / 3)])
    grads = torch.autograd.grad(out.sum(), [logits, target], allow_unused=True)
    assert grads[1] is None
    assert grads[0] is not None
    close(grads[0], (logits.softmax(-1) - target).detach())


def test_barlow_loss() -> None:
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)
    close(losses.barlow_loss(signs, 3 * signs + 5), 0.0, 1e-4)
    same = signs[:, :1].expand(16, 4)
    close(losses.barlow_loss(same, same), 5e-3 * 4 * 3, 1e-4)
    close(losses.barlow_loss(same, same, 0.1), 0.1 * 4 * 3, 1e-3)
    close(losses.barlow_loss(signs[:, :2], signs[:, 2:]), 2.0)
    close(losses.barlow_loss(signs, -signs), 4 * 4.0, 1e-3)
    close(losses.barlow_loss(torch.ones(16, 4), signs), 4.0)


def test_barlow_loss_anchor_of_independent_views_and_gradients() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(2, 4096, 8)
    left.requires_grad_()
    right.requires_grad_()
    out = losses.barlow_loss(left, right)
    assert out.item() == pytest.approx(8.0, abs=0.3)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(out, [left, right]))
    mixed = (left + 0.3 * right).detach()
    score = [F.batch_norm(x.double(), None, None, training=True) for x in (left, mixed)]
    error = (score[0].T @ score[1] / 4096 - torch.eye(8)).square()
    expected = error.trace() + 5e-3 * (error.sum() - error.trace())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close(losses.barlow_loss(left, mixed), expected)
    constant = torch.ones(4, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(losses.barlow_loss(constant, torch.randn(4, 3)), constant)
    assert torch.isfinite(grad).all()


def test_importance_weight() -> None:
    p = torch.tensor([0.25, 1.0, 4.0], requires_grad=True)
    want = np.array([(x + 1e-5) ** -0.5 for x in (0.25, 1.0, 4.0)])
    for beta in (0.5, torch.tensor(0.5)):
        found = losses.importance_weight(p, beta)
        np.testing.assert_allclose(found.detach(), want / want.max(), rtol=1e-6)
        assert not found.requires_grad
    assert torch.equal(losses.importance_weight(p, 0.0), torch.ones(3))


def test_distribution_kl() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=g, requires_grad=True)
    target = torch.rand(5, 7, generator=g).softmax(-1)
    target[0] = torch.eye(7)[3]
    nll = losses.categorical_nll(logits, target)
    p = logits.detach().softmax(-1).double()
    want = [
        sum(float(y * torch.log(y / q)) for y, q in zip(row.double(), other, strict=True) if y > 0)
        for row, other in zip(target, p, strict=True)
    ]
    found = losses.distribution_kl(nll, target)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    assert not found.requires_grad and bool((found > 0).all())
    same = logits.detach().softmax(-1)
    zero = losses.distribution_kl(losses.categorical_nll(logits, same), same)
    np.testing.assert_allclose(zero, np.zeros(5), atol=1e-6)
