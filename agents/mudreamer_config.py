"""Settings of the MuDreamer and DreamerV3 agents; defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reverie.world_models.config import WorldModelConfig


@dataclass(frozen=True)
class BehaviorConfig:
    """Actor-critic trained in imagination (DreamerV3 v1)."""

    horizon: int = 15
    """H: imagined steps from every posterior state of the batch."""
    entropy: float = 3e-4
    """Weight of the policy entropy."""
    actor_grad: Literal["auto", "dynamics", "reinforce"] = "auto"
    """Gradient of the actor; auto: through the dynamics if continuous, REINFORCE if discrete."""
    slow_rate: float = 0.02
    """EMA rate of the slow critic, per update."""
    slow_reg: float = 1.0
    """Weight of the cross-entropy between critic and slow critic."""
    return_decay: float = 0.99
    """EMA decay of the 5th and 95th percentile of the returns."""
    unimix: float = 0.01
    """Uniform share of a discrete policy."""
    min_std: float = 0.1
    """Smallest standard deviation of a continuous policy."""
    max_std: float = 1.0
    """Largest standard deviation of a continuous policy."""


@dataclass(frozen=True)
class OptimConfig:
    """Three Adam optimisers with global-norm clipping."""

    model_lr: float = 1e-4
    """Learning rate of the world model."""
    model_eps: float = 1e-8
    """Adam epsilon of the world model."""
    model_clip: float = 1000.0
    """Gradient-norm limit of the world model."""
    behavior_lr: float = 3e-5
    """Learning rate of actor and critic."""
    behavior_eps: float = 1e-5
    """Adam epsilon of actor and critic."""
    behavior_clip: float = 100.0
    """Gradient-norm limit of actor and of critic."""


@dataclass(frozen=True)
class MuDreamerConfig:
    """Everything that defines a MuDreamer or DreamerV3 agent."""

    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    """World model."""
    behavior: BehaviorConfig = field(default_factory=BehaviorConfig)
    """Actor-critic."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimisers."""
