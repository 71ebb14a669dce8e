"""A training on the terminal: a progress bar, plain lines, notes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dsh_cli.codes.sets import CodeSet
from dsh_cli.runs.run import Run
from dsh_cli.show.console import Console
from dsh_cli.training.events import EpochStats, Featured, Loss, Plan, Quiet, RunningLoss, TrainResult
from dsh_cli.words import counted

_READ_EVERY = 0.5  # seconds between looks at the running loss, each of which makes the device wait
_NOTES = 20  # notes shown of one training
_WAITING, _LONG = 0.15, 5.0  # share spent waiting for pictures from which it is shown, of epochs of so many seconds
_NARROW = 100  # columns below which a line has no room for the terms of the loss


class ProgressBar(Quiet):
    """A live bar on a terminal, with a line above it for each epoch that is done."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.narrow = console.width < _NARROW
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[rate]}", style="cyan"),
            TextColumn("{task.fields[terms]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            expand=True,
        )
        self.read_at = 0.0
        self.featuring: TaskID | None = None
        self.featuring_since = time.monotonic()

    def on_features(self, featured: Featured) -> None:
        now = time.monotonic()
        if self.featuring is None:
            self.featuring = self.bar.add_task("features", total=featured.total, rate="", terms="")
            self.bar.start()
        rate = f"{featured.done / max(now - self.featuring_since, 1e-3):,.0f} img/s"
        self.bar.update(self.featuring, completed=featured.done, rate=rate)
        if featured.done == featured.total:
            self.bar.remove_task(self.featuring)
            self.console.print(_featured_line(featured, now - self.featuring_since), style="dim", soft_wrap=True)

    def on_start(self, plan: Plan) -> None:
        self.plan = plan
        self.epochs = plan.run.config.epochs
        self.started = time.monotonic()
        self.done_before = plan.batches * plan.first_epoch + plan.first_batch
        self.task = self.bar.add_task(  # by operations, for steps may differ in them
            f"epoch {plan.first_epoch + 1}/{self.epochs}",
            total=plan.work(plan.steps),
            completed=plan.work(self.done_before),
            rate="",
            terms="",
        )
        for line in begins(plan):
            self.console.print(line, style="dim", soft_wrap=True)
        if plan.batches:  # which methods without steps have none of
            self.bar.start()
        else:
            self.bar.stop()

    def on_batch(self, epoch: int, done: int, loss: RunningLoss) -> None:
        step = (epoch - 1) * self.plan.batches + done
        now = time.monotonic()
        if now - self.read_at < _READ_EVERY:
            self.bar.update(self.task, completed=self.plan.work(step))
            return
        self.read_at = now
        rate = (step - self.done_before) * self.plan.batch_size / (now - self.started)
        self.bar.update(
            self.task,
            completed=self.plan.work(step),
            description=f"epoch {epoch}/{self.epochs}",
            rate=f"{rate:,.0f} img/s",
            terms=_terms(loss.mean(), self.narrow),
        )

    def on_epoch(self, stats: EpochStats) -> None:
        self.console.print(epoch_line(stats, self.plan, self.narrow))

    def close(self) -> None:
        with suppress(OSError):  # of a terminal that was closed
            self.bar.stop()


class Lines(Quiet):
    """A line an epoch, for logs and pipes."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write
        self.since = time.monotonic()

    def on_features(self, featured: Featured) -> None:
        if featured.done == featured.total:
            self.write(_featured_line(featured, time.monotonic() - self.since))

    def on_start(self, plan: Plan) -> None:
        self.plan = plan
        for line in begins(plan):
            self.write(line)

    def on_epoch(self, stats: EpochStats) -> None:
        self.write(epoch_line(stats, self.plan))


def _featured_line(featured: Featured, seconds: float) -> str:
    """What was made before the first epoch, and how much of it there was already."""
    known = f", {featured.kept:,} known from before" if featured.kept else ""
    rate = (
        f"{seconds:,.1f} s, {featured.made / max(seconds, 1e-3):,.0f} img/s" if featured.made else f"{seconds:,.1f} s"
    )
    return f"features of {featured.total:,} pictures: {rate}{known}"


def begins(plan: Plan) -> Iterator[str]:
    """What is to be said of a training before its first batch."""
    if plan.weights is not None:
        yield str(plan.weights)
    if plan.objective:
        yield plan.objective
    threads = plan.run.config.threads
    if plan.device == "cpu" and plan.spared and threads is not None:
        every = threads + plan.spared
        yield f"computing on {threads} of {every} processors, for others are busy (--threads has it otherwise)"
    if plan.first_batch:
        yield f"going on in epoch {plan.first_epoch + 1}, after {plan.first_batch:,} of {plan.batches:,} batches"


def epoch_line(stats: EpochStats, plan: Plan, narrow: bool = False) -> str:
    """One epoch in one line, without the terms of the loss where there is no room."""
    config = plan.run.config
    validation = (
        "" if stats.validation_map is None else f"val. mAP {stats.validation_map:.3f}{_few(stats.validation)}  "
    )
    worth_it = stats.waited >= _WAITING and plan.batches * plan.batch_size >= _LONG * stats.images_per_second
    waiting = f", {stats.waited:.0%} waiting" if worth_it else ""
    return (
        f"epoch {stats.epoch}/{config.epochs}  "
        f"{_terms(stats.loss, narrow)}  "
        f"{validation}{stats.images_per_second:,.0f} img/s{waiting}"
    )


def _few(codes: CodeSet) -> str:
    """How many codes there are, where they are fewer than half the classes."""
    found, classes = len(np.unique(codes.packed, axis=0)), len(np.unique(codes.labels))
    return f" ({counted(found, 'code')})" if 2 * found < min(classes, 2**codes.bits) or found == 1 < classes else ""


def _terms(loss: Loss, narrow: bool) -> str:
    """The loss, as the sum of its terms if these are some: without a weight by name, but for later ones that are 0."""
    if narrow or len(loss.terms) == 1:
        return f"loss {loss.total:.3f}"
    shown = (
        f"{name} {value:.3f}" if (weight := loss.weights[name]) is None else f"{weight:g} x {value:.2f}"
        for place, (name, value) in enumerate(loss.terms.items())
        if value or loss.weights[name] is not None or not place
    )
    return f"loss {loss.total:.3f} = {' + '.join(shown)}"


class Notes(Quiet):
    """Passes on what run and data have to report: a damaged state, pictures that cannot be read, a cache that is full.

    Of the data's the first few.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self.told = 0
        self.of_run: set[str] = set()

    def on_start(self, plan: Plan) -> None:
        self._tell(plan.run)

    def on_epoch(self, stats: EpochStats) -> None:
        for note in stats.notes[: max(0, _NOTES - self.told)]:
            self.warn(note)
        if self.told < _NOTES < self.told + len(stats.notes):
            self.warn("more of the same is not shown")
        self.told += len(stats.notes)

    def _tell(self, run: Run) -> None:
        for note in run.notes:
            if note not in self.of_run:
                self.warn(note)
        self.of_run.update(run.notes)

    def on_end(self, result: TrainResult) -> None:
        self._tell(result.run)
        if result.lost:
            self.warn(result.lost)
