"""The contract that every latent dynamics model of the suite fulfils."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

Batch = Any
"""Mapping from row key ("image", "action", "reward", ...) to tensors [B, T, ...]."""

ROW_KEYS = ("action", "reward", "is_first", "is_last", "is_terminal")


class WorldModel(Protocol):
    """What imagination, monitors and reports may ask of a model; B windows of T rows.

    `Latents` below is each model's own named tuple of tensors.
    """

    loss_scales: dict[str, float]
    """Weight of every active loss; its keys are exactly those that `losses` returns."""
    loss_dims: tuple[str, ...]
    """Dimensions of every loss: ("B", "T"), or ("B",) where one row is learned from per window."""

    action_conditioned: bool
    """Whether `rollout` reads its actions; if not, nobody should ask what they change."""

    def encode(self, obs: dict[str, Tensor]) -> Tensor:
        """Representation network: observations [..., *] -> embedding [..., E]."""
        ...

    def observe(self, batch: Batch) -> Any:
        """Filtered latents [B, T, ...] of a real window, reset at `is_first`."""
        ...

    def rollout(self, start: Any, actions: Tensor) -> Any:
        """Open-loop latents [M, H, ...] from `start` [M, ...] under actions [M, H, A]."""
        ...

    def targets(self, batch: Batch) -> Any:
        """What the predicted latents are compared with; carries no gradient."""
        ...

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Unweighted losses, each of the dimensions that `loss_dims` declares."""
        ...

    def features(self, latents: Any) -> Tensor:
        """The vector [..., F] that heads, policies, probes and monitors read."""
        ...
