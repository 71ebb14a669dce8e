"""What a training minimises: the loss of a batch, in named terms. The choice of a hash center, or DSH."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dsh_cli.codes.bits import pack, unpack
from dsh_cli.codes.centers import construct, offsets, why_none
from dsh_cli.config import Recipe
from dsh_cli.data.dataset import Dataset
from dsh_cli.errors import RunError
from dsh_cli.runs.run import Run
from dsh_cli.training.terms import choice_term, dsh_loss

_OFFSET, _FULL = 0.3, 12  # largest offset of a bit, and the distance between centers from which it is that large


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
    settings: tuple[str, ...]  # the fields of the recipe that shape the loss

    def __call__(self, relaxed: Tensor, labels: Tensor) -> Terms:
        """The loss of (B, k) outputs and their (B,) labels."""


def make_objective(run: Run, dataset: Dataset, device: torch.device) -> Objective:
    """What a run minimises: the choice of hash centers where it has these, and the loss of DSH where not.

    Args:
        run: has the recipe, and keeps the centers.
        dataset: the training pictures.
        device: of the outputs.

    Raises:
        RunError: the run to go on with has lost its centers, they are damaged, or an earlier version began it.
    """
    config = run.config
    if config.centers == "none":
        reason = why_none(config.bits, len(np.unique(dataset.labels)))
        return DshObjective(config, f"hash centers are off: {reason}" if reason else "")
    return CenterObjective(run, dataset, device)


class DshObjective:
    """The loss of Liu et al., *Deep Supervised Hashing for Fast Image Retrieval*, CVPR 2016."""

    settings = ("margin", "alpha")

    def __init__(self, config: Recipe, told: str = "") -> None:
        self.config, self.told = config, told
        self.weights: Mapping[str, float | None] = {"pair": None, "quantization": config.alpha}

    def __call__(self, relaxed: Tensor, labels: Tensor) -> Terms:
        """Both terms of the loss."""
        loss, pair, quantization = dsh_loss(relaxed, labels, self.config.margin, self.config.alpha)
        return Terms(loss, {"pair": pair, "quantization": quantization})


class CenterObjective:
    """Every class has a hash center from the first step on, and its pictures are to choose it among all.

    Centers as in Yuan et al., *Central Similarity Quantization*, CVPR 2020; which class has which is drawn by lot.
    """

    settings = ("smoothing",)

    def __init__(self, run: Run, dataset: Dataset, device: torch.device) -> None:
        config = run.config
        if config.smoothing is None:
            raise RunError(
                f"{run.path} was begun by an earlier version of dsh, with another loss; "
                f"train anew with: dsh train --like {run.path}"
            )
        self.smoothing = config.smoothing
        self.weights: Mapping[str, float | None] = {"choice": None}
        seen = np.unique(dataset.labels)  # (C,) labels there are: not of classes held out
        words = construct(config.bits, len(seen), config.seed)
        self.distance = words.distance
        limit = f" of at most {words.bound.distance}" if words.bound else ""
        self.told = f"hash centers: distance {words.distance}{limit} between classes"
        packed = run.centers() if run.begun else None
        if packed is None and run.begun:
            raise RunError(
                f"{run.path / 'centers.safetensors'} is missing, and other centers would undo what was learned; "
                f"train again with: dsh train --like {run.path}"
            )
        if packed is None:
            drawn = np.random.default_rng(config.seed).permutation(len(words.words))[: len(seen)]
            packed = np.zeros((len(run.classes), -(-config.bits // 8)), np.uint8)
            packed[seen] = pack(words.words[drawn])
            run.write_centers(packed)
        theirs = unpack(packed[seen], config.bits)
        largest = _OFFSET * min(1.0, self.distance / _FULL)
        self.seen = torch.from_numpy(seen).to(device)
        self.centers = torch.from_numpy(theirs).to(device).float() * 2 - 1  # (C, k)
        self.offsets = torch.from_numpy(largest * offsets(theirs)).to(device).float()  # (k,)

    def __call__(self, relaxed: Tensor, labels: Tensor) -> Terms:
        """The choice of a center, alone."""
        rows = torch.searchsorted(self.seen, labels)
        choice = choice_term(relaxed, rows, self.centers, self.offsets, self.distance, self.smoothing)
        return Terms(choice, {"choice": choice})
