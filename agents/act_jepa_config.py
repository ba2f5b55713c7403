"""Settings of the agents act-jepa, act and bc; defaults are those of the released code."""

from __future__ import annotations

from dataclasses import dataclass, field

from reverie.world_models.act_jepa_config import ACTJEPAModelConfig


@dataclass(frozen=True)
class ImitationOptimConfig:
    """AdamW with a linear warm-up and a cosine to zero (released code of ACT-JEPA)."""

    lr: float = 6e-4
    """Highest learning rate, reached at the end of the warm-up."""
    eps: float = 1e-8
    """Adam's epsilon."""
    clip: float = 1.0
    """Global gradient norm."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; biases and norms are spared."""
    warmup: float = 0.04
    """Share of the updates with a rising learning rate."""


@dataclass(frozen=True)
class ACTJEPAConfig:
    """What learns from demonstrations: an action chunk, and the latents of the steps it covers."""

    model: ACTJEPAModelConfig = field(default_factory=ACTJEPAModelConfig)
    """Networks, losses and collapse guard."""
    optim: ImitationOptimConfig = field(default_factory=ImitationOptimConfig)
    """Optimiser."""
    normalise: bool = True
    """Vectors and actions by mean and standard deviation of the training episodes, floored at
    1e-2; false: as recorded."""
    execute: int | None = None
    """Actions of a chunk played before the next is predicted; none: all. Fewer, without
    ensembling, is known to stall policies: measure both."""
    ensemble: float | None = None
    """ACT's temporal ensembling, weight exp(-m i) for the i-th oldest prediction of a step (0.01);
    needs `execute` 1. None: off, which scored higher in every published comparison."""
