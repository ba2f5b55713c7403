"""What the trainers, the collector and evaluation ask of an agent, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
from tensordict import TensorDict
from torch import Tensor

Carry = dict[str, Tensor]
"""Everything an agent remembers between two calls of `act`; tensors with N as first dimension."""

Mode = Literal["train", "eval", "greedy"]
"""Greedy: as in evaluation, without a random number."""


class Player(Protocol):
    """Acts from an explicit carry."""

    def initial_carry(self, num_envs: int) -> Carry:
        """Carry before the first row of N slots."""
        ...

    def act(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, *, mode: Mode = "train"
    ) -> tuple[Carry, Tensor]:
        """Actions float32 [N, A] for `obs` (as in `Step.obs`, on the agent's device).

        Rows with `is_first` [N] forget their carry. Never touches running statistics.
        """
        ...


class Agent(Player, Protocol):
    """Learns from replay, or from demonstrations, as well."""

    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        """One gradient step on a batch from replay; metrics are scalars on the device.

        Keys of a batch of windows [B, T]: "image" and/or "vector", "action" (the one that led
        here), "reward", "is_first", "is_last", "is_terminal". A non-finite loss or gradient
        leaves every weight as it was and raises the metric "nonfinite" to 1, without a host
        synchronisation.
        """
        ...

    def learn_from(
        self, replay: Any, rng: np.random.Generator, shape: tuple[int, int]
    ) -> tuple[TensorDict, dict[str, Tensor]]:
        """Draw a batch of `shape` (B, T) from the run's replay and update; both are returned.

        The draw is a function of `rng`; the batch stays valid until the next call.
        """
        ...

    def examine(
        self, replay: Any, rng: np.random.Generator, shape: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Diagnostics on a batch that no update draws; changes nothing."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Nested dict of tensors and JSON values: weights, EMA copies, optimisers, generators."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Strict inverse of `state_dict`; raises on any missing, unknown or misshapen entry."""
        ...


class Imitator(Agent, Protocol):
    """An agent that learns from demonstrations: `learn_from` and `examine` get `DemoWindows`."""

    def playing(self, task: str) -> Player:
        """The agent on one of its tasks."""
        ...

    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the first rows of windows [B, P] are encoded as, float32 [B, F] without gradient."""
        ...
