"""Settings of the recurrent world model; every default is MuDreamer at the paper's size S."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class WorldModelConfig:
    """Architecture and losses of MuDreamer; DreamerV3 (v1) is the same with other switches."""

    deter: int = 512
    """D: size of the recurrent state h."""
    stoch: int = 32
    """S: number of categorical groups of z."""
    classes: int = 32
    """C: classes of each group."""
    units: int = 512
    """Width of every hidden layer."""
    layers: int = 2
    """Hidden layers of every head."""
    cnn_depth: int = 32
    """Channels of the first convolution; doubles with each of them, down to 4x4 pixels."""
    unimix: float = 0.01
    """Share of the uniform distribution mixed into every categorical."""
    bins: int = 255
    """Two-hot bins of reward and value, evenly spaced in symlog space."""
    bin_range: float = 20.0
    """The bins span [-bin_range, bin_range] in symlog space."""
    enc_norm: Literal["bn", "ln"] = "bn"
    """Normalisation of the encoder: batch norm (MuDreamer) or layer norm (DreamerV3)."""
    bn_eps: float = 1e-3
    """Epsilon of the batch norm."""
    bn_momentum: float = 0.1
    """Weight of the newest batch in the running statistics."""
    kl_dyn: float = 0.95
    """Weight of KL[sg(posterior) || prior]."""
    kl_rep: float = 0.05
    """Weight of KL[posterior || sg(prior)]."""
    free_nats: float = 1.0
    """Each KL below this many nats per step carries no gradient."""
    heads: tuple[Literal["value", "action"], ...] = ("value", "action")
    """MuDreamer's extra predictors."""
    decoder: Literal["grad", "detached", "none"] = "none"
    """Pixel decoder: trains the model (DreamerV3), for pictures only, or absent."""
    action_state: Literal["posterior", "prior"] = "posterior"
    """Which previous state the action predictor reads."""
    value_target: Literal["ema_value", "slow_critic"] = "ema_value"
    """Network that bootstraps the value predictor's lambda-return."""
    value_slow_reg: float = 0.0
    """Weight of the cross-entropy between value predictor and its EMA copy."""
    value_ema_rate: float = 0.02
    """Rate of the EMA copies of the value predictor and of the targets of `spr`, per update."""
    objectives: tuple[Literal["spr", "barlow"], ...] = ()
    """Further representation objectives, each with its own small projector."""
    spr_scale: float = 1.0
    """Weight of spr: squared distance of unit vectors, 0 to 4, of the size of the other losses."""
    spr_steps: int = 5
    """K: steps that spr predicts ahead; less than the rows of a window."""
    barlow_scale: float = 1.0
    """Weight of barlow, which starts near 1: it is divided by the width of its projectors."""
    projector_width: int | None = None
    """Width of the projectors of spr and barlow; none: as `units`."""
    pred_scale: float = 1.0
    """Weight of the reward, continue, value and action losses."""
    gamma: float = 0.997
    """Discount per agent step."""
    lambda_: float = 0.95
    """Mixing of the lambda-return."""
