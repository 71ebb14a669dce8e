"""Batches for training: gathered from memory or files, then augmented on the device, whole batches at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsh_cli.config import Augment, Recipe
from dsh_cli.data.dataset import Dataset
from dsh_cli.network.encoding import to_float
from dsh_cli.pictures.reading import PictureFiles
from dsh_cli.training.processes import ALONE, Processes
from dsh_cli.training.start import Part, shown_first

_SHIFT = 0.075  # of the side, each way: up to 2 of 28 or of 32 pixels
_TINT, _DEVIATION = 0.2, 0.25  # each way, of contrast and of brightness; usual deviation of a channel of photos


class Batches:
    """Shuffled batches of a dataset, the same for the same seed and epoch.

    Pictures come as (B, channels, H, W) float in [0, 1], channels last in memory, features as (B, d).

    Every batch is full (a set smaller than one batch is one batch): what is left over waits for another
    epoch's shuffle. Of several processes each has its share of every batch, varied as it would be for one alone.

    With `per_class` > 0, so many pictures of a class come together (P x K sampling: Hermans et al., *In Defense of
    the Triplet Loss*, 2017), so that a batch has pairs of one class however many classes there are. In the first
    `small_epochs`, and parts of one, pictures are shown at three quarters of their side, for about half the cost.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        augment: Augment,
        seed: int,
        device: torch.device,
        per_class: int = 0,
        small_epochs: float = 0,
        processes: Processes = ALONE,
    ) -> None:
        self.dataset = dataset
        self.batch_size = min(batch_size, len(dataset))
        self.augment = augment
        self.seed = seed
        self.device = device
        self.per_class = per_class
        self.small_epochs = small_epochs
        self.processes = processes
        self.read = 0  # batches of the epoch under way, those of too few readable pictures included
        self.waited = 0.0  # seconds of this epoch the caller waited for batches
        self.rng = torch.Generator()  # of this epoch
        self._notes: dict[str, bool] = {}  # what there is to report, and whether it was
        self.labels = torch.from_numpy(dataset.labels).to(device)
        # in even epochs, and the others in odd ones: both ways round as often, and sooner than by lot (Jordan, 2024)
        self._mirrored = torch.rand(len(dataset), generator=torch.Generator().manual_seed(seed)) < 0.5
        self._features = None if dataset.features is None else torch.from_numpy(dataset.features)  # or on the disk
        self._held = torch.from_numpy(dataset.images).to(device) if isinstance(dataset.images, np.ndarray) else None

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    @property
    def small_steps(self) -> int:
        """Steps of the training, its first, that see smaller pictures; none of a training of one step."""
        return 0 if self._features is not None else int(self.small_epochs * len(self))

    def shape(self, step: int) -> tuple[int, ...]:
        """Of a picture, (channels, H, W), or of features, (d,), in a step of the training, counted from 0."""
        if self._features is not None:
            return (self._features.shape[2],)
        side = self.dataset.image_size
        if step < self.small_steps:
            side = shown_first(side)
        return (self.dataset.channels, side, side)

    def epoch(self, number: int, part: Part | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, or those after a part of it: pictures, or features, and their (B,) labels.

        Pictures that cannot be read are left out; a batch is dropped of which a process comes to fewer than two.
        """
        # On the CPU whatever the device, so that every machine sees the same order.
        rng = self.rng = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        order = torch.randperm(len(self.labels), generator=rng)
        if self.per_class:
            order = _together(order, torch.from_numpy(self.dataset.labels), self.per_class, rng)
        self.read, self.waited = 0, 0.0
        if part is not None:
            self.read, self.waited = part.read, part.waited
            rng.set_state(part.shuffle)
            self._notes.update(dict.fromkeys(part.notes, False))
        asked = time.perf_counter()
        left = order[: len(self) * self.batch_size].view(-1, self.batch_size)[self.read :]
        for inputs, rows, mirrored, places in self._read(left, self._mirrored ^ bool(number % 2)):
            if self._features is None:
                inputs = augment(inputs, self.augment, Lots(rng, self.batch_size, places), mirrored)
                side = self.shape(number * len(self) + self.read - 1)[-1]
                if side != self.dataset.image_size:
                    inputs = F.interpolate(inputs, size=(side, side), mode="bilinear", antialias=True)
            batch = inputs, self.labels[rows]
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()
        self.waited += time.perf_counter() - asked

    def new_notes(self) -> tuple[str, ...]:
        """What the data had to report since this was last asked: pictures that cannot be read, a full cache."""
        new = self.untold()
        self._notes.update(dict.fromkeys(new, True))
        return new

    def untold(self) -> tuple[str, ...]:
        """What `new_notes` would say, without it being said."""
        pictures = self.dataset.images
        cache = pictures.intake.cache if isinstance(pictures, PictureFiles) else None
        if cache is not None and cache.problem is not None:
            self._notes.setdefault(cache.problem, False)
        return tuple(note for note, told in self._notes.items() if not told)

    def _read(self, batches: Tensor, mirrored: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Pictures as (b, H, W, channels) uint8, their rows, which are to be mirrored, and their places in the batch.

        Or features as (b, d), of the mirror image where that is wanted, and there.
        """
        places = torch.arange(self.batch_size)[self.processes.share(self.batch_size)]
        batches = batches[:, places]
        if self._features is not None:
            both = self._features.shape[1] > 1
            for rows, turned in zip(batches, mirrored[batches], strict=True):
                self.read += 1
                yield self._features[rows, turned.long() * both].to(self.device), rows.to(self.device), turned, places
            return
        if self._held is not None:
            for rows, turned in zip(batches.to(self.device), mirrored[batches], strict=True):
                self.read += 1
                yield self._held[rows], rows, turned, places
            return
        for planned, batch in zip(batches, self.dataset.read(batches.numpy()), strict=True):
            self.read += 1
            for skip in batch.skipped:
                self._notes.setdefault(f"{skip.path}: {skip.error}; left out", False)
            (lacking,) = self.processes.most(2 - len(batch.rows))
            if lacking <= 0:
                rows = torch.from_numpy(batch.rows)
                images, there = torch.from_numpy(batch.images).to(self.device), torch.isin(planned, rows)
                yield images, rows.to(self.device), mirrored[rows], places[there]


def make_batches(
    config: Recipe,
    dataset: Dataset,
    device: torch.device,
    processes: Processes = ALONE,
) -> Batches:
    """The batches of a recipe."""
    small = config.epochs / 2 if config.grow else 0
    return Batches(dataset, config.batch_size, config.augment, config.seed, device, config.per_class, small, processes)


def _together(order: Tensor, labels: Tensor, per_class: int, rng: torch.Generator) -> Tensor:
    """A shuffle (n,) rearranged so that `per_class` pictures of a class, or a few more, stand side by side."""
    by_class = order[labels[order].argsort(stable=True)]  # (n,) shuffled within each class
    counts = torch.bincount(labels)  # (C,)
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[labels[by_class]]  # (n,) within its class
    last = (counts // per_class).clamp_min(1)[labels[by_class]] - 1
    group = torch.minimum(rank // per_class, last)  # what is left over joins its class's last group
    begins = (rank == 0) | (group != group.roll(1))
    group_of = begins.cumsum(0) - 1  # (n,) number of each picture's group
    return by_class[torch.randperm(int(begins.sum()), generator=rng)[group_of].argsort(stable=True)]


@dataclass(frozen=True)
class Lots:
    """Random numbers of a batch, of which some pictures take theirs: the same whoever takes the others."""

    rng: torch.Generator
    count: int  # pictures of the batch
    places: Tensor  # (b,) of these among them

    def uniform(self, reach: float, *shape: int) -> Tensor:
        """(b, ...) numbers up to `reach` each way."""
        return (torch.rand((self.count, *shape), generator=self.rng)[self.places] * 2 - 1) * reach


def augment(pictures: Tensor, kind: Augment, lots: Lots, mirrored: Tensor) -> Tensor:
    """(B, H, W, channels) uint8 pictures, each varied at random, as (B, channels, H, W) float in [0, 1].

    `digits`: shift by whole pixels, edges reflected. `photos`: also mirror those of which (B,) `mirrored` says so, and
    vary contrast and the brightness of each colour.
    """
    if kind == "none":
        return to_float(pictures)
    if kind == "digits":
        return to_float(_shifted(pictures, torch.zeros_like(mirrored), lots))
    images = to_float(_shifted(pictures, mirrored, lots))
    return _tinted(images, lots) if images.shape[1] > 1 else images


def _tinted(images: Tensor, lots: Lots) -> Tensor:
    """Vary contrast about middle grey, and each channel of (B, channels, H, W) by a share of the usual deviation."""
    contrast = 1 + lots.uniform(_TINT, 1, 1, 1).to(images.device)
    shift = lots.uniform(_TINT * _DEVIATION, images.shape[1], 1, 1).to(images.device)
    return torch.addcmul(shift + 0.5 * (1 - contrast), images, contrast).clamp_(0, 1)


def _shifted(pictures: Tensor, mirrored: Tensor, lots: Lots) -> Tensor:
    """Mirror some of (B, H, W, channels) pictures, and shift each by whole pixels: bytes are moved, none computed."""
    count, side, _, channels = pictures.shape
    shift = (lots.uniform(_SHIFT, 2) * side).round().long()
    places = torch.arange(side)
    across = places + shift[:, :1]  # (B, W)
    across = _reflected(torch.where(mirrored[:, None], side - 1 - across, across), side)
    down = _reflected(places + shift[:, 1:], side)  # (B, H)
    rows = torch.arange(count)[:, None] * side + down  # of all pictures, one above the other
    pixels = (rows[:, :, None] * side + across[:, None, :]).to(pictures.device)  # (B, H, W)
    # one index a pixel: twice as fast as an index an axis
    return pictures.reshape(-1, channels).index_select(0, pixels.view(-1)).view(pictures.shape)


def _reflected(places: Tensor, side: int) -> Tensor:
    """Places up to a side beyond the edges, back inside: -1 is 0 again, and -2 is 1."""
    places = torch.where(places < 0, -1 - places, places)
    return torch.where(places >= side, 2 * side - 1 - places, places)
