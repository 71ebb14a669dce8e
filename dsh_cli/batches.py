"""Batches for training: gathered from memory, moved to the device and augmented there, whole batches at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dsh_cli.config import Augment
from dsh_cli.data import Dataset

_SHIFT = {"digits": 0.075, "photos": 0.125}  # of the side, each way; the latter is CIFAR's usual 4 of 32 pixels
_TURN = math.radians(10)  # each way, for digits
_ZOOM = 0.1  # each way, for digits


class Batches:
    """Shuffled batches of a dataset, the same for the same seed and epoch.

    Every batch is full (a set smaller than one batch is one batch): what is left over waits for another
    epoch's shuffle. Pictures come as (B, channels, H, W) float in [0, 1], channels last in memory.
    """

    def __init__(self, dataset: Dataset, batch_size: int, augment: Augment, seed: int, device: torch.device) -> None:
        self.batch_size = min(batch_size, len(dataset))
        self.augment = augment
        self.seed = seed
        self.images = torch.from_numpy(dataset.images).to(device)  # (n, H, W, channels) uint8
        self.labels = torch.from_numpy(dataset.labels).to(device)

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch: pictures and their (B,) labels."""
        # On the CPU whatever the device, so that every machine sees the same order.
        rng = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        order = torch.randperm(len(self.labels), generator=rng).to(self.labels.device)
        for chosen in order[: len(self) * self.batch_size].view(-1, self.batch_size):
            pictures = to_float(self.images[chosen])
            yield augment(pictures, self.augment, rng), self.labels[chosen]


def to_float(images: Tensor) -> Tensor:
    """(B, H, W, channels) uint8 -> (B, channels, H, W) float in [0, 1], a view that is channels last."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def augment(images: Tensor, kind: Augment, rng: torch.Generator) -> Tensor:
    """Vary each of (B, channels, H, W) pictures at random.

    `digits`: shift, turn and zoom, black outside. `photos`: mirror and shift by whole pixels, edges reflected.
    """
    if kind == "none":
        return images
    count, _, side, _ = images.shape
    shift = _uniform(_SHIFT[kind], (count, 2), rng)  # in sides
    if kind == "digits":
        angle, zoom = _uniform(_TURN, (count,), rng), 1 + _uniform(_ZOOM, (count,), rng)
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        padding = "zeros"
    else:
        shift = (shift * side).round() / side
        cos = torch.ones(count)
        sin = torch.zeros(count)
        padding = "reflection"
    # Rows of the affine map from output to input, in the coordinates of grid_sample: -1 to 1 across the picture.
    maps = torch.stack([cos, -sin, 2 * shift[:, 0], sin, cos, 2 * shift[:, 1]], dim=1).view(count, 2, 3)
    if kind == "photos":
        mirrored = torch.rand(count, generator=rng) < 0.5
        maps[mirrored, 0] *= -1
    grid = _affine_grid(maps.to(images.device), side)  # (B, H, W, 2)
    moved = F.grid_sample(images, grid, padding_mode=padding, align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)  # which it already is for one channel


def _affine_grid(maps: Tensor, side: int) -> Tensor:
    """As `F.affine_grid` for (B, 2, 3) maps of square pictures, without its slow batched product."""
    centres = (2 * torch.arange(side, device=maps.device) + 1) / side - 1  # of pixels, -1 to 1
    across = centres[None, None, :, None] * maps[:, None, None, :, 0]  # (B, 1, W, 2)
    down = centres[None, :, None, None] * maps[:, None, None, :, 1]  # (B, H, 1, 2)
    return across + down + maps[:, None, None, :, 2]


def _uniform(reach: float, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=rng) * 2 - 1) * reach
