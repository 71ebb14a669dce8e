"""How long a training will take, said once, when some of its steps have been timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dsh_cli.show.views.shared import counted
from dsh_cli.training.events import Plan, Quiet, RunningLoss

_SLOW = 2  # first steps, which are not timed: in these memory is found, and kernels are chosen
_TIMED = 3.0  # seconds of steps that tell how fast it is
_SHORT, _LONG = 15.0, 300.0  # seconds in all: below, nothing is said; above, what would be sooner
_FEWER = 2.0  # times fewer operations, from which on another network is worth its name


class Estimate(Quiet):
    """Says how long a training will take, or what is left of one, and of a long one on a CPU what would be sooner.

    Steps are weighed by their operations, so that one whose pictures grow is not thought shorter than it is.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def on_start(self, plan: Plan) -> None:
        self.plan = plan
        self.began = time.monotonic()
        self.first = plan.first_epoch * plan.batches + plan.first_batch
        self.work = np.cumsum([0.0, *plan.operations])  # of a picture in each of the steps before
        self.timed_from: tuple[int, float] | None = None  # a step, and when it was done
        self.told = not plan.operations

    def on_batch(self, epoch: int, done: int, loss: RunningLoss) -> None:
        step, now = (epoch - 1) * self.plan.batches + done, time.monotonic()
        if self.told or step < self.first + _SLOW or (self.timed_from and now < self.timed_from[1] + _TIMED):
            return
        loss.mean()  # a GPU has done then what it was given
        now = time.monotonic()
        if self.timed_from is None:
            self.timed_from = step, now
            return
        self.told = True
        before, since = self.timed_from
        each = (now - since) / (self.work[step] - self.work[before])  # seconds of an operation, for a whole batch
        training = now - self.began + float(each * (self.work[-1] - self.work[step]))
        seconds = training + float(each) * _encoding(self.plan) / self.plan.batch_size
        if seconds >= _SHORT:
            self.say(_said(self.plan, seconds, (len(self.work) - 1 - self.first) * self.plan.batch_size / training))
        if seconds >= _LONG and (sooner := _sooner(self.plan)):
            self.say(f"sooner would be {sooner}")


def _encoding(plan: Plan) -> int:
    """Operations of all codes: of the validation pictures after each epoch, and of all at the end."""
    counts, epochs = plan.run.counts, plan.run.config.epochs - plan.first_epoch
    return plan.encoding * (sum(counts.values()) + epochs * counts.get("validation", 0))


def _said(plan: Plan, seconds: float, rate: float) -> str:
    """How long it takes in words, and what is done at so many pictures a second."""
    more, rest = (" more", "the rest of ") if plan.first_epoch or plan.first_batch else ("", "")
    epochs, pictures = counted(plan.run.config.epochs, "epoch"), plan.batches * plan.batch_size
    return (
        f"about {_duration(seconds)}{more}: {rest}{epochs} of {pictures:,} pictures, {rate:,.0f} a second, "
        f"then {sum(plan.run.counts.values()):,} codes"
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{5 * round(seconds / 5)} seconds"
    if seconds < 6000:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.3g} hours"


def _sooner(plan: Plan) -> str:
    """What of a recipe could be otherwise for its training to end sooner, on a CPU; nothing where nothing could."""
    from dsh_cli.training.recipe import bfloat16_pays

    config = plan.run.config
    if plan.device != "cpu" or plan.first_epoch or plan.first_batch:  # which goes on as it began
        return ""
    ways = []
    from_nothing = not (config.pretrained or config.weights is not None or plan.run.model.of_vectors)
    if from_nothing and _times_small(plan) >= _FEWER:
        ways.append("`backbone` small-resnet (less precise)")
    if config.epochs > 1:
        ways.append("fewer `epochs`")
    head_alone = config.freeze or plan.run.model.of_vectors  # which is trained in float32 on purpose
    if not config.amp and not head_alone and bfloat16_pays(config, plan.run.model.image_size):
        ways.append("`amp`")
    return " or ".join([", ".join(ways[:-1]), *ways[-1:]] if len(ways) > 1 else ways)


def _times_small(plan: Plan) -> float:
    """How many times the operations of the small ResNet the network takes."""
    import torch

    from dsh_cli.network.model import HashNet
    from dsh_cli.network.operations import training_operations

    model = plan.run.model
    with torch.device("meta"):  # which draws no random numbers
        small = HashNet(replace(model, backbone="small-resnet"))
    return plan.operations[-1] / training_operations(small, (model.channels, model.image_size, model.image_size))
