"""A decoder for the eye alone: it learns on detached features and teaches the model nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.world_models.encoders import ConvDecoder, normalise_image, stage_count
from reverie.world_models.nets import NormLinear

BATCH = 64
DEPTH, UNITS = 16, 256
LEARNING_RATE = 3e-3


class ProbeDecoder:
    """Pictures from features; weights, optimiser and random numbers are its own.

    What it shows is what can be read from the features, not what the model was asked to keep.
    """

    def __init__(
        self,
        feature_size: int,
        image_shape: tuple[int, int, int],
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        """Decode to the largest picture of 4 times a power of two that fits `image_shape`."""
        self.size = picture_size(image_shape)
        shape = (self.size, self.size, image_shape[2])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # small pictures have few layers of their own
            hidden = NormLinear(feature_size, UNITS)
            self._net = nn.Sequential(hidden, ConvDecoder(UNITS, shape, DEPTH)).to(device)
        self._optimiser = torch.optim.Adam(self._net.parameters(), lr=LEARNING_RATE)
        self._draws = torch.Generator().manual_seed(seed)
        self._mean = torch.zeros(feature_size, device=device)
        self._std = torch.ones(feature_size, device=device)
        # pictures are learned as differences from this one
        self._usual = torch.zeros(image_shape[2], self.size, self.size, device=device)

    @torch.enable_grad()
    def fit(self, features: Tensor, images: Tensor, *, updates: int) -> float:
        """Learn features [R, F] -> uint8 images [R, H, W, C]; returns the last squared error."""
        features = features.detach().float()
        self._mean, self._std = features.mean(0), features.std(0, correction=0) + 1e-2
        self._usual = self._resized(images[: 4 * BATCH]).mean(0)
        error = torch.full((), torch.nan)
        for _ in range(updates):
            rows = torch.randint(len(features), (BATCH,), generator=self._draws)
            rows = rows.to(features.device)
            wanted = self._resized(images[rows])
            error = F.mse_loss(self._decode(features[rows]), wanted)
            self._optimiser.zero_grad(set_to_none=True)
            error.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
        return float(error.detach())

    @torch.no_grad()
    def pictures(self, features: Tensor) -> Tensor:
        """Float [..., C, h, w] around 0, like those of a model's own decoder."""
        return self._decode(features.float())

    def _decode(self, features: Tensor) -> Tensor:
        difference: Tensor = self._net((features.detach() - self._mean) / self._std)
        return self._usual + difference

    def _resized(self, images: Tensor) -> Tensor:
        planes = normalise_image(images)
        if planes.shape[-1] == planes.shape[-2] == self.size:
            return planes
        return F.interpolate(planes, (self.size, self.size), mode="area")


def picture_size(image_shape: tuple[int, int, int]) -> int:
    """Largest 4 x power of two up to 64 that neither side of the image falls short of."""
    least = max(8, min(64, *image_shape[:2]))
    size = 4 << ((least // 4).bit_length() - 1)
    stage_count(size)
    return size


def to_uint8(pictures: Tensor) -> Tensor:
    """Decoded float [..., C, H, W] around 0 -> uint8 [..., H, W, C]."""
    scaled = ((pictures.float() + 0.5) * 255.0).clamp(0, 255).round()
    return scaled.to(torch.uint8).movedim(-3, -1)
