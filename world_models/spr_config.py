"""Settings of the convolutional, action-conditioned model; every default is SPR's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SPRModelConfig:
    """Networks of SPR (arXiv 2007.05929); SR-SPR, BBF and Rainbow are other switches."""

    history: int = 4
    """S: newest frames that make one observation; zeros before an episode's start."""
    encoder: Literal["nature", "nature_same", "impala"] = "nature"
    """Three convolutions without padding (SPR) or with (SR-SPR), or 15 with skips (BBF)."""
    channels: tuple[int, ...] = (32, 64, 64)
    """Channels of the three convolutions, or of the three stages."""
    dropout: float = 0.0
    """Share of encoder activations dropped while learning; 0.5 without augmentation."""
    hidden: int = 256
    """Width of the Q head's hidden layers; the projection is these layers."""
    head: Literal["separate", "shared"] = "separate"
    """One hidden layer each for value and advantage (SPR), or one for both (SR-SPR, BBF)."""
    noisy: bool = True
    """Noisy layers in the Q head, which explore without epsilon."""
    noise_scale: float = 0.5
    """Initial standard deviation of the noisy weights, over the root of the fan-in."""
    atoms: int = 51
    """Atoms of the return distribution."""
    value_range: float = 10.0
    """The atoms span [-value_range, value_range]."""
    predictions: int = 5
    """K: latent states predicted ahead; 0 leaves self-prediction out (Rainbow)."""
    spr_scale: float = 5.0
    """Weight of the mean squared distance of unit vectors: 2.5 lambda of the paper for K = 5."""
    transition_norm: Literal["bn", "none"] = "bn"
    """Batch norm behind the transition's first convolution, or none (SR-SPR, BBF)."""
    target: Literal["own", "shared", "online"] = "own"
    """Prediction targets from a copy of their own (SPR), or from the Q target (SR-SPR, BBF);
    online lets the gradient into the targets: a control that collapses."""
    target_rate: float = 1.0
    """Rate of that copy per update, 1 - m of the paper: 1 with augmentation, 0.01 without."""
    q_target_rate: float = 1.0
    """Rate of the Q target per update; 1: the online network itself, as in SPR."""
