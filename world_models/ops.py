"""Ledger of pure equations: tensors in, tensors out, no modules, no configuration."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """`sign(x) ln(1 + |x|)` (DreamerV3, eq. 1).

    gradient: to x, `1 / (1 + |x|)`.
    """
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """Inverse of `symlog`: `sign(x) (exp |x| - 1)` (DreamerV3, eq. 1).

    gradient: to x.
    """
    return torch.sign(x) * torch.expm1(torch.abs(x))


def symmetric_bins(count: int, limit: float) -> Tensor:
    """Bin centres `[-b, 0, b]`, evenly spaced in [-limit, limit]; `count` is odd.

    Built from one half, so that mirrored bins are exact negatives.
    gradient: none.
    """
    if count < 3 or count % 2 == 0:
        raise ValueError(f"two-hot bins must be an odd number >= 3, found {count}")
    half = torch.linspace(0.0, limit, count // 2 + 1, dtype=torch.float64)[1:].float()
    return torch.cat([-half.flip(0), torch.zeros(1), half])


def two_hot(value: Tensor, bins: Tensor) -> Tensor:
    """Linear weights [..., K] of `value` [...] on its two neighbours of `bins` [K]; the ends clamp.

    Values are in the space of the bins (DreamerV3 v1: symlog space).
    gradient: none; the result is a target.
    """
    value = value.detach().clamp(bins[0], bins[-1])
    above = torch.searchsorted(bins, value.contiguous(), right=True).clamp(1, len(bins) - 1)
    low, high = bins[above - 1], bins[above]
    weight = ((value - low) / (high - low)).unsqueeze(-1)
    target = torch.zeros(*value.shape, len(bins), device=value.device, dtype=bins.dtype)
    target.scatter_(-1, (above - 1).unsqueeze(-1), 1 - weight)
    return target.scatter_(-1, above.unsqueeze(-1), weight)


def two_hot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """`symexp(sum_k p_k b_k)` [...] of logits [..., K] (the v1 rule: mean in symlog space).

    Mirrored bins are paired before the sum, so that symmetric logits give exactly 0.
    gradient: to logits.
    """
    half = len(bins) // 2
    prob = F.softmax(logits.float(), dim=-1)
    paired = prob[..., half + 1 :] - prob[..., :half].flip(-1)
    return symexp((paired * bins[half + 1 :]).sum(-1))


def two_hot_nll(logits: Tensor, value: Tensor, bins: Tensor) -> Tensor:
    """Cross-entropy [...] of logits [..., K] against the two-hot code of `symlog(value)` [...].

    Computed in float32 from the two neighbouring bins only.
    gradient: to logits; none to value.
    """
    code = symlog(value.detach().float()).clamp(bins[0], bins[-1])
    above = torch.searchsorted(bins, code.contiguous(), right=True).clamp(1, len(bins) - 1)
    low, high = bins[above - 1], bins[above]
    weight = (code - low) / (high - low)
    pair = logits.float().gather(-1, torch.stack([above - 1, above], -1))
    picked = torch.lerp(pair[..., 0], pair[..., 1], weight)
    return torch.logsumexp(logits.float(), -1) - picked


def unimix(logits: Tensor, share: float) -> Tensor:
    """`(1 - e) softmax(logits) + e / C` over the last axis (DreamerV3, 1 % unimix).

    gradient: to logits.
    """
    prob = F.softmax(logits.float(), dim=-1)
    return (1.0 - share) * prob + share / logits.shape[-1]


def straight_through(sample: Tensor, prob: Tensor) -> Tensor:
    """One-hot `sample` whose gradient is that of `prob`: `sample + prob - sg(prob)` (DreamerV2).

    gradient: to prob; none to sample. The value is the sample, bit for bit.
    """
    return sample.detach() + (prob - prob.detach())


def categorical_sample(prob: Tensor, exponential: Tensor) -> Tensor:
    """One-hot sample over the last axis: the class with the largest `prob / E`, E ~ Exp(1).

    The race of exponentials is the Gumbel-max trick without its logarithms; the noise is an
    argument, so that a scan draws it once for all of its steps.
    gradient: none.
    """
    index = (prob.detach() / exponential).argmax(-1, keepdim=True)
    return torch.zeros_like(prob).scatter_(-1, index, 1.0)


def categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    """`KL[p || q]` in nats of probabilities [..., S, C], summed over the S groups -> [...].

    gradient: to p and q.
    """
    return (p * (torch.log(p) - torch.log(q))).sum((-2, -1))


def categorical_entropy(p: Tensor) -> Tensor:
    """Entropy in nats of probabilities [..., S, C], summed over the S groups -> [...].

    gradient: to p.
    """
    return -(p * torch.log(p)).sum((-2, -1))


def lambda_return(
    reward_tp1: Tensor,
    discount_tp1: Tensor,
    value_tp1: Tensor,
    *,
    lambda_: float,
    is_last_tp1: Tensor | None = None,
) -> Tensor:
    """Lambda-returns R_t [B, T] from what arrives at t+1, each [B, T] (DreamerV3, eq. 7).

    `R_t = r_{t+1} + d_{t+1} ((1 - l) v_{t+1} + l R_{t+1})`, bootstrapped with `R_T = v_T`, the
    last column of `value_tp1`. `discount` is gamma times the continuation. Where `is_last_tp1`,
    lambda is 0: the recursion bootstraps there and never runs into the next episode.
    gradient: to every input.
    """
    carry = torch.full_like(value_tp1, lambda_)
    if is_last_tp1 is not None:
        carry = carry * (1.0 - is_last_tp1.to(value_tp1.dtype))
    base = reward_tp1 + discount_tp1 * (1.0 - carry) * value_tp1
    slope = discount_tp1 * carry
    out = [value_tp1[:, -1]]
    for t in range(value_tp1.shape[1] - 1, -1, -1):
        out.append(torch.addcmul(base[:, t], slope[:, t], out[-1]))
    return torch.stack(out[:0:-1], dim=1)


def percentile_scale(
    returns: Tensor, low: Tensor, high: Tensor, *, decay: float = 0.99
) -> tuple[Tensor, Tensor, Tensor]:
    """One EMA step of the 5th and 95th percentile; `(low, high, max(1, high - low))`.

    DreamerV3 v1, return normalisation.
    gradient: none.
    """
    ordered = returns.detach().float().flatten().sort().values
    low = decay * low + (1.0 - decay) * _quantile(ordered, 0.05)
    high = decay * high + (1.0 - decay) * _quantile(ordered, 0.95)
    return low, high, torch.clamp(high - low, min=1.0)


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """`torch.quantile` of sorted values [K], bit for bit, from positions the host knows.

    torch's own copies the share to the device at every call, which no graph can capture.
    """
    position = torch.tensor(share) * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], float(position - below))


def trajectory_weight(discount: Tensor, gamma: float) -> Tensor:
    """`prod_{i <= t} d_i / gamma` [M, H] of discounts [M, H] whose first is that of the start.

    gradient: none (DreamerV3 v1 detaches the weights).
    """
    return torch.cumprod(discount.detach(), dim=1) / gamma


def normal_log_prob(action: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density [...] of a diagonal normal over the last axis.

    gradient: to every input.
    """
    error = (action - mean) / std
    return (-0.5 * error * error - torch.log(std) - 0.5 * math.log(2 * math.pi)).sum(-1)


def normal_entropy(std: Tensor) -> Tensor:
    """Entropy [...] in nats of a diagonal normal over the last axis.

    gradient: to std.
    """
    return (torch.log(std) + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def feature_std(x: Tensor) -> Tensor:
    """Mean over features of the standard deviation over the batch, x [B, F] -> scalar.

    The collapse monitor of VICReg's kind: 0 means a constant representation.
    gradient: to x.
    """
    return x.float().flatten(0, -2).std(0, correction=0).mean()


def effective_rank(x: Tensor) -> Tensor:
    """RankMe: `exp` of the entropy of the normalised singular values of x [B, F] (Garrido 2023).

    Not centred, as published, but without the 1e-7 on every share, which moves it by less than
    0.1 %. Free of scale: centred first, a constant code has the high rank of its rounding noise.
    NaN where x is not finite, of which no decomposition exists.
    gradient: to x.
    """
    x = x.float()
    finite = torch.isfinite(x).all()
    singular = torch.linalg.svdvals(torch.where(finite, x, 0.0))
    prob = singular / singular.sum().clamp_min(1e-12)
    rank = torch.exp(-(prob * torch.log(prob.clamp_min(1e-12))).sum())
    return torch.where(finite, rank, torch.nan)


def renormalise(latent: Tensor) -> Tensor:
    """`(x - min) / max(max - min, 1e-5)` of each sample over its last three axes [..., C, H, W].

    SPR's latent renormalisation; the guard is that of the later JAX port (BBF).
    gradient: to latent.
    """
    low, high = latent.amin((-3, -2, -1), True), latent.amax((-3, -2, -1), True)
    return (latent - low) / (high - low).clamp_min(1e-5)


def n_step_return(
    reward_tp1: Tensor,
    is_last_tp1: Tensor,
    is_terminal_tp1: Tensor,
    *,
    gamma: float | Tensor,
    steps: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Return [B] of what arrives at t+1..t+n, rows [B, n], and its bootstrap discount [B].

    `sum_{k <= m} gamma^{k-1} r_{t+k}` and `gamma^m (1 - terminal_{t+m})`, where the m counted
    rewards end with the first `is_last` or after `steps`, 1 <= steps <= n (Rainbow; SPR). A time
    limit is bootstrapped through. Tensors `gamma` and `steps` keep a schedule on the device.
    gradient: none.
    """
    n = reward_tp1.shape[1]
    power = torch.arange(n + 1, device=reward_tp1.device)
    alive = 1 - is_last_tp1[:, : n - 1].long().cumsum(1).clamp(max=1)
    counted = F.pad(alive, (1, 0), value=1) * (power[:-1] < steps)
    count = counted.sum(1, keepdim=True)
    discount = gamma ** power.to(reward_tp1.dtype)
    total = (discount[:-1] * counted * reward_tp1.detach()).sum(1)
    terminal = is_terminal_tp1.gather(1, count - 1).squeeze(1)
    return total, discount[count.squeeze(1)] * ~terminal.bool()


def categorical_projection(prob: Tensor, reward: Tensor, discount: Tensor, atoms: Tensor) -> Tensor:
    """Probabilities [B, K] of `reward + discount * Z` on Z's own evenly spaced atoms [K] (C51).

    Mass `p_j max(0, 1 - |b_j - k|)` goes to atom k, with b_j the clamped position of atom j in
    units of the spacing: a sum instead of a scatter, equal on every device and run.
    gradient: none; the result is a target.
    """
    low, high = atoms[0], atoms[-1]
    moved = (reward.unsqueeze(-1) + discount.unsqueeze(-1) * atoms).clamp(low, high)
    position = (moved - low) * ((len(atoms) - 1) / (high - low))
    index = torch.arange(len(atoms), device=atoms.device)
    share = (1.0 - (position.unsqueeze(-1) - index).abs()).clamp_min(0.0)
    return (prob.unsqueeze(-1) * share).sum(1).detach()


def sequence_mask(is_last_tp1: Tensor) -> Tensor:
    """Float mask [B, K] of the targets o_{t+1}..o_{t+K}, from the flags [B, K+1] of t+1..t+K+1.

    Target k counts if none of the rows t+1..t+k+1 is the last of its episode (SPR's released
    code). There the flag at index k is that of the transition *out of* o_{t+k}, which here
    belongs to the row after it: an o_{t+k} that is followed by the last row is still valid, yet
    masked. One usable target per terminal is lost on purpose, as published scores were made so.
    gradient: none.
    """
    return torch.cumprod(1.0 - is_last_tp1.float(), dim=1)[:, 1:]


def random_shift(image: Tensor, offset: Tensor, pad: int) -> Tensor:
    """Images [N, C, H, W] padded by their edges and cropped at `offset` [N, 2] (SPR; DrQ).

    Offsets (row, column) lie in [0, 2 pad]; `pad` of both is the identity. All channels of an
    image, frames of a stack among them, move together. One gather reads the clamped pixels, so
    that nothing is padded: 3 to 5 times as fast on uint8 as a crop from a padded copy.
    gradient: to image, if it is a float.
    """
    rows, columns = image.shape[-2:]
    shift = offset - pad
    y = (torch.arange(rows, device=image.device) + shift[:, :1]).clamp(0, rows - 1)
    x = (torch.arange(columns, device=image.device) + shift[:, 1:]).clamp(0, columns - 1)
    index = (y.unsqueeze(-1) * columns + x.unsqueeze(1)).flatten(1).unsqueeze(1)
    return image.flatten(2).gather(2, index.expand(-1, image.shape[1], -1)).view(image.shape)
