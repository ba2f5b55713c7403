"""The posterior scan of the RSSM with a hand-derived backward pass.

The recurrence is the only part of a world-model update that must run step by step. Plain autograd
spends most of its launches there: it multiplies every weight gradient out at every step and adds it
up. Here a step forward and a step backward are two small pure functions (fused by one compile
switch), and all weight gradients are taken once, over all steps, after the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

aten = torch.ops.aten


class ScanWeights(NamedTuple):
    """Weights of one recurrent step; U units, D deter, Z = S*C flat stochastic size."""

    in_z: Tensor
    """[U, Z]: input layer, columns of z."""
    in_scale: Tensor
    in_shift: Tensor
    gru: Tensor
    """[3D, U + D] on [x, h]; outputs (reset, candidate, update)."""
    gru_scale: Tensor
    gru_shift: Tensor
    post_h: Tensor
    """[U, D]: first posterior layer, columns of h."""
    post_scale: Tensor
    post_shift: Tensor
    out: Tensor
    """[Z, U]: posterior logits."""
    out_bias: Tensor


class StepSizes(NamedTuple):
    """Constants of a step."""

    stoch: int
    classes: int
    unimix: float
    eps: float


Saved = tuple[Tensor, ...]


def mul_weight(x: Tensor, weight: Tensor) -> Tensor:
    """`x W^T` [.., out] as float32; bf16 weights make a bf16 product."""
    return F.linear(x.to(weight.dtype), weight).float()


def mul_back(grad: Tensor, weight: Tensor) -> Tensor:
    """`g W` [.., in]: what a linear layer hands back to its input."""
    return (grad.to(weight.dtype) @ weight).float()


def gru_step(weights: ScanWeights, sizes: StepSizes, projected: Tensor, h: Tensor) -> Saved:
    """h_t from the input layer's pre-activation `projected` [B, U] and h_{t-1} [B, D].

    `h' = u c + (1 - u) h` with `u = sigmoid(u' - 1)`, `c = tanh(sigmoid(r') c')`, layer norm over
    the 3D pre-activations (DreamerV3 v1). Returns every tensor that the backward step reads; h' is
    the last of them.
    """
    deter = h.shape[-1]
    in_norm, in_mean, in_rstd = aten.native_layer_norm(
        projected, [projected.shape[-1]], weights.in_scale, weights.in_shift, sizes.eps
    )
    joined = torch.cat([F.silu(in_norm), h], -1)
    gates = mul_weight(joined, weights.gru)
    normed, gru_mean, gru_rstd = aten.native_layer_norm(
        gates, [3 * deter], weights.gru_scale, weights.gru_shift, sizes.eps
    )
    # one split: autograd (imagination) joins its three gradients by a single concatenation
    reset_in, raw, update_in = normed.split(deter, -1)
    reset = torch.sigmoid(reset_in)
    candidate = torch.tanh(reset * raw)
    update = torch.sigmoid(update_in - 1.0)
    new = torch.lerp(h, candidate, update)
    return (
        projected, in_norm, in_mean, in_rstd, joined, gates, gru_mean, gru_rstd,
        reset, raw, candidate, update, new,
    )  # fmt: skip


def forward_step(
    weights: ScanWeights,
    sizes: StepSizes,
    embed: Tensor,
    action: Tensor,
    keep: Tensor,
    h0: Tensor,
    z0: Tensor,
    exponential: Tensor,
    h: Tensor,
    z: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Saved]:
    """One step: reset where `keep` [B, 1] is 0, then h_t, posterior logits and the sample z_t.

    `embed` and `action` [B, U] are already projected. Returns h [B, D], z [B, Z] one-hot, logits
    [B, Z] and what the backward step reads.
    """
    h_in = torch.where(keep > 0, h, h0)
    z_in = torch.where(keep > 0, z, z0)
    saved = gru_step(weights, sizes, action + mul_weight(z_in, weights.in_z), h_in)
    new = saved[-1]
    hidden = embed + mul_weight(new, weights.post_h)
    normed, mean, rstd = aten.native_layer_norm(
        hidden, [hidden.shape[-1]], weights.post_scale, weights.post_shift, sizes.eps
    )
    act = F.silu(normed)
    logits = mul_weight(act, weights.out) + weights.out_bias
    soft = F.softmax(logits.view(-1, sizes.stoch, sizes.classes), -1)
    mixed = (1.0 - sizes.unimix) * soft + sizes.unimix / sizes.classes
    index = (mixed / exponential).argmax(-1, keepdim=True)
    sample = torch.zeros_like(soft).scatter_(-1, index, 1.0).flatten(-2)
    return new, sample, logits, (*saved, z_in, hidden, normed, mean, rstd, act, soft)


def backward_step(
    weights: ScanWeights,
    sizes: StepSizes,
    keep: Tensor,
    grad_h: Tensor,
    grad_z: Tensor,
    grad_logits: Tensor,
    saved: Saved,
) -> tuple[Tensor, ...]:
    """Pull the gradients of one step's outputs back to its inputs.

    Returns (to h_{t-1}, to z_{t-1}, to h0, input-layer pre-activation, GRU normed, GRU
    pre-activation, posterior normed, posterior pre-activation, logits, input normed): the first
    three flow on, the others meet their layer's inputs in one product over all steps.
    """
    (projected, in_norm, in_mean, in_rstd, joined, gates, gru_mean, gru_rstd, reset, raw,
     candidate, update, _new, _z_in, hidden, normed, mean, rstd, _act, soft) = saved  # fmt: skip
    deter = grad_h.shape[-1]
    # straight-through sample: the gradient of z is that of the mixed probabilities
    soft_grad = aten._softmax_backward_data(grad_z.view_as(soft), soft, -1, soft.dtype)
    g_logits = torch.add(grad_logits, soft_grad.flatten(-2), alpha=1.0 - sizes.unimix)
    g_normed = aten.silu_backward(mul_back(g_logits, weights.out), normed)
    g_hidden = aten.native_layer_norm_backward(
        g_normed, hidden, [hidden.shape[-1]], mean, rstd, weights.post_scale, weights.post_shift,
        [True, False, False],
    )[0]  # fmt: skip
    g_new = grad_h + mul_back(g_hidden, weights.post_h)
    g_candidate = g_new * update
    g_tanh = aten.tanh_backward(g_candidate, candidate)
    # h' = h + u (c - h): joined holds h behind the U input features
    h_in = joined[:, -deter:]
    g_gates_normed = torch.cat(
        [
            aten.sigmoid_backward(g_tanh * raw, reset),
            g_tanh * reset,
            aten.sigmoid_backward(g_new * (candidate - h_in), update),
        ],
        -1,
    )
    g_gates = aten.native_layer_norm_backward(
        g_gates_normed, gates, [3 * deter], gru_mean, gru_rstd, weights.gru_scale,
        weights.gru_shift, [True, False, False],
    )[0]  # fmt: skip
    g_joined = mul_back(g_gates, weights.gru)
    g_h_in = g_new - g_candidate + g_joined[:, -deter:]
    g_in_norm = aten.silu_backward(g_joined[:, :-deter], in_norm)
    g_projected = aten.native_layer_norm_backward(
        g_in_norm, projected, [projected.shape[-1]], in_mean, in_rstd, weights.in_scale,
        weights.in_shift, [True, False, False],
    )[0]  # fmt: skip
    g_z_in = mul_back(g_projected, weights.in_z)
    to_h = g_h_in * keep
    return (to_h, g_z_in * keep, g_h_in - to_h, g_projected, g_gates_normed, g_gates,
            g_normed, g_hidden, g_logits, g_in_norm)  # fmt: skip


def _layer_norm_grads(
    g_normed: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    grads = aten.native_layer_norm_backward(
        g_normed, x, [x.shape[-1]], mean, rstd, scale, shift, [False, True, True]
    )
    return grads[1], grads[2]


def _weight_grads(weights: ScanWeights, saved: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """Gradients of all ScanWeights, in their order, from inputs and gradients [T*B, ...]."""
    (projected, _in_norm, in_mean, in_rstd, joined, gates, gru_mean, gru_rstd,
     _r, _c, _cand, _u, new, z_in, hidden, _normed, mean, rstd, act, _soft) = saved  # fmt: skip
    g_projected, g_gates_normed, g_gates, g_normed, g_hidden, g_logits, g_in_norm = grads
    in_scale, in_shift = _layer_norm_grads(
        g_in_norm, projected, in_mean, in_rstd, weights.in_scale, weights.in_shift
    )
    gru_scale, gru_shift = _layer_norm_grads(
        g_gates_normed, gates, gru_mean, gru_rstd, weights.gru_scale, weights.gru_shift
    )
    post_scale, post_shift = _layer_norm_grads(
        g_normed, hidden, mean, rstd, weights.post_scale, weights.post_shift
    )
    return [
        _outer(g_projected, z_in, weights.in_z), in_scale, in_shift,
        _outer(g_gates, joined, weights.gru), gru_scale, gru_shift,
        _outer(g_hidden, new, weights.post_h), post_scale, post_shift,
        _outer(g_logits, act, weights.out), g_logits.sum(0),
    ]  # fmt: skip


def _outer(grad: Tensor, x: Tensor, like: Tensor) -> Tensor:
    """Weight gradient `g^T x` over all steps at once, in the product precision of the scan."""
    return (grad.to(like.dtype).t() @ x.to(like.dtype)).float()


class PosteriorScan(torch.autograd.Function):
    """T steps of `forward_step`; see the module's docstring. Differentiable once."""

    @staticmethod
    def forward(
        ctx: Any,
        steps: tuple[Callable[..., Any], Callable[..., Any]],
        sizes: StepSizes,
        dtype: torch.dtype,
        embed: Tensor,
        action: Tensor,
        keep: Tensor,
        exponential: Tensor,
        h0: Tensor,
        z0: Tensor,
        *flat: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs time-first: embed, action [T, B, U]; keep [T, B, 1]; exponential [T, B, S, C]."""
        # a compiled step asks its inputs for their gradients, which only leaves keep
        weights = _cast(ScanWeights(*(w.detach() for w in flat)), dtype)
        embed, action, h0 = embed.detach(), action.detach(), h0.detach()
        h, z = h0.expand(embed.shape[1], -1), z0.expand(embed.shape[1], -1)
        rows = zip(
            embed.unbind(0), action.unbind(0), keep.unbind(0), exponential.unbind(0), strict=True
        )
        outs: list[tuple[Tensor, Tensor, Tensor]] = []
        ctx.saved_steps = []
        for e, a, k, x in rows:
            h, z, logits, saved = steps[0](weights, sizes, e, a, k, h0, z0, x, h, z)
            outs.append((h, z, logits))
            ctx.saved_steps.append(saved)
        ctx.save_for_backward(keep, *flat)
        ctx.steps, ctx.sizes, ctx.dtype = steps, sizes, dtype
        hs, zs, ls = zip(*outs, strict=True)
        return torch.stack(hs), torch.stack(zs), torch.stack(ls)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to embed, action, h0 and the weights; none to keep, noise and z0 (a mode)."""
        keep, *flat = ctx.saved_tensors
        weights = _cast(ScanWeights(*flat), ctx.dtype)
        grad_h, grad_z, grad_l = grads
        flow_h, flow_z = torch.zeros_like(grad_h[0]), torch.zeros_like(grad_z[0])
        parts: list[tuple[Tensor, ...]] = []
        for t in range(len(keep) - 1, -1, -1):
            flow_h, flow_z, *rest = ctx.steps[1](
                weights, ctx.sizes, keep[t], grad_h[t] + flow_h, grad_z[t] + flow_z, grad_l[t],
                ctx.saved_steps[t],
            )  # fmt: skip
            parts.append(tuple(rest))
        stacked = [torch.stack(column[::-1]) for column in zip(*parts, strict=True)]
        # the first step starts from h0 even where nothing was reset
        to_h0 = stacked[0].sum((0, 1)) + flow_h.sum(0)
        saved = [torch.cat(column) for column in zip(*ctx.saved_steps, strict=True)]
        weight_grads = _weight_grads(weights, saved, [g.flatten(0, 1) for g in stacked[1:]])
        g_embed, g_action = stacked[5], stacked[1]
        return (None, None, None, g_embed, g_action, None, None, to_h0, None, *weight_grads)


def _cast(weights: ScanWeights, dtype: torch.dtype) -> ScanWeights:
    """Matrices in the product precision, once per scan; norms and bias stay float32."""
    matrices = {"in_z", "gru", "post_h", "out"}
    return ScanWeights(
        *(
            w.to(dtype) if name in matrices else w
            for name, w in zip(weights._fields, weights, strict=True)
        )
    )
