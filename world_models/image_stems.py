"""Images into a grid of tokens: ResNet-18 (stride 32), or four convolutions (stride 16)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.world_models.act_jepa_config import ACTJEPAModelConfig
from reverie.world_models.transformer import sine_grid

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut; names are torchvision's."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, out, H / stride, W / stride]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """ResNet-18 without its classifier (He et al. 2016): images to a map of 512 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        sizes = (64, 64, 128, 256, 512)
        for number, (before, after) in enumerate(pairwise(sizes), 1):
            stride = 1 if number == 1 else 2
            blocks = BasicBlock(before, after, stride), BasicBlock(after, after, 1)
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.channels = 512

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> [N, 512, H / 32, W / 32], rounded up."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return x

    def load(self, path: Path) -> None:
        """Read weights with torchvision's names; a classifier in the file is left out."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found = {k: v for k, v in load_file(path).items() if not k.startswith("fc.")}
            self.load_state_dict(found)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"act_jepa.model.stem_weights: {path} holds no ResNet-18 as safetensors with "
                f"torchvision's names: {error}"
            ) from error


class ConvStack(nn.Sequential):
    """Four 4x4 convolutions of stride 2 with batch norm and ReLU: 16 tokens at 64 pixels."""

    def __init__(self, channels: int, depth: int) -> None:
        sizes = (channels, *(depth * 2**stage for stage in range(4)))
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            conv = nn.Conv2d(before, after, 4, 2, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers)
        self.channels = sizes[-1]


class ImageTokens(nn.Module):
    """An image as a row of h*w tokens with their place on the grid added.

    In train mode batch norm uses and moves its statistics; only the update is train mode.
    """

    def __init__(self, cfg: ACTJEPAModelConfig, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        height, width, channels = image_shape
        if cfg.stem == "resnet18" and channels != 3:
            raise ValueError(f"act_jepa.model.stem: resnet18 reads 3 channels, found {channels}")
        self.stem: ResNet18 | ConvStack
        self.stem = ResNet18() if cfg.stem == "resnet18" else ConvStack(channels, cfg.stem_depth)
        mean, std = (0.0,) * channels, (1.0,) * channels
        if cfg.stem_weights is not None:
            if not isinstance(self.stem, ResNet18):
                raise ValueError("act_jepa.model.stem_weights: only stem resnet18 has weights")
            self.stem.load(Path(cfg.stem_weights))
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        self.entry = nn.Conv2d(self.stem.channels, cfg.width, 1)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        with torch.no_grad():
            probe = self.eval().stem(torch.zeros(1, channels, height, width))
        place = sine_grid(probe.shape[-2], probe.shape[-1], cfg.width)
        self.register_buffer("place", place, persistent=False)
        self.place: Tensor

    def forward(self, image: Tensor) -> Tensor:
        """uint8 images [N, H, W, C] -> tokens [N, h*w, D]."""
        pixels = (image.movedim(-1, -3).float() / 255.0 - self.mean) / self.std
        out: Tensor = self.entry(self.stem(pixels)).flatten(2).transpose(1, 2)
        return out + self.place
