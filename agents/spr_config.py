"""Settings of the agents spr, spr-noaug, rainbow, sr-spr and bbf; defaults are SPR's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reverie.world_models.spr_config import SPRModelConfig


@dataclass(frozen=True)
class ReturnConfig:
    """Targets of the return distribution, and how their horizon is annealed after a reset."""

    n_step: int = 10
    """n: rewards summed before bootstrapping."""
    n_step_start: int | None = None
    """n right after a reset; none: n_step throughout (BBF: 10, falling to 3)."""
    gamma: float = 0.99
    """Discount per agent step."""
    gamma_start: float | None = None
    """Discount right after a reset; none: gamma throughout (BBF: 0.97, rising to 0.997)."""
    anneal_updates: int = 10_000
    """Updates over which n and the logarithm of 1 - gamma move, if they do."""
    reward: Literal["sign", "raw"] = "sign"
    """What is learned from; replay and scores hold the raw reward."""


@dataclass(frozen=True)
class PriorityConfig:
    """Prioritised replay: how transitions are drawn and how their weights make up for it."""

    measure: Literal["kl", "nll"] = "kl"
    """KL(target || online) of the taken action (SPR), or its cross-entropy (BBF)."""
    exponent: float = 0.5
    """alpha: the stored priority is measure ** alpha."""
    beta_start: float = 0.4
    """Exponent of the importance weights at the first update."""
    beta_end: float = 1.0
    """Exponent at the last update, reached linearly."""
    new: Literal["one", "max"] = "one"
    """Priority of a transition never drawn: constant (SPR), or the largest so far (BBF)."""
    stratified: bool = False
    """One draw from each of B equal shares of the priorities (BBF), or B independent ones."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random views of an observation while learning; acting and evaluation see it as it is."""

    shift: int = 4
    """Largest shift in pixels, the edge repeated; 0: none."""
    intensity: float = 0.05
    """Scale s of the brightness factor 1 + s clip(N(0, 1), -2, 2); 0: none."""


@dataclass(frozen=True)
class QOptimConfig:
    """Adam with two clipping groups; the predictor is never clipped."""

    lr: float = 1e-4
    """Learning rate."""
    eps: float = 1.5e-4
    """Adam epsilon."""
    weight_decay: float = 0.0
    """Decoupled decay of everything but biases and norms (BBF: 0.1)."""
    clip: float = 10.0
    """Gradient-norm limit of encoder and head together, and of the transition; 0: none."""


@dataclass(frozen=True)
class ResetConfig:
    """Periodic resets that let the replay ratio grow (SR-SPR, BBF)."""

    every: int = 0
    """Updates between resets; 0: never. None in the last such interval of a run."""
    keep: float = 0.8
    """Share of encoder and transition that survives; head and predictor start afresh."""


@dataclass(frozen=True)
class SPRConfig:
    """Everything that defines an agent of the SPR family."""

    model: SPRModelConfig = field(default_factory=SPRModelConfig)
    """Networks."""
    returns: ReturnConfig = field(default_factory=ReturnConfig)
    """Return targets."""
    priority: PriorityConfig = field(default_factory=PriorityConfig)
    """Prioritised replay."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation."""
    optim: QOptimConfig = field(default_factory=QOptimConfig)
    """Optimiser."""
    reset: ResetConfig = field(default_factory=ResetConfig)
    """Resets."""
    q_scale: float = 1.0
    """Weight of the Q loss; 0 leaves self-prediction alone: a control of what holds the latents."""
    act_with: Literal["online", "target"] = "online"
    """Network that chooses actions: the online one (SPR) or the Q target (SR-SPR, BBF)."""
    epsilon_eval: float = 0.001
    """Share of random actions in evaluation."""

    @property
    def max_n_step(self) -> int:
        """Largest n of the schedule."""
        return max(self.returns.n_step, self.returns.n_step_start or 0)
