"""What a training tells, and who may listen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dsh_cli.analysis.classes import ClassTable
from dsh_cli.codes.sets import CodeSet
from dsh_cli.runs.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from dsh_cli.network.weights import Taken


@dataclass(frozen=True)
class Plan:
    """What a training is about to do; told to listeners once."""

    run: Run
    device: str
    batches: int  # of one epoch
    batch_size: int
    first_epoch: int  # 0, or where a resumed run goes on
    weights: Taken | None = None  # what the network starts from, if not from random weights
    centers: str = ""  # what is to be said of hash centers, if anything


@dataclass(frozen=True)
class EpochStats:
    """What one epoch came to: means over its batches, and codes of the validation pictures after it."""

    epoch: int  # from 1
    loss: float
    pair: float
    quantization: float  # before its weight alpha
    images_per_second: float
    validation: CodeSet
    validation_map: float | None  # tie-aware, validation against itself without self-matches; None if too small
    waited: float = 0.0  # share of the epoch in which the network waited for its pictures, in [0, 1]
    notes: tuple[str, ...] = ()  # what the data had to report since the last epoch: unreadable pictures, a full cache
    center: float = 0.0  # mean of the terms of hash centers, with their weights


@dataclass(frozen=True)
class TrainResult:
    """A finished training. `map` is tie-aware, under the run's protocol; `table` is that of the test split."""

    run: Run
    seconds: float  # the loop alone: not reading the data, not the codes at the end
    map: float
    table: ClassTable


class Listener(Protocol):
    """What watches a training. Nothing it does changes the weights."""

    def on_start(self, plan: Plan) -> None:
        """Before the first batch."""

    def on_batch(self, epoch: int, done: int, totals: Tensor) -> None:
        """After each batch: batches done in this epoch, and the (4,) sums of loss and terms as in `EpochStats`.

        Reading `totals` makes the caller wait for the device.
        """

    def on_epoch(self, stats: EpochStats) -> None:
        """After each epoch."""

    def on_end(self, result: TrainResult) -> None:
        """When the run is saved."""

    def close(self) -> None:
        """Always called last, however the training ended."""


class Quiet:
    """Listens, and does nothing: the base of those that mind only some events."""

    def on_start(self, plan: Plan) -> None: ...
    def on_batch(self, epoch: int, done: int, totals: Tensor) -> None: ...
    def on_epoch(self, stats: EpochStats) -> None: ...
    def on_end(self, result: TrainResult) -> None: ...
    def close(self) -> None: ...
