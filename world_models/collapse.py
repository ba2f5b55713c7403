"""Ledger of guards against representational collapse, and of the numbers that reveal it.

Samples z [N, D] are embeddings at one time offset: a code of the offset, or of the task, alone
gives pooled samples the spread of a useful representation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reverie.world_models.ops import categorical_kl


def unit_directions(normal: Tensor) -> Tensor:
    """Columns of standard normal numbers [D, M] divided by their norms: uniform on the sphere.

    SIGReg wants new ones at every step; the numbers are an argument, as the generator that draws
    them is the caller's.
    gradient: none.
    """
    return F.normalize(normal.detach().float(), dim=0)


def sigreg(z: Tensor, directions: Tensor, weight: Tensor | None = None) -> Tensor:
    """`mean_m N int |phi_m(t) - e^(-t^2/2)|^2 e^(-t^2/2) dt` [] of z [N, D] (SIGReg, LeJEPA).

    phi_m is the empirical characteristic function of z along unit direction m of [D, M]. The
    integral is the trapezoid rule on 17 knots in [0, 3], doubled (released code of LeJEPA and
    LeWM). `weight` [N] is 1 for valid samples, which alone make up phi and N, and 0 for the
    others. Near 1.05 for N(0, I), 0.402 N for a constant of 0. In float32 under autocast too.
    gradient: to z; none to directions and weight.
    """
    with torch.autocast(z.device.type, enabled=False):
        valid = torch.ones_like(z[:, 0]) if weight is None else weight
        valid = valid.detach().float()
        z = torch.where(valid.unsqueeze(-1) > 0, z.float(), 0.0)
        share = (valid / valid.sum().clamp_min(1e-12))[:, None, None]
        t = torch.linspace(0.0, 3.0, 17, device=z.device)
        normal = torch.exp(-0.5 * t.square())
        angle = (z @ directions.detach().float()).unsqueeze(-1) * t
        real = (share * angle.cos()).sum(0) - normal
        imaginary = (share * angle.sin()).sum(0)
        error = (real.square() + imaginary.square()) * normal
        return valid.sum() * 2 * torch.trapezoid(error, dx=3 / 16).mean()


def vicreg_variance(z: Tensor) -> Tensor:
    """`1/D sum_j max(0, 1 - sqrt(Var z_j + 1e-4))` [] of z [N, D], unbiased (VICReg).

    gradient: to z; it vanishes with a feature's spread, so a constant is never pulled apart.
    """
    std = torch.sqrt(z.float().var(0) + 1e-4)
    return F.relu(1.0 - std).mean()


def vicreg_covariance(z: Tensor) -> Tensor:
    """`1/D sum_{i != j} C_ij^2` [] of the unbiased covariance C of z [N, D] (VICReg).

    In float32 under autocast too.
    gradient: to z.
    """
    off_diagonal = 1.0 - torch.eye(z.shape[1], device=z.device)
    return (_covariance(z) * off_diagonal).square().sum() / z.shape[1]


def cosine_to_mean(z: Tensor) -> Tensor:
    """`mean_n cos(z_n, mean z)` [] of z [N, D]; 1 where all samples point the same way.

    Blind to a code that shrinks to 0 around a mean of 0: read it together with `feature_std`.
    gradient: to z.
    """
    z = z.float()
    return F.cosine_similarity(z, z.mean(0, keepdim=True), dim=-1).mean()


def loss_over_mean_prediction(prediction: Tensor, target: Tensor) -> Tensor:
    """L1 of `prediction` over that of the targets' mean [] of [N, D]; 1: the mean does as well.

    Targets without any spread give 1 when they are met, never 0 / 0.
    gradient: to both.
    """
    prediction, target = prediction.float(), target.float()
    error = (prediction - target).abs().mean() + 1e-12
    return error / ((target.mean(0) - target).abs().mean() + 1e-12)


def top_eigenvalue_share(z: Tensor) -> Tensor:
    """`l_1 / sum_j l_j` [] of the eigenvalues of the covariance of z [N, D].

    1 when all variance lies along one direction, and when there is none. Fewer samples than
    features have the same eigenvalues in a smaller matrix. NaN where the covariance is not finite.
    gradient: to z.
    """
    covariance = _covariance(z) if len(z) >= z.shape[1] else _covariance_of_samples(z)
    finite = torch.isfinite(covariance).all()
    covariance = torch.where(finite, covariance, 0.0)
    share = (torch.linalg.eigvalsh(covariance)[-1] + 1e-12) / (covariance.trace() + 1e-12)
    return torch.where(finite, share, torch.nan)


def code_information(prob: Tensor) -> Tensor:
    """`mean_n KL[p_n || mean p]` [] in nats of codes [N, S, C], summed over the S groups.

    What a draw of the code tells about which sample it belongs to, and the loss of the best
    constant prediction; 0: the code is noise, or a constant.
    gradient: to prob.
    """
    return categorical_kl(prob, prob.mean(0, keepdim=True)).mean()


def _covariance_of_samples(z: Tensor) -> Tensor:
    """`z z^T / (N - 1)` [N, N] of centred z [N, D]: the covariance's eigenvalues that are not 0."""
    with torch.autocast(z.device.type, enabled=False):
        z = z.float()
        z = z - z.mean(0)
        return z @ z.T / (len(z) - 1)


def _covariance(z: Tensor) -> Tensor:
    """Unbiased covariance [D, D] of z [N, D]."""
    assert len(z) > 1, f"a covariance needs two samples or more, found {len(z)}"
    with torch.autocast(z.device.type, enabled=False):
        z = z.float()
        z = z - z.mean(0)
        return z.T @ z / (len(z) - 1)
