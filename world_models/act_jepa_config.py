"""Sizes and losses of the ACT-JEPA model, of ACT and of chunked behaviour cloning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Modality = Literal["proprio", "state", "image"]
Guard = Literal["ema", "stop_gradient", "none", "sigreg", "vicreg", "barlow"]


@dataclass(frozen=True)
class ACTJEPAModelConfig:
    """One model for act-jepa, act and bc; defaults are the released code's (arXiv 2501.14622)."""

    policy: Literal["transformer", "mlp"] = "transformer"
    """Chunk decoder on a transformer encoder (ACT), or a plain MLP on the input tokens (bc)."""
    chunk: int = 30
    """P: actions and latents predicted at once, the current step's included."""
    inputs: tuple[Modality, ...] = ("proprio", "image")
    """What the context shows: the robot's own part of the vector, the whole vector, the image."""
    targets: tuple[Modality, ...] = ("proprio",)
    """What is encoded at every step of the chunk and predicted; each one must be an input."""
    w_jepa: float = 1.0
    """Weight of the latent loss; 0 is ACT: no predictor and no target exist."""
    w_action: float = 1.0
    """Weight of the action loss; 0 leaves the latent prediction alone, and a policy untrained."""
    guard: Guard = "ema"
    """What keeps latents from collapsing; none lets the gradient into the targets: a control."""
    guard_scale: float = 0.05
    """Weight of sigreg, vicreg or barlow; of no effect with the other guards."""
    sigreg_slices: int = 256
    """Random directions of sigreg, drawn anew at every update."""
    guard_offsets: int = 3
    """Offsets of the chunk, evenly spaced, at which sigreg, vicreg or barlow look."""
    guard_width: int = 64
    """Output features of the projector below sigreg, vicreg or barlow."""
    ema_start: float = 0.996
    """Momentum of the EMA target at the first update; below 1,000 updates use 0.99."""
    ema_end: float = 1.0
    """Momentum after the last update; linear in between."""
    action_conditioned: bool = False
    """Latents are predicted causally under the actions taken: a model that a planner can use."""
    width: int = 512
    """D: width of encoder and decoder."""
    ffn: int = 2048
    """Hidden units of their feed-forward layers."""
    heads: int = 8
    """Attention heads, in the predictor too."""
    encoder_layers: int = 4
    """Self-attention layers of the context encoder."""
    decoder_layers: int = 1
    """Cross-attention layers of the action decoder (ACT's seven are one, by an indexing bug)."""
    predictor_width: int = 128
    """Width of the narrow latent predictor; its feed-forward layers are four times as wide."""
    predictor_layers: int = 4
    """Cross-attention layers of the latent predictor."""
    mlp_layers: int = 2
    """Hidden layers of `policy` mlp, each of `ffn` units."""
    dropout: float = 0.1
    """Share dropped in encoder, decoder and predictor while learning; never in the targets."""
    task_slots: int = 50
    """Rows of the table of task embeddings; at least as many as tasks."""
    vae: bool = False
    """ACT's style variable, a CVAE on the action chunk; z = 0 when acting. Only with w_jepa 0."""
    vae_size: int = 32
    """Dimensions of the style variable."""
    vae_layers: int = 4
    """Self-attention layers of the CVAE encoder."""
    kl_scale: float = 10.0
    """Weight of its KL term."""
    stem: Literal["resnet18", "conv"] = "resnet18"
    """Image stem: stride 32 (from 128 pixels), or four convolutions of stride 16 (64 to 84)."""
    stem_depth: int = 32
    """Channels of the first layer of stem conv; they double with every layer."""
    stem_weights: str | None = None
    """ResNet-18 weights to begin with, a safetensors file with torchvision's names; none: random.
    With weights, images are normalised by ImageNet's mean and standard deviation."""
