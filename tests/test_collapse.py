"""Anchors of the guards against collapse, of the numbers that reveal it, and of linear probes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from reverie.world_models import collapse, ops, probes

Array = NDArray[np.float64]


def close(a: Tensor, b: object, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        a.double(), torch.as_tensor(b, dtype=torch.float64), atol=tolerance, rtol=tolerance
    )


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def directions(width: int, count: int = 1024) -> Tensor:
    return collapse.unit_directions(normal(width, count, seed=99))


def test_unit_directions() -> None:
    close(collapse.unit_directions(torch.tensor([[3.0, 0.0], [4.0, -2.0]])), [[0.6, 0], [0.8, -1]])
    u = directions(64, 4096)
    close(u.square().sum(0), [1.0] * 4096)
    close(u @ u.T / 4096, torch.eye(64) / 64, 2e-3)
    assert not collapse.unit_directions(normal(4, 2).requires_grad_()).requires_grad


def quadrature() -> tuple[Array, Array]:
    """Knots, and weights of the doubled trapezoid times the window."""
    t = np.arange(17) * 3 / 16
    weight = np.full(17, 2 * 3 / 16)
    weight[[0, -1]] = 3 / 16
    return t, weight * np.exp(-(t**2) / 2)


def loop_sigreg(z: Array, u: Array) -> float:
    """One direction, one knot, one complex mean at a time."""
    t, weight = quadrature()
    total = 0.0
    for m in range(u.shape[1]):
        for knot, w in zip(t, weight, strict=True):
            phi = np.exp(1j * knot * (z @ u[:, m])).mean()
            total += w * abs(phi - np.exp(-(knot**2) / 2)) ** 2
    return len(z) * total / u.shape[1]


def test_sigreg() -> None:
    z, u = 0.7 * normal(9, 5) + 0.3, directions(5, 6)
    expected = loop_sigreg(z.double().numpy(), u.double().numpy())
    assert collapse.sigreg(z, u).item() == pytest.approx(expected, rel=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = collapse.sigreg(z, u)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("sigma", "slope", "constant"),
    [
        (0.0, 0.4020, 0.0),
        (0.1, 0.3869, 0.0240),
        (0.5, 0.1512, 0.4535),
        (1.0, 0.0, 1.0525),
        (2.0, 0.2361, 1.6641),
    ],
)
def test_sigreg_grows_with_the_number_of_samples_unless_they_are_standard_normal(
    sigma: float, slope: float, constant: float
) -> None:
    # E = N sum_k w_k (e^{-s^2 t^2/2} - e^{-t^2/2})^2 + sum_k w_k (1 - e^{-s^2 t^2})
    t, weight = quadrature()
    shrunk = np.exp(-((sigma * t) ** 2) / 2)
    a = (weight * (shrunk - np.exp(-(t**2) / 2)) ** 2).sum()
    b = (weight * (1 - shrunk**2)).sum()
    assert (a, b) == pytest.approx((slope, constant), abs=6e-5)
    for count in (128, 512, 1024):
        for width in (32, 192):
            values = [
                collapse.sigreg(sigma * normal(count, width, seed=seed), directions(width, 256))
                for seed in range(4)
            ]
            found = torch.stack(values).mean().item()
            assert found == pytest.approx(slope * count + constant, rel=0.03, abs=0.12)


def test_sigreg_of_zeros_of_standard_normals_and_of_one_direction() -> None:
    u = directions(192)
    assert collapse.sigreg(torch.zeros(128, 192), u).item() == pytest.approx(51.46, abs=0.005)
    for seed in range(3):
        assert 0.99 < collapse.sigreg(normal(256, 192, seed=seed), u) < 1.18
    equal = normal(1024, 1).expand(1024, 192)
    assert collapse.sigreg(equal, u).item() / 1024 == pytest.approx(0.165, abs=0.01)


@pytest.mark.parametrize("garbage", [50.0, float("nan")])
def test_sigreg_ignores_samples_of_weight_zero(garbage: float) -> None:
    z, u = normal(40, 8), directions(8, 32)
    weight = (torch.arange(40) % 3 > 0).float()
    wild = torch.where(weight.unsqueeze(-1) > 0, z, garbage).requires_grad_()
    found = collapse.sigreg(wild, u, weight)
    close(found, collapse.sigreg(z[weight > 0], u).item())
    (gradient,) = torch.autograd.grad(found, wild)
    assert torch.equal(gradient.abs().sum(1) > 0, weight > 0)
    close(collapse.sigreg(z, u, torch.ones(40)), collapse.sigreg(z, u).item())
    close(collapse.sigreg(z, u, weight > 0), found.item())
    nothing = collapse.sigreg(z.requires_grad_(), u, torch.zeros(40))
    assert nothing == 0
    assert torch.equal(torch.autograd.grad(nothing, z)[0], torch.zeros(40, 8))


def test_sigreg_carries_gradient_to_the_samples_alone_and_spreads_them() -> None:
    z = (0.05 * normal(64, 4)).requires_grad_()
    u = directions(4, 64).requires_grad_()
    gradients = torch.autograd.grad(collapse.sigreg(z, u), [z, u], allow_unused=True)
    assert gradients[1] is None
    code = z.detach().clone()
    optimiser = torch.optim.Adam([code.requires_grad_()], lr=0.05)
    for step in range(150):
        optimiser.zero_grad()
        collapse.sigreg(code, collapse.unit_directions(normal(4, 64, seed=step))).backward()
        optimiser.step()
    close(code.detach().std(0), torch.ones(4), 0.2)
    assert collapse.top_eigenvalue_share(code.detach()) < 0.4


def test_vicreg_variance() -> None:
    close(collapse.vicreg_variance(torch.full((8, 3), 2.5)), 0.99)
    # unbiased variances 0.5, 2 and 0: the second is past the hinge
    z = torch.tensor([[0.0, 1.0, 4.0], [1.0, 3.0, 4.0]])
    close(collapse.vicreg_variance(z), (1 - np.sqrt(0.5001) + 0 + 0.99) / 3)
    assert collapse.vicreg_variance(1.2 * normal(4096, 16)) == 0
    assert collapse.vicreg_variance(normal(4096, 16)) < 0.01
    z = z.requires_grad_()
    (gradient,) = torch.autograd.grad(collapse.vicreg_variance(z), z)
    assert gradient[0, 0] > 0 > gradient[1, 0], "a descent step pulls the samples apart"
    assert torch.equal(gradient[:, 1:], torch.zeros(2, 2))


def test_vicreg_covariance() -> None:
    assert collapse.vicreg_covariance(torch.full((8, 3), 2.5)) == 0
    one = normal(64, 1)
    equal = (one / one.std()).expand(64, 12)
    close(collapse.vicreg_covariance(equal), 11.0, 1e-4)
    z = torch.tensor([[1.0, 0.0], [2.0, 4.0], [3.0, 2.0]], requires_grad=True)
    close(collapse.vicreg_covariance(z), 1.0)  # C_01 = 1, twice, over D = 2
    assert torch.autograd.grad(collapse.vicreg_covariance(z), z)[0].abs().sum() > 0
    few, many = (collapse.vicreg_covariance(normal(n, 16)).item() for n in (256, 16384))
    assert few == pytest.approx(15 / 256, rel=0.3)
    assert many == pytest.approx(15 / 16384, rel=0.3)
    exact = collapse.vicreg_covariance(0.3 * normal(64, 12)).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert collapse.vicreg_covariance(0.3 * normal(64, 12)).item() == exact


def test_cosine_to_mean() -> None:
    close(collapse.cosine_to_mean(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), np.sqrt(0.5))
    close(collapse.cosine_to_mean(torch.tensor([[1.0, 2.0]]).expand(6, 2)), 1.0)
    scaled = torch.tensor([[2.0, 4.0], [0.5, 1.0], [1.0, 2.0]])
    close(collapse.cosine_to_mean(scaled), 1.0)
    assert collapse.cosine_to_mean(normal(4096, 64)).item() == pytest.approx(1 / 64, abs=0.01)
    assert collapse.cosine_to_mean(torch.zeros(4, 3)) == 0


def test_loss_over_mean_prediction() -> None:
    target = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    ratio = collapse.loss_over_mean_prediction
    close(ratio(target.mean(0).expand(2, 2), target), 1.0)
    close(ratio(target + 0.25, target), 0.25)
    close(ratio(target, target), 0.0)
    close(ratio(target.mean(0) + torch.tensor([[0.0, 2.0]]).expand(2, 2), target), 1.5)
    constant = torch.full((4, 3), 0.7)
    assert ratio(constant, constant) == 1, "a code without spread is not predicted well"
    assert ratio(constant + 0.1, constant) > 1000


def test_top_eigenvalue_share() -> None:
    z = normal(512, 6) @ normal(6, 6, seed=1) + 3
    values = np.linalg.eigvalsh(np.cov(z.double().numpy(), rowvar=False))
    close(collapse.top_eigenvalue_share(z), values[-1] / values.sum(), 1e-4)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)
    close(collapse.top_eigenvalue_share(signs), 0.25)
    close(collapse.top_eigenvalue_share(signs[:, :1].expand(16, 4)), 1.0)
    close(collapse.top_eigenvalue_share(torch.full((16, 4), 0.5)), 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close(collapse.top_eigenvalue_share(z), values[-1] / values.sum(), 1e-4)


@pytest.mark.parametrize("width", [64, 192])
@pytest.mark.parametrize(("ratio", "share"), [(16, 0.99), (8, 0.98), (2, 0.93)])
def test_effective_rank_of_standard_normals(width: int, ratio: int, share: float) -> None:
    rank = ops.effective_rank(normal(ratio * width, width)).item()
    assert rank / width == pytest.approx(share, abs=0.01)


def rankme(z: Tensor) -> float:
    """As published: every share of the singular values raised by 1e-7, samples not centred."""
    sigma = np.linalg.svd(z.double().numpy(), compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


def test_effective_rank_is_rankme_as_published() -> None:
    low = normal(1024, 5) @ normal(5, 64, seed=1)
    for z in (normal(1024, 64), normal(1024, 64) + 3, low, torch.full((1024, 64), 0.7)):
        assert ops.effective_rank(z).item() == pytest.approx(rankme(z), rel=1e-3)
    assert ops.effective_rank(torch.full((1024, 64), 0.7)).item() == pytest.approx(1.0, abs=1e-3)


def test_rank_of_centred_rounding_noise_is_high_and_misleading() -> None:
    constant = 0.7 + 1e-7 * normal(1024, 64)
    assert constant.unique().numel() < 20, "a handful of neighbouring float32 numbers"
    assert ops.effective_rank(constant).item() == pytest.approx(1.0, abs=1e-3)
    assert ops.effective_rank(constant - constant.mean(0)) > 50
    # what does reveal it
    assert ops.feature_std(constant) < 1e-6
    close(collapse.cosine_to_mean(constant), 1.0)


def gates(z: Tensor, prediction: Tensor) -> dict[str, bool]:
    return {
        "std": ops.feature_std(z).item() > 0.45,
        "cosine": collapse.cosine_to_mean(z).item() < 0.9,
        "ratio": collapse.loss_over_mean_prediction(prediction, z).item() < 0.6,
        "share": collapse.top_eigenvalue_share(z).item() < 0.7,
    }


def test_the_numbers_tell_healthy_from_collapsed_and_half_collapsed_codes() -> None:
    layer = torch.nn.LayerNorm(64)
    with torch.no_grad():
        source = normal(1024, 12) @ normal(12, 64, seed=1)
        healthy = layer(source + 2 * normal(64, seed=2))
        assert all(gates(healthy, healthy + 0.1 * normal(1024, 64, seed=3)).values())
        constant = layer(1e-3 * source + 2 * normal(64, seed=2))
        found = gates(constant, constant.mean(0) + 1e-2 * normal(1024, 64, seed=3))
        assert found == {"std": False, "cosine": False, "ratio": False, "share": True}
        line = layer(3 * normal(1024, 1) * normal(64, seed=4) + 0.1 * source)
        assert not gates(line, line)["share"]


def test_code_information() -> None:
    sure = torch.eye(2)[:, None].repeat(1, 3, 1).clamp(1e-7, 1 - 1e-7)  # [N, S, C]
    close(collapse.code_information(sure), 3 * np.log(2))  # three groups, two samples
    close(collapse.code_information(sure[:1]), 0.0)
    close(collapse.code_information(torch.full((5, 3, 4), 0.25)), 0.0)
    leaning = torch.tensor([[[0.75, 0.25]], [[0.25, 0.75]]])
    close(collapse.code_information(leaning), 0.75 * np.log(1.5) + 0.25 * np.log(0.5))


def test_a_covariance_of_few_samples_has_the_same_eigenvalues() -> None:
    wide = normal(6, 40)
    centred = (wide - wide.mean(0)).double().numpy()
    eigenvalues = np.linalg.svd(centred, compute_uv=False) ** 2
    close(collapse.top_eigenvalue_share(wide), eigenvalues[0] / eigenvalues.sum())


def test_ridge_fit() -> None:
    x = np.array([[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5], [4.0, 4.0], [0.0, 1.0]])
    y = np.array([[1.0], [2.0], [-3.0], [0.5], [4.0]])
    u = (x - x.mean(0)) / x.std(0)
    inner = np.linalg.solve(u.T @ u / 5 + 0.3 * np.eye(2), u.T @ (y - y.mean()) / 5)
    weight, bias = probes.ridge_fit(torch.tensor(x).float(), torch.tensor(y).float(), 0.3)
    assert weight.dtype == bias.dtype == torch.float64
    close(weight, inner / x.std(0)[:, None], 1e-6)
    close(bias, y.mean(0) - x.mean(0) @ (inner / x.std(0)[:, None]), 1e-6)
    with pytest.raises(ValueError, match="> 0, found 0"):
        probes.ridge_fit(torch.tensor(x), torch.tensor(y), 0.0)


def test_ridge_fit_recovers_a_line_and_the_penalty_shrinks_it_to_the_mean() -> None:
    x = 5 * normal(200, 7) + 30
    true = normal(7, 3, seed=1).double()
    y = (x.double() @ true + 4).requires_grad_()
    weight, bias = probes.ridge_fit(x, y, 1e-10)
    assert not weight.requires_grad
    close(weight, true, 1e-6)
    close(bias, [4.0] * 3, 1e-4)
    heavy, constant = probes.ridge_fit(x, y, 1e9)
    assert heavy.abs().max() < 1e-6
    close(constant, y.mean(0).detach(), 1e-4)


def test_ridge_fit_means_the_same_for_every_unit_and_number_of_samples() -> None:
    x, y = normal(50, 4), normal(50, 2, seed=1)
    known = probes.ridge_predict(x, *probes.ridge_fit(x, y, 0.5))
    units = x * torch.tensor([1e-3, 1.0, 7.0, 1e4]) - 2
    close(probes.ridge_predict(units, *probes.ridge_fit(units, y, 0.5)), known, 1e-4)
    twice = probes.ridge_fit(x.repeat(2, 1), y.repeat(2, 1), 0.5)
    close(probes.ridge_predict(x, *twice), known, 1e-9)


@pytest.mark.parametrize("count", [6, 12, 13, 40])
def test_ridge_fit_solves_the_normal_equations_with_few_and_with_many_samples(count: int) -> None:
    x, y = normal(count, 12) * 3 + 1, normal(count, 2, seed=1)
    weight, bias = probes.ridge_fit(x, y, 0.1)
    x, y = x.double(), y.double()
    std = x.std(0, correction=0)
    error = y - probes.ridge_predict(x, weight, bias)
    close(error.mean(0), [0.0, 0.0], 1e-9)
    slope = ((x - x.mean(0)) / std).T @ error / count - 0.1 * std.unsqueeze(1) * weight
    close(slope, torch.zeros(12, 2), 1e-9)


def test_ridge_fit_gives_no_weight_to_what_varies_by_rounding_alone() -> None:
    x, y = normal(64, 5), normal(64, 2, seed=1)
    x[:, 1], x[:, 3] = 0.1, 0.0
    x[:, 2] = 0.7 + 6e-8 * normal(64, seed=2)
    weight, bias = probes.ridge_fit(x, y, 1e-6)
    assert torch.equal(weight[1:4], torch.zeros(3, 2, dtype=torch.float64))
    assert weight[[0, 4]].abs().min() > 0 and bool(torch.isfinite(bias).all())
    x[:, 2] = 0.7 + 1e-3 * normal(64, seed=2)
    assert probes.ridge_fit(x, y, 1e-6)[0][2].abs().min() > 0, "a collapsed code still speaks"


def test_ridge_predict() -> None:
    weight = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
    found = probes.ridge_predict(torch.tensor([[1.0, 3.0]]), weight, torch.tensor([0.5]).double())
    assert found.dtype == torch.float64
    close(found, [[-0.5]])


Equation = Callable[[Tensor], Tensor]


@pytest.mark.parametrize("equation", [collapse.top_eigenvalue_share, ops.effective_rank])
@pytest.mark.parametrize("shape", [(40, 6), (6, 40)], ids=["tall", "wide"])
def test_decompositions_of_what_is_not_finite_are_not_a_number(
    equation: Equation, shape: tuple[int, int]
) -> None:
    z = normal(*shape)
    assert torch.isfinite(equation(z))
    for wrong in (torch.nan, torch.inf, -torch.inf):
        broken = z.clone()
        broken[3, 2] = wrong
        assert equation(broken).isnan(), wrong
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(equation(z), z)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_a_covariance_that_overflows_has_no_share() -> None:
    for shape in ((40, 6), (6, 40)):
        assert collapse.top_eigenvalue_share(1e30 * normal(*shape)).isnan()


@pytest.mark.parametrize(
    "equation",
    [
        lambda z: collapse.sigreg(z, collapse.unit_directions(z[:8].T), z[:, 0] > 0),
        lambda z: collapse.vicreg_variance(z) + collapse.vicreg_covariance(z),
        lambda z: collapse.cosine_to_mean(z) + collapse.loss_over_mean_prediction(z.flip(0), z),
    ],
    ids=["sigreg", "vicreg", "diagnostics"],
)
def test_one_graph_without_waiting_for_the_device(equation: Equation) -> None:
    z = normal(16, 4)
    # fullgraph: an .item() or a branch on data would be an error
    close(torch.compile(equation, fullgraph=True, backend="eager")(z), equation(z).double())
