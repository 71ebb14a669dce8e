"""Hash centers in a training."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsh_cli.codes.bits import pack, unpack
from dsh_cli.codes.centers import Codewords, assign, construct
from dsh_cli.data.dataset import Dataset
from dsh_cli.network.encoding import Encoder
from dsh_cli.network.model import HashNet
from dsh_cli.runs.run import Run
from dsh_cli.training.losses import center_term, choice_term

_WARM_UP = 0.125  # share of the epochs before classes are given their centers, and in which these are phased in
_CHOICE = 10 / 3  # weight of choosing the own center beside pairs with centers: 1 in all by default, see LOG.md
_SURE = 6 / 7  # probability of the own center for a picture on it, all others equally far: 2 / distance for ten classes
_CLASSES = 3000  # that centers are found for: it takes seconds up to there, and grows with the cube
_MEANS = (5000, 20)  # pictures whose codes show where the classes are: in all, and for each class, at least


class Centers:
    """Hash centers in a training: made before it, given to classes after a warm-up, then phased in."""

    def __init__(self, run: Run, dataset: Dataset, device: torch.device, words: Codewords | None, told: str) -> None:
        self.run, self.dataset, self.device, self.words, self.told = run, dataset, device, words, told
        self.warm_up = max(1, round(_WARM_UP * run.config.epochs))  # epochs
        self.classes = np.unique(dataset.labels)  # without those held out
        # A picture on its center pays nothing for the others: 4 is what one bit adds to a squared distance.
        self.margin = min(run.config.margin, 4.0 * words.distance) if words else 0.0
        self.labels = torch.from_numpy(self.classes).to(device)
        odds = (len(self.classes) - 1) * _SURE / (1 - _SURE)
        self.scale = math.log(odds) / (2 * words.distance) if words else 0.0  # of inner products, into logits
        self.centers: Tensor | None = None  # (C, k) of +1 and -1, of these classes

    @classmethod
    def of(cls, run: Run, dataset: Dataset, device: torch.device) -> Centers:
        """Those of a run, or none where it wants none or can have none."""
        config, classes = run.config, len(np.unique(dataset.labels))
        if config.centers == "none" or not config.center_weight:
            return cls(run, dataset, device, None, "")
        reason = (
            "there is one class" if classes < 2
            else f"{classes} classes cannot have different codes of {config.bits} bits" if classes > 2**config.bits
            else f"{classes:,} classes would take too long, {_CLASSES:,} at most" if classes > _CLASSES
            else "they take a second epoch" if config.epochs < 2
            else ""
        )  # fmt: skip
        if reason:
            return cls(run, dataset, device, None, f"hash centers are off: {reason}")
        words = construct(config.bits, classes, config.seed)
        limit = f" of at most {words.bound.distance}" if words.bound else ""
        return cls(run, dataset, device, words, f"hash centers: distance {words.distance}{limit} between classes")

    def prepare(self, net: HashNet, epoch: int) -> None:
        """Give the classes their centers once the warm-up is over."""
        if self.words is None or self.centers is not None or epoch < self.warm_up:
            return
        packed = self.run.centers() if epoch > self.warm_up else None
        if packed is None:
            seed = self.run.config.seed
            means = _class_means(net, self.dataset, seed)[self.classes]
            packed = np.zeros((len(self.run.classes), -(-self.run.config.bits // 8)), np.uint8)
            packed[self.classes] = pack(assign(means, self.words.words, seed))
            self.run.write_centers(packed)
        bits = torch.from_numpy(unpack(packed[self.classes], self.run.config.bits)).to(self.device)
        self.centers = bits.float() * 2 - 1

    def term(self, relaxed: Tensor, labels: Tensor, epoch: float) -> Tensor:
        """What they add to the loss of a batch."""
        if self.centers is None:
            return relaxed.new_zeros(())
        weight = self.run.config.center_weight * min(1.0, epoch / self.warm_up - 1)
        own = torch.searchsorted(self.labels, labels)  # rows of the centers
        pairs = center_term(relaxed, own, self.centers, self.margin)
        return weight * (pairs + _CHOICE * choice_term(relaxed, own, self.centers, self.scale))


def _class_means(net: HashNet, dataset: Dataset, seed: int) -> NDArray[np.float32]:
    """(C, k) means of the relaxed codes of the classes, of a sample."""
    classes, (least, each) = len(dataset.classes), _MEANS
    rows = np.sort(np.random.default_rng(seed).permutation(len(dataset))[: max(least, each * classes)])
    encoder = Encoder(net)
    sums, counts = np.zeros((classes, encoder.bits), np.float32), np.zeros((classes, 1), np.float32)
    for batch in dataset.read(np.array_split(rows, -(-len(rows) // encoder.at_once))):
        labels = dataset.labels[batch.rows]
        np.add.at(sums, labels, encoder.relaxed(batch.images))
        np.add.at(counts, labels, 1)
    sums /= np.maximum(counts, 1)
    return sums
