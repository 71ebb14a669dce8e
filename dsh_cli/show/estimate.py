"""How long a training will take: said when some of its steps have been timed, and anew where it comes otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from dsh_cli.training.events import EpochStats, Plan, Quiet, RunningLoss
from dsh_cli.words import counted

_SLOW = 2  # first steps, which are not timed: in these memory is found, and kernels are chosen
_TIMED = 3.0  # seconds of steps that tell how fast it is
_SHORT, _LONG = 15.0, 300.0  # seconds in all: below, nothing is said; above, what would be sooner
_OTHERWISE, _LATE = 1.5, 60.0  # times as fast or slow as was said, and seconds left, for it to be said anew
_FEWER = 2.0  # times fewer operations, from which on another network is worth its name


class Estimate(Quiet):
    """Says how long a training will take, or what is left of one, and of a long one on a CPU what would be sooner.

    Steps are weighed by their operations, so that one whose pictures grow is not thought shorter than it is. Where it
    comes to go much faster or slower than was said, what is left is said anew after an epoch.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def on_start(self, plan: Plan) -> None:
        self.plan = plan
        self.began = time.monotonic()
        self.first = plan.first_epoch * plan.batches + plan.first_batch
        self.from_step, self.since = self.first, self.began  # a step, and when it was done
        self.coded = 0  # validation pictures that were encoded since
        self.each = 0.0  # seconds of an operation of a whole batch, as last said

    def on_batch(self, epoch: int, done: int, loss: RunningLoss) -> None:
        if self.each or not self.plan.operations:
            return
        step, now = (epoch - 1) * self.plan.batches + done, time.monotonic()
        few = self.plan.steps - self.first <= _SLOW  # which are all there is to tell it by
        if step == self.first + _SLOW and not few:
            loss.mean()
            self._time_from(step)
        if now - self.since < _TIMED or (step <= self.first + _SLOW and not few):
            return
        loss.mean()  # a GPU has done then what it was given
        self.each = self._seconds_each(step)
        self._time_from(step)
        training = self.since - self.began + self._left(step)
        seconds = training + self._codes(self.plan.first_epoch)
        if seconds >= _SHORT:
            self.say(_said(self.plan, seconds, (self.plan.steps - self.first) * self.plan.batch_size / training))
        if seconds >= _LONG and (sooner := _sooner(self.plan)):
            self.say(f"sooner would be {sooner}")

    def on_epoch(self, stats: EpochStats) -> None:
        step = stats.epoch * self.plan.batches
        self.coded += self.plan.run.counts.get("validation", 0)
        if not self.each or step <= self.from_step:
            return
        each = self._seconds_each(step)
        if not 1 / _OTHERWISE < each / self.each < _OTHERWISE:
            self.each = each
            seconds = self._left(step) + self._codes(stats.epoch)
            if seconds >= _LATE:
                self.say(f"about {_duration(seconds)} more, at the rate of this epoch")
        self._time_from(step)

    def _time_from(self, step: int) -> None:
        self.from_step, self.since, self.coded = step, time.monotonic(), 0

    def _seconds_each(self, step: int) -> float:
        """Seconds of an operation of a whole batch since a step, by what was trained and encoded since."""
        work = self.plan.work(step) - self.plan.work(self.from_step)
        return (time.monotonic() - self.since) / (work + self.plan.encoding * self.coded / self.plan.batch_size)

    def _left(self, step: int) -> float:
        """Seconds of the steps after one."""
        return self.each * (self.plan.work(self.plan.steps) - self.plan.work(step))

    def _codes(self, epochs: int) -> float:
        """Seconds of the codes: of the validation pictures after each epoch but so many, and of all at the end."""
        counts, more = self.plan.run.counts, self.plan.run.config.epochs - epochs
        pictures = sum(counts.values()) + more * counts.get("validation", 0)
        return self.each * self.plan.encoding * pictures / self.plan.batch_size


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
    return plan.operations[-1][1] / training_operations(small, (model.channels, model.image_size, model.image_size))
