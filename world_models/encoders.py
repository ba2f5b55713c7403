"""Representation network (images and vectors) and the pixel decoder of the baseline."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reverie.world_models.nets import LN_EPS, ChannelLayerNorm, hidden_linear, init_hidden_
from reverie.world_models.ops import symlog


def normalise_image(image: Tensor) -> Tensor:
    """uint8 [..., H, W, C] -> float32 [..., C, H, W] in [-0.5, 0.5], stored channels-last."""
    return (image.float() / 255.0 - 0.5).movedim(-1, -3)


def stage_count(image_size: int) -> int:
    """Stride-2 layers from `image_size` down to 4 pixels; the size must be 4 times a power of 2."""
    stages = (image_size // 4).bit_length() - 1
    if image_size < 8 or 4 * 2**stages != image_size:
        raise ValueError(
            f"image size must be 4 x a power of two (8, 16, 32, 64, ...), found {image_size}: "
            "set env.image_size to one of these"
        )
    return stages


class ConvEncoder(nn.Module):
    """Stride-2 convolutions with batch norm (MuDreamer) or layer norm (DreamerV3), then SiLU.

    In train mode batch norm uses the statistics of the whole batch [B*T, H, W] and moves its
    running ones; in eval mode it reads the running ones. Only the model update is train mode.
    """

    def __init__(
        self, image_size: int, channels: int, depth: int, norm: str, eps: float, momentum: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in range(stage_count(image_size)):
            out = depth * 2**stage
            conv = nn.Conv2d(channels, out, 4, stride=2, padding=1, bias=False)
            init_hidden_(conv.weight)
            layers += [conv, _norm(out, norm, eps, momentum), nn.SiLU()]
            channels = out
        self.layers = nn.Sequential(*layers)
        self.size = channels * 16

    def forward(self, image: Tensor) -> Tensor:
        """uint8 images [..., H, W, C] -> embedding [..., E]."""
        lead = image.shape[:-3]
        x = normalise_image(image.reshape(-1, *image.shape[-3:]))
        out: Tensor = self.layers(x)
        return out.flatten(1).reshape(*lead, self.size)


def _norm(channels: int, kind: str, eps: float, momentum: float) -> nn.Module:
    if kind == "bn":
        return nn.BatchNorm2d(channels, eps=eps, momentum=momentum)
    return ChannelLayerNorm(channels)


class VectorEncoder(nn.Module):
    """MLP on symlog vectors, with the norm of the image encoder."""

    def __init__(
        self, in_size: int, units: int, layers: int, norm: str, eps: float, momentum: float
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for _ in range(layers):
            rule: nn.Module = (
                nn.BatchNorm1d(units, eps=eps, momentum=momentum)
                if norm == "bn"
                else nn.LayerNorm(units, eps=LN_EPS)
            )
            blocks += [hidden_linear(in_size, units), rule, nn.SiLU()]
            in_size = units
        self.layers = nn.Sequential(*blocks)
        self.size = units

    def forward(self, vector: Tensor) -> Tensor:
        """Vectors [..., V] -> embedding [..., units]."""
        lead = vector.shape[:-1]
        out: Tensor = self.layers(symlog(vector.float().reshape(-1, vector.shape[-1])))
        return out.reshape(*lead, -1)


class Encoder(nn.Module):
    """Embeds every kind of observation the task has and concatenates: image, then vector."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None,
        vector_size: int,
        *,
        depth: int,
        units: int,
        layers: int,
        norm: str,
        eps: float,
        momentum: float,
    ) -> None:
        super().__init__()
        if image_shape is None and vector_size == 0:
            raise ValueError("a task needs an image or a vector observation, found neither")
        if image_shape is not None and image_shape[0] != image_shape[1]:
            raise ValueError(
                f"images must be square, found {image_shape}: resize in the environment"
            )
        self.image = image_shape and ConvEncoder(
            image_shape[0], image_shape[2], depth, norm, eps, momentum
        )
        self.vector = (
            VectorEncoder(vector_size, units, layers, norm, eps, momentum) if vector_size else None
        )
        self.size = sum(part.size for part in (self.image, self.vector) if part)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """Observations [..., *] -> embedding x [..., E]."""
        parts = []
        if self.image:
            parts.append(self.image(obs["image"]))
        if self.vector:
            parts.append(self.vector(obs["vector"]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class ConvDecoder(nn.Module):
    """Features to pixel means in [-0.5, 0.5], no output squashing (DreamerV3 v1)."""

    def __init__(self, in_size: int, image_shape: tuple[int, int, int], depth: int) -> None:
        super().__init__()
        stages = stage_count(image_shape[0])
        channels = depth * 2 ** (stages - 1)
        self.entry = nn.Linear(in_size, channels * 16)
        init_hidden_(self.entry.weight)
        nn.init.zeros_(self.entry.bias)
        layers: list[nn.Module] = []
        for _ in range(stages - 1):
            out = channels // 2
            deconv = nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1, bias=False)
            init_hidden_(deconv.weight)
            layers += [deconv, ChannelLayerNorm(out), nn.SiLU()]
            channels = out
        last = nn.ConvTranspose2d(channels, image_shape[2], 4, stride=2, padding=1)
        nn.init.xavier_uniform_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.layers = nn.Sequential(*layers, last)

    def forward(self, feature: Tensor) -> Tensor:
        """Features [..., F] -> images [..., C, H, W]."""
        lead = feature.shape[:-1]
        x = self.entry(feature).reshape(-1, self.entry.out_features // 16, 4, 4)
        image: Tensor = self.layers(x)
        return image.reshape(*lead, *image.shape[1:])
