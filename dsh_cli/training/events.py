"""What a training tells, and who may listen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from dsh_cli.analysis.classes import ClassTable
from dsh_cli.codes.sets import CodeSet
from dsh_cli.runs.run import Run

if TYPE_CHECKING:
    from dsh_cli.network.weights import Taken
    from dsh_cli.training.objective import Terms


@dataclass(frozen=True)
class Plan:
    """What a training is about to do; told to listeners once."""

    run: Run
    device: str
    batches: int  # of one epoch
    batch_size: int
    first_epoch: int  # 0, or where a resumed run goes on
    weights: Taken | None = None  # what the network starts from, if not from random weights
    objective: str = ""  # what is to be said of what is minimised, if anything
    first_batch: int = 0  # of the first epoch: as many as were done before
    operations: Sequence[tuple[int, int]] = ()  # so many steps of so many each of a picture, forward and backward
    encoding: int = 0  # operations of the code of a picture
    spared: int = 0  # threads that PyTorch would take more, whose processors are left to other programs

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.batches * self.run.config.epochs

    def work(self, step: int) -> int:
        """Operations of a picture in all steps before one, counted from 0."""
        done = 0
        for count, each in self.operations:
            taken = min(step, count)
            done, step = done + taken * each, step - taken
        return done


@dataclass(frozen=True)
class Featured:
    """How far the features of a backbone that stays as it is are, which are made before the first batch."""

    done: int  # pictures
    total: int
    kept: int  # of those done, that were known from a training before

    @property
    def made(self) -> int:
        """Pictures that went through the backbone."""
        return self.done - self.kept


@dataclass(frozen=True)
class Loss:
    """The loss, and the terms it is the weighted sum of: means over batches."""

    total: float
    terms: Mapping[str, float]  # by name, without their weights
    weights: Mapping[str, float | None]  # by name; None: it enters as it is


class RunningLoss:
    """The loss of the batches so far of an epoch, summed on the device: only `mean` makes the caller wait for it."""

    def __init__(self, weights: Mapping[str, float | None], device: torch.device) -> None:
        self.weights, self.batches = weights, 0
        self.sums = torch.zeros(1 + len(weights), device=device)  # of the total and of each term

    def add(self, terms: Terms) -> None:
        """Take those of a batch."""
        self.sums += torch.stack([terms.total, *(terms.named[name] for name in self.weights)]).detach()
        self.batches += 1

    def go_on(self, sums: Tensor, batches: int) -> None:
        """Take those of the first batches, where these were trained on before."""
        self.sums += sums.to(self.sums.device)
        self.batches += batches

    def mean(self) -> Loss:
        """The means so far, of one batch at least."""
        total, *terms = (self.sums / self.batches).tolist()
        return Loss(total, dict(zip(self.weights, terms, strict=True)), self.weights)


@dataclass(frozen=True)
class EpochStats:
    """What one epoch came to, and codes of the validation pictures after it."""

    epoch: int  # from 1
    loss: Loss
    images_per_second: float
    validation: CodeSet
    validation_map: (
        float | None
    )  # tie-aware, validation against itself without self-matches; None if too small, or of one class
    waited: float = 0.0  # share of the epoch in which the network waited for its pictures, in [0, 1]
    notes: tuple[str, ...] = ()  # what the data had to report since the last epoch: unreadable pictures, a full cache


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    `map` is tie-aware, under the run's protocol. `table` is of the test split, or where none of its pictures could be
    read any more of the training pictures; `map` is None then.
    """

    run: Run
    seconds: float  # the loop alone: not reading the data, not the codes at the end
    tflop: float | None  # forward and backward of all pictures; None if begun by a version that did not count
    map: float | None
    table: ClassTable
    lost: str = ""  # what to tell of pictures that could not be read any more


class Listener(Protocol):
    """What watches a training. Nothing it does changes the weights."""

    def on_features(self, featured: Featured) -> None:
        """Before `on_start`, now and then, where there are features to be made; the last time when all are done."""

    def on_start(self, plan: Plan) -> None:
        """Before the first batch."""

    def on_batch(self, epoch: int, done: int, loss: RunningLoss) -> None:
        """After each batch: how many are done in this epoch, and the loss of these."""

    def on_epoch(self, stats: EpochStats) -> None:
        """After each epoch."""

    def on_end(self, result: TrainResult) -> None:
        """When the run is saved."""

    def close(self) -> None:
        """Always called last, however the training ended."""


class Quiet:
    """Listens, and does nothing: the base of those that mind only some events."""

    def on_features(self, featured: Featured) -> None: ...
    def on_start(self, plan: Plan) -> None: ...
    def on_batch(self, epoch: int, done: int, loss: RunningLoss) -> None: ...
    def on_epoch(self, stats: EpochStats) -> None: ...
    def on_end(self, result: TrainResult) -> None: ...
    def close(self) -> None: ...
