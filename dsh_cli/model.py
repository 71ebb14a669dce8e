"""Backbones and the hash layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsh_cli.config import ModelConfig

_WIDTHS = (16, 32, 64)  # channels of the three stages of the small ResNet
_STRIDES = ((16, 1), (24, 2), (48, 3))  # of the stem, for pictures below so many pixels; 4 for larger ones


class HashNet(nn.Module):
    """Normalisation, a backbone, and a hash layer of k outputs.

    Takes (B, channels, H, W) float pictures in [0, 1] and returns (B, k) relaxed codes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.channels, 1, 1))
        self.register_buffer("std", torch.ones(config.channels, 1, 1))
        features: SmallResNet | DshCnn
        if config.backbone == "small-resnet":
            features = SmallResNet(config.channels, config.image_size)
        else:
            features = DshCnn(config.channels, config.image_size)
        self.backbone = features
        self.hash_layer = nn.Linear(features.outputs, config.bits)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone((images - self.mean) / self.std)  # (B, outputs)
        relaxed: Tensor = self.hash_layer(features)  # (B, k)
        return relaxed


class SmallResNet(nn.Module):
    """Three residual stages after an early stride, then global pooling: most of ResNet's gain at a CPU's price.

    He et al., *Deep Residual Learning*, CVPR 2016, with one block a stage.
    """

    outputs = _WIDTHS[-1]

    def __init__(self, channels: int, image_size: int) -> None:
        super().__init__()
        stride = next((stride for below, stride in _STRIDES if image_size < below), 4)
        kernel = max(3, 2 * stride - 1)  # overlaps its neighbours
        self.stem = nn.Sequential(
            nn.Conv2d(channels, _WIDTHS[0], kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(_WIDTHS[0]),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.Sequential(
            ResidualBlock(_WIDTHS[0], _WIDTHS[0], stride=1),
            ResidualBlock(_WIDTHS[0], _WIDTHS[1], stride=2),
            ResidualBlock(_WIDTHS[1], _WIDTHS[2], stride=2),
        )

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.stages(self.stem(images))  # (B, 64, h, w)
        return maps.mean(dim=(2, 3))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


class DshCnn(nn.Module):
    """The network of the DSH paper (Liu et al., CVPR 2016, figure 2 and section 3): for one picture size only."""

    outputs = 500

    def __init__(self, channels: int, image_size: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(32, 32, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(3, 2, ceil_mode=True),
        )
        side = image_size
        for _ in range(3):
            side = -(-(side - 3) // 2) + 1  # pooling 3/2, rounded up
        self.fc = nn.Linear(64 * side * side, self.outputs)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.fc(self.features(images).flatten(1)))
