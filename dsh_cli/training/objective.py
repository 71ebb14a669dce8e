"""What a training minimises: the loss of a batch, in named terms. There is one objective, DSH with its hash centers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsh_cli.codes.bits import pack, unpack
from dsh_cli.codes.centers import Codewords, assign, construct
from dsh_cli.config import Recipe
from dsh_cli.data.dataset import Dataset
from dsh_cli.errors import RunError
from dsh_cli.network.encoding import Encoder
from dsh_cli.network.model import HashNet
from dsh_cli.runs.run import Run
from dsh_cli.training.terms import center_term, choice_term, dsh_loss

_WARM_UP = 0.125  # share of the epochs before classes are given their centers, and in which these are phased in
_CHOICE = 10 / 3  # weight of choosing the own center beside pairs with centers: 1 in all by default, see LOG.md
_CLASSES = 3000  # that centers are found for: it takes seconds up to there, and grows with the cube
_MEANS = (5000, 20)  # pictures whose codes show where the classes are: in all, and for each class, at least


@dataclass(frozen=True)
class Terms:
    """The loss of a batch.

    Attributes:
        total: what to minimise, a scalar: the weighted sum of the terms.
        named: scalars without their weights, by name; the same names in every batch.
    """

    total: Tensor
    named: Mapping[str, Tensor]


class Objective(Protocol):
    """What the loop asks for the loss of a batch. It alone knows what terms there are."""

    weights: Mapping[str, float | None]  # of each term in the total, by name; None: it enters as it is
    told: str  # what is to be said of it before the first batch, if anything

    def prepare(self, net: HashNet, epoch: float) -> None:
        """Before each epoch, which are numbered from 0, or before what is left of it where a training goes on."""

    def __call__(self, relaxed: Tensor, labels: Tensor, epoch: float) -> Terms:
        """The loss of (B, k) outputs and their (B,) labels, at a time in epochs."""

    def settings(self) -> tuple[str, ...]:
        """The fields of the recipe that shape the loss by now, two or more."""


class DshObjective:
    """DSH with hash centers: made before the training, given to classes after a warm-up, then phased in.

    Liu et al., *Deep Supervised Hashing for Fast Image Retrieval*, CVPR 2016; centers as in Yuan et al., *Central
    Similarity Quantization*, CVPR 2020, here as members of pairs, and chosen among by a cross-entropy.

    Args:
        run: has the recipe, and keeps the centers.
        dataset: the training pictures.
        batches: of one epoch.
        device: of the outputs.
    """

    def __init__(self, run: Run, dataset: Dataset, batches: int, device: torch.device) -> None:
        self.run, self.dataset, self.device = run, dataset, device
        config = run.config
        self.weights: Mapping[str, float | None] = {"pair": None, "quantization": config.alpha, "centers": None}
        self.warm_up = max(1, round(_WARM_UP * config.epochs))  # epochs
        # (C,) labels there are: not of classes held out
        self.seen = torch.from_numpy(np.unique(dataset.labels)).to(device)
        self.centers: Tensor | None = None  # (C, k) of +1 and -1, of their classes
        self.words, self.told = self._words(batches)

    def _words(self, batches: int) -> tuple[Codewords | None, str]:
        """The centers, no class's yet, and what is to be said of them; none where the run wants or can have none."""
        config, class_count = self.run.config, len(self.seen)
        if config.centers == "none" or not config.center_weight:
            return None, ""
        if reason := _why_no_centers(config, class_count, self.warm_up, batches):
            return None, f"hash centers are off: {reason}"
        words = construct(config.bits, class_count, config.seed)
        limit = f" of at most {words.bound.distance}" if words.bound else ""
        return words, f"hash centers: distance {words.distance}{limit} between classes"

    def prepare(self, net: HashNet, epoch: float) -> None:
        """Give the classes their centers once the warm-up is over.

        Raises:
            RunError: a resumed run has lost its centers, or they are damaged.
        """
        if self.words is None or self.centers is not None or epoch < self.warm_up:
            return
        packed = self.run.centers() if epoch > self.warm_up else None
        if packed is None and epoch > self.warm_up:
            raise RunError(
                f"{self.run.path / 'centers.safetensors'} is missing, and other centers would undo what was learned; "
                f"train again with: dsh train --like {self.run.path}"
            )
        seen, bits = self.seen.cpu().numpy(), self.run.config.bits
        if packed is None:
            seed = self.run.config.seed
            means = _class_means(net, self.dataset, seed)[seen]
            packed = np.zeros((len(self.run.classes), -(-bits // 8)), np.uint8)
            packed[seen] = pack(assign(means, self.words.words, seed))
            self.run.write_centers(packed)
        self.centers = torch.from_numpy(unpack(packed[seen], bits)).to(self.device).float() * 2 - 1

    def __call__(self, relaxed: Tensor, labels: Tensor, epoch: float) -> Terms:
        """The loss of DSH, and what the centers add to it."""
        config = self.run.config
        loss, pair, quantization = dsh_loss(relaxed, labels, config.margin, config.alpha)
        centers = self._centers(relaxed, labels, epoch)
        return Terms(loss + centers, {"pair": pair, "quantization": quantization, "centers": centers})

    def _centers(self, relaxed: Tensor, labels: Tensor, epoch: float) -> Tensor:
        """Pairs with centers and the choice among these, weighted by how far they are phased in."""
        if self.centers is None or self.words is None:
            return relaxed.new_zeros(())
        config, distance = self.run.config, self.words.distance
        weight = config.center_weight * min(1.0, epoch / self.warm_up - 1)
        own = torch.searchsorted(self.seen, labels)  # rows of the centers
        # A picture on its center pays nothing for the others: 4 is what one bit adds to a squared distance.
        pairs = center_term(relaxed, own, self.centers, min(config.margin, 4.0 * distance))
        return weight * (pairs + _CHOICE * choice_term(relaxed, own, self.centers, distance))

    def settings(self) -> tuple[str, ...]:
        """Margin and alpha, and the weight of the centers once these are there."""
        return ("margin", "alpha") if self.centers is None else ("margin", "alpha", "center_weight")


def _why_no_centers(config: Recipe, class_count: int, warm_up: int, batches: int) -> str:
    """Why a run can have no hash centers; nothing where it can."""
    last = config.epochs - 1 / batches  # when the last batch comes, in epochs; at the end of the warm-up they weigh 0
    return (
        "there is one class" if class_count < 2
        else f"{class_count} classes cannot have different codes of {config.bits} bits" if class_count > 2**config.bits
        else f"{class_count:,} classes would take too long, {_CLASSES:,} at most" if class_count > _CLASSES
        else "one epoch is too few for them" if config.epochs < 2
        else "two epochs of one batch are too few for them" if last <= warm_up
        else ""
    )  # fmt: skip


def _class_means(net: HashNet, dataset: Dataset, seed: int) -> NDArray[np.float32]:
    """(C, k) means of the relaxed codes of the classes, of a sample."""
    class_count, (least, each) = len(dataset.classes), _MEANS
    rows = np.sort(np.random.default_rng(seed).permutation(len(dataset))[: max(least, each * class_count)])
    encoder = Encoder(net)
    sums, counts = np.zeros((class_count, encoder.bits), np.float32), np.zeros((class_count, 1), np.float32)
    for batch in dataset.read(np.array_split(rows, -(-len(rows) // encoder.at_once))):
        labels = dataset.labels[batch.rows]
        np.add.at(sums, labels, encoder.relaxed(batch.images))
        np.add.at(counts, labels, 1)
    sums /= np.maximum(counts, 1)
    return sums
