"""What a training minimises: the loss of a batch, in named terms. The choice of a hash center, or DSH."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dsh_cli.codes.bits import Packed, pack, unpack
from dsh_cli.codes.bounds import class_distance_bound
from dsh_cli.codes.centers import Words, drawn, minimum_distance, offsets, why_none
from dsh_cli.data.dataset import Dataset
from dsh_cli.errors import RunError
from dsh_cli.runs.run import Run
from dsh_cli.training.processes import ALONE, Processes
from dsh_cli.training.terms import choice_scale, choice_term, choices, dsh_loss

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

    def begin(self, hash_layer: nn.Linear) -> None:
        """Set what of a new hash layer is to begin otherwise than by lot."""

    def __call__(self, relaxed: Tensor, labels: Tensor) -> Terms:
        """The loss of (B, k) outputs and their (B,) labels."""


class DshObjective:
    """The loss of Liu et al., *Deep Supervised Hashing for Fast Image Retrieval*, CVPR 2016."""

    settings: tuple[str, ...] = ("margin", "alpha")

    def __init__(self, margin: float, alpha: float, told: str = "") -> None:
        self.margin, self.alpha, self.told = margin, alpha, told
        self.weights: Mapping[str, float | None] = {"pair": None, "quantization": alpha}

    def begin(self, hash_layer: nn.Linear) -> None:
        """Nothing: it begins by lot."""

    def __call__(self, relaxed: Tensor, labels: Tensor) -> Terms:
        """Both terms of the loss."""
        loss, pair, quantization = dsh_loss(relaxed, labels, self.margin, self.alpha)
        return Terms(loss, {"pair": pair, "quantization": quantization})


class CenterObjective:
    """Every class has a hash center from the first step on, and its pictures learn to choose it among all.

    Centers as in Yuan et al., *Central Similarity Quantization*, CVPR 2020.

    Args:
        seen: (C,) labels there are, in order: not those of classes held out.
        centers: (C, k) of 0 and 1, of these.
        smoothing: probability of other centers, see `choice_scale`.
        device: of the outputs.
        told: what is to be said of it.
    """

    settings: tuple[str, ...] = ("smoothing",)

    def __init__(
        self, seen: NDArray[np.int64], centers: Words, smoothing: float, device: torch.device, told: str = ""
    ) -> None:
        self.told = told
        self.weights: Mapping[str, float | None] = {"choice": None}
        distance = minimum_distance(centers)
        self.scale = choice_scale(len(seen), distance, smoothing)
        largest = _OFFSET * min(1.0, distance / _FULL)
        self.seen = torch.from_numpy(seen).to(device)
        self.centers = torch.from_numpy(centers).to(device).float() * 2 - 1
        self.targets = choices(self.centers, self.scale)
        self.offsets = torch.from_numpy(largest * offsets(centers)).to(device).float()  # (k,)

    def begin(self, hash_layer: nn.Linear) -> None:
        """Set all to 0, so that outputs stay within what centers differ in, and the bias to what takes offsets back.

        The loss sees of the offsets only what is a sum of centers, which in many bits is little of them: by itself
        training would not come to the rest.
        """
        nn.init.zeros_(hash_layer.weight)
        with torch.no_grad():
            hash_layer.bias.copy_(-self.offsets)

    def __call__(self, relaxed: Tensor, labels: Tensor) -> Terms:
        """The choice of a center, alone."""
        rows = torch.searchsorted(self.seen, labels)
        choice = choice_term(relaxed, self.targets[rows], self.centers, self.offsets, self.scale)
        return Terms(choice, {"choice": choice})


def make_objective(
    run: Run,
    dataset: Dataset,
    device: torch.device,
    processes: Processes = ALONE,
) -> Objective:
    """What a run minimises: the choice of hash centers where it has these, and the loss of DSH where not.

    Args:
        run: has the recipe, and keeps the centers.
        dataset: the training pictures.
        device: of the outputs.
        processes: of which the first makes the centers.

    Raises:
        RunError: the run to go on with has lost its centers, or they are damaged.
    """
    config, seen = run.config, np.unique(dataset.labels)
    if config.centers == "none":
        reason = why_none(config.bits, len(seen))
        pairs = f"the loss is over pairs, margin {config.margin:g}, alpha {config.alpha:g}"
        return DshObjective(config.margin, config.alpha, f"hash centers are off: {reason or pairs}")
    assert config.smoothing is not None  # see `training.recipe.require_known_loss`
    packed = processes.by_first(lambda: _centers(run, seen))
    centers = unpack(packed[seen], config.bits).astype(np.uint8)
    bound = class_distance_bound(config.bits, len(seen))
    limit = f" of at most {bound.distance}" if bound else ""
    told = f"hash centers: distance {minimum_distance(centers)}{limit} between classes"
    return CenterObjective(seen, centers, config.smoothing, device, told)


def _centers(run: Run, seen: NDArray[np.int64]) -> Packed:
    """The hash centers of a run, as `Run.centers`: new ones for a new run, which keeps them."""
    if run.begun:
        if (packed := run.centers()) is None:
            raise RunError(
                f"{run.path / 'centers.safetensors'} is missing, and other centers would undo what was learned; "
                f"train again with: dsh train --like {run.path}"
            )
        return packed
    packed = np.zeros((len(run.classes), -(-run.config.bits // 8)), np.uint8)
    packed[seen] = pack(drawn(run.config.bits, len(seen), run.config.seed))
    run.write_centers(packed)
    return packed
