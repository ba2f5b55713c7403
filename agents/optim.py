"""Adam with clipping and a device-side veto: a bad update changes nothing and syncs nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class ClippedAdam:
    """Fused Adam whose global-norm clip and skip flag are tensors on the device.

    torch's fused kernel divides gradients by `grad_scale` and leaves weights, moments and step
    counters as they are where `found_inf` is 1: clipping and skipping cost no extra pass over the
    weights and no host synchronisation.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        eps: float,
        clip: float = math.inf,
        weight_decay: float = 0.0,
        capturable: bool,
        scheduled: bool = False,
    ) -> None:
        """`weight_decay` is decoupled and spares vectors: biases and norms.

        `scheduled` says that `set_lr` will be called: a captured graph then reads the rate from
        the device.
        """
        self.params = [p for p in params if p.requires_grad]
        self.clip = clip
        options: dict[str, Any] = {"eps": eps, "fused": True, "capturable": capturable}
        tensor = scheduled and capturable
        options["lr"] = torch.tensor(lr, device=self.params[0].device) if tensor else lr
        if weight_decay:
            # matrices first in the state too: it is keyed by the position of the parameter
            self.params.sort(key=lambda p: p.ndim <= 1)
            matrices = [p for p in self.params if p.ndim > 1]
            vectors = [p for p in self.params if p.ndim <= 1]
            groups: list[dict[str, Any]] = [
                {"params": matrices},
                {"params": vectors, "weight_decay": 0.0},
            ]
            self.adam: torch.optim.Adam = torch.optim.AdamW(
                groups, weight_decay=weight_decay, **options
            )
        else:
            self.adam = torch.optim.Adam(self.params, **options)

    def gradient_norm(self) -> Tensor:
        """Global L2 norm of the current gradients, a scalar on the device."""
        grads = [p.grad for p in self.params if p.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        return norm

    def step(self, norm: Tensor, skip: Tensor) -> None:
        """Apply gradients clipped to `clip`, unless the float flag `skip` is 1."""
        # the fused kernel reads both from the optimiser, as it does under a gradient scaler
        self.adam.grad_scale = torch.clamp(norm / self.clip, min=1.0)  # type: ignore[attr-defined]
        self.adam.found_inf = skip  # type: ignore[attr-defined]
        self.adam.step()

    def set_lr(self, lr: float) -> None:
        """Learning rate of the steps to come."""
        for group in self.adam.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.adam.zero_grad(set_to_none=True)

    @torch.no_grad()
    def restart(self) -> None:
        """Forget all moments and step counters, in place."""
        for tensor in self.moments():
            tensor.zero_()

    def moments(self) -> list[Tensor]:
        """Every tensor of the optimiser's state, step counters included."""
        return [t for entry in self.adam.state.values() for t in entry.values()]

    def state_dict(self) -> dict[str, Any]:
        """Moments and counters, keyed by the position of the parameter."""
        return {str(i): dict(s) for i, s in self.adam.state_dict()["state"].items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; shapes must match the parameters."""
        full = self.adam.state_dict()
        for key, entry in state.items():
            shape = self.params[int(key)].shape
            for name in ("exp_avg", "exp_avg_sq"):
                if entry[name].shape != shape:
                    raise ValueError(
                        f"optimiser state {key}.{name}: expected {tuple(shape)}, "
                        f"found {tuple(entry[name].shape)}; the checkpoint is of another model"
                    )
        full["state"] = {int(key): dict(entry) for key, entry in state.items()}
        self.adam.load_state_dict(full)
