"""A training that is killed at a given moment, for a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import torch._dynamo  # noqa: F401, the first step of an optimizer imports it, which takes a second or two
from torch import Tensor

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.runs.run import Run
from dsh_cli.training import batches, loop, measuring
from dsh_cli.training.events import Quiet, RunningLoss

EPOCH, BATCH = 2, 3  # where its checkpoint within an epoch is
MOMENTS = (
    "before the first batch of an epoch",
    "after a checkpoint within it",
    "at its end",
    "before a state is moved into place",
    "between a state and metrics.json",
    "after both",
)


def train_and_die(config: TrainConfig, out: str, moment: str) -> None:
    """Train, with one checkpoint in each epoch, and be killed."""
    saving = (0, 0)  # what is saved last: whole epochs, and batches of the next

    def at(here: bool, *moments: int) -> None:
        if here and moment in [MOMENTS[number] for number in moments]:
            os.kill(os.getpid(), signal.SIGKILL)

    epoch, save_within, write_state, replace, encode_dataset = (
        batches.Batches.epoch,
        loop._Loop.save_within,
        Run.write_state,
        os.replace,
        measuring.encode_dataset,
    )

    def beginning(self: batches.Batches, number: int, part: Any) -> Any:
        at(number == EPOCH - 1, 0)
        return epoch(self, number, part)

    def once(self: loop._Loop, number: int, loss: RunningLoss) -> None:
        if loss.batches == BATCH:
            save_within(self, number, loss)

    def noting(self: Run, tensors: Mapping[str, Tensor], epochs_done: int) -> None:
        nonlocal saving
        saving = (epochs_done, int(tensors["epoch.batches"]) if "epoch.batches" in tensors else 0)
        write_state(self, tensors, epochs_done)

    def replacing(source: Any, target: Any) -> None:
        name, here = os.path.basename(target), saving == (EPOCH - 1, BATCH)
        at(here and name.startswith("state"), 3)
        at(here and name == "metrics.json", 4)
        replace(source, target)
        at(here and name == "metrics.json", 5)

    def validating(*arguments: Any) -> Any:
        at(saving[0] == EPOCH - 1, 2)
        return encode_dataset(*arguments)

    class Later(Quiet):
        def on_batch(self, epoch: int, done: int, loss: RunningLoss) -> None:
            at((epoch, done) == (EPOCH, BATCH + 2), 1)

    patches: list[tuple[Any, str, Any]] = [
        (batches.Batches, "epoch", beginning),
        (loop._Loop, "save_within", once),
        (Run, "write_state", noting),
        (os, "replace", replacing),
        (loop, "encode_dataset", validating),
    ]
    for owner, name, changed in patches:
        setattr(owner, name, changed)
    train(config, load_splits(config), out, listeners=[Later()], checkpoint_every=1e-9)
