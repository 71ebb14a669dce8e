"""The training loop."""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsh_cli.analysis.retrieval import mean_average_precision
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import TrainConfig
from dsh_cli.data.splits import Splits
from dsh_cli.errors import DataError, DivergedError, DshError, Interrupted, RunError, Terminated
from dsh_cli.network.device import choose_device
from dsh_cli.network.model import HashNet
from dsh_cli.network.operations import encoding_operations, training_operations
from dsh_cli.network.weights import Taken
from dsh_cli.runs.folders import created, resumed
from dsh_cli.runs.run import Run
from dsh_cli.training.batches import Batches, make_batches
from dsh_cli.training.events import EpochStats, Listener, Plan, RunningLoss, TrainResult
from dsh_cli.training.features import with_features
from dsh_cli.training.fitting import fitted
from dsh_cli.training.interrupts import held_back
from dsh_cli.training.measuring import encode_dataset, measured
from dsh_cli.training.objective import Objective, make_objective
from dsh_cli.training.optimizer import make_optimizers, make_schedules
from dsh_cli.training.recipe import model_config, require_known_loss, require_minutes, settle
from dsh_cli.training.start import Part, Standing, deterministic, generators, restore, starting_network, state_of

_LOOK = 50  # steps between looks at whether the loss is finite: each makes a GPU wait, and loses it about a step


def train(
    config: TrainConfig,
    splits: Splits,
    out: str | None = None,
    resume: Run | None = None,
    listeners: Sequence[Listener] = (),
    checkpoint_every: float | None = None,
) -> TrainResult:
    """Train a network, or fit the map of a method without steps; save its run, and measure it.

    One seed and number of threads on one machine give identical weights, whether or not the training was interrupted in
    between. It is saved after each epoch, and at Ctrl-C, SIGTERM or SIGHUP after the batch that is under way, or the
    epoch where all its batches are done; a second Ctrl-C ends it without.

    Args:
        config: what to do; its open choices are made from the data, and saved.
        splits: from `load_splits(config)`.
        out: the run folder; None makes one under `runs/`.
        resume: an unfinished run to go on with, in place of `out`.
        listeners: told what happens.
        checkpoint_every: minutes after which it is saved within an epoch too, between two batches.

    Raises:
        UsageError: `out` is taken, the device is not there, the backbone is not one, or not for such pictures, the
            minutes are not above 0, or the run to go on with was finished meanwhile.
        RunError: the pictures are not those the run began with, its hash centers are gone, an earlier version began it,
            another process has it, or its folder was deleted, moved or replaced meanwhile.
        WeightsError: the weights to start from cannot be had, or do not fit. No run is made then.
        DshError: the loss or a weight is not finite. The run keeps the state that was saved last.
        Interrupted: Ctrl-C, or SIGTERM or SIGHUP (`Terminated`); the run stays, unfinished.
    """
    require_minutes(checkpoint_every)
    device = choose_device(config.device)
    if resume is not None and resume.names() != splits.names():
        raise RunError(
            f"the pictures of {resume.config.data} are not those {resume.path} began with; "
            f"train anew with: dsh train --like {resume.path}"
        )
    if resume is not None:
        require_known_loss(resume)
    recipe = resume.config if resume else settle(config, splits)
    model = resume.model if resume else model_config(recipe, splits)
    spared = torch.get_num_threads() - recipe.threads if recipe.threads and config.threads is None else 0
    with _listening(listeners), deterministic(recipe.seed, recipe.threads):
        net, taken = starting_network(recipe, model, splits, resume)
        with resumed(resume.path) if resume else created(recipe, model, splits, out) as run:
            try:
                if recipe.method != "dsh":
                    return fitted(run, net, taken, splits, device, listeners)
                return _train(run, net, taken, splits, device, listeners, checkpoint_every, max(0, spared))
            except DshError:
                run.require_in_place()  # where its folder is gone, that is why a listener's file could not be written
                raise
            except KeyboardInterrupt as interrupt:
                kept = Run.open(run.path)
                if kept.finished:
                    raise Interrupted(
                        f"stopped when all was trained: {run.path} is finished; what listens to the training, such as "
                        "TensorBoard, may lack its end"
                    ) from interrupt
                done = kept.metrics.get("epochs_done", 0)
                raise Interrupted(_stopped(run, f"{done} of {run.config.epochs} epochs")) from interrupt


def _compiled(forward: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    """A network, or its last layers, as a compiled function of the same weights.

    Raises:
        DshError: this machine cannot compile.
    """
    from torch._dynamo.exc import BackendCompilerFailed

    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))  # on something small: what it says is long, and late
    except BackendCompilerFailed as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise DshError(
            f"`compile`: PyTorch cannot compile on this machine ({reason}); "
            "install a C++ compiler such as g++, or leave `compile` out"
        ) from error
    return torch.compile(forward)


@dataclass
class _Loop:
    """What goes round: batch, forward, loss, backward, step."""

    run: Run
    net: HashNet
    forward: Callable[[Tensor], Tensor]  # that network, or what of it learns, or compiled from it
    batches: Batches
    objective: Objective
    optimizers: Sequence[torch.optim.Optimizer]
    schedules: Sequence[torch.optim.lr_scheduler.LRScheduler]
    device: torch.device
    listeners: Sequence[Listener]
    every: float  # seconds after which it is saved within an epoch
    seconds: float  # that the whole epochs took
    operations: float  # of all pictures so far; not a number where a state of an older version has not counted them
    costs: Mapping[tuple[int, ...], int]  # operations of a picture, or of its features, by the shape
    saved: str  # after what, in words; nothing if it is not yet
    saved_at: float
    stopping: Callable[[], int]  # the number of what is to stop it: of Ctrl-C, SIGTERM or SIGHUP, if one came
    started: float = 0.0  # when the epoch under way would have been, had it not been interrupted

    def epoch(self, number: int, part: Part | None) -> RunningLoss:
        """Train for one epoch, numbered from 0, or for what a part of it leaves.

        Raises:
            Interrupted: Ctrl-C, SIGTERM or SIGHUP; what was trained is saved.
        """
        config, loss = self.run.config, RunningLoss(self.objective.weights, self.device)
        # bfloat16 has the range of float32, so small gradients need no scaling as they do in float16.
        precision = torch.autocast(self.device.type, torch.bfloat16, enabled=config.amp)
        self.started = time.perf_counter()
        begun = 0 if part is None else part.batches
        torch.manual_seed((config.seed * 1_000_003 + number) % 2**63)  # of dropout, the same in a resumed run
        if part is not None:
            self.started -= part.seconds
            loss.go_on(part.losses, part.batches)
            for kind, generator in generators(self.device).items():
                if kind in part.random:  # it may have been another device
                    generator.set_rng_state(part.random[kind])
        for done, (images, labels) in enumerate(self.batches.epoch(number, part), begun + 1):
            with precision:
                relaxed = self.forward(images).float()  # (B, k)
            terms = self.objective(relaxed, labels)
            self.net.zero_grad(set_to_none=True)
            terms.total.backward()  # type: ignore[no-untyped-call]
            if config.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.clip)
            for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
                optimizer.step()
                schedule.step()
            loss.add(terms)
            self.operations += len(images) * self.costs[tuple(images.shape[1:])]
            if done % _LOOK == 0:
                self.require_finite([loss.sums], number, f"step {done} of {len(self.batches)}")
            for listener in self.listeners:
                listener.on_batch(number + 1, done, loss)
            stopping = self.stopping()
            if stopping or time.perf_counter() - self.saved_at >= self.every:
                self.save_within(number, loss)
            if stopping:
                raise self.stopped()
        if not loss.batches:
            raise DataError(f"none of the pictures of {config.data} could be read in epoch {number + 1}")
        return loss

    def save_within(self, number: int, loss: RunningLoss) -> None:
        """Save what it takes to go on with the next batch of an epoch."""
        part = Part(
            batches=loss.batches,
            read=self.batches.read,
            losses=loss.sums,
            seconds=time.perf_counter() - self.started,
            waited=self.batches.waited,
            notes=self.batches.untold(),
            shuffle=self.batches.rng.get_state(),
            random={kind: generator.get_rng_state() for kind, generator in generators(self.device).items()},
        )
        state = self.state(number, part)
        self.require_finite(state.values(), number, f"step {loss.batches} of {len(self.batches)}")
        self.save(state, number, part)

    def state(self, epochs: int, part: Part | None = None) -> dict[str, Tensor]:
        """What it takes to go on after so many epochs and a part of one."""
        standing = Standing(epochs, self.schedules[0].last_epoch, self.seconds, self.operations, part)
        return state_of(self.net, self.optimizers, standing)

    def save(self, state: Mapping[str, Tensor], epochs: int, part: Part | None = None) -> None:
        """Save it in the run."""
        self.run.write_state(state, epochs_done=epochs)
        self.saved_at, self.saved = time.perf_counter(), _progress(self.run, epochs, part)

    def stopped(self) -> Interrupted:
        """What to raise where it was to stop, and all is saved."""
        kind = Interrupted if self.stopping() == signal.SIGINT else Terminated
        return kind(_stopped(self.run, self.saved))

    def require_finite(self, tensors: Iterable[Tensor], epoch: int, step: str) -> None:
        """Stop where a loss, a weight or a moment is infinite or no number; what was saved last stays."""
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise DshError(self.diverged("the loss is not finite", epoch, step))

    @contextmanager
    def minded(self, epoch: int, step: str) -> Iterator[None]:
        """Stop in the same way where the network gives no outputs that can be used."""
        try:
            yield
        except DivergedError as error:
            raise DshError(self.diverged("the outputs are not finite, or far too large,", epoch, step)) from error

    def diverged(self, what: str, epoch: int, step: str) -> str:
        """What to say of a training that has diverged."""
        config, run = self.run.config, self.run
        precision = ", add `amp=False`" if config.amp else ""  # rounding does it too, and on tiny maps a PyTorch kernel
        kept = f"; {run.path} stays as it was after {self.saved}" if self.saved else ""
        shaping = " and ".join(f"`{name}`" for name in self.objective.settings)
        return (
            f"{what} in epoch {epoch + 1}, by {step}: training has diverged. "
            f"Try `lr` {config.lr / 10:g} or `clip` {(config.clip or 10) / 10:g}{precision}, "
            f"and see that {shaping} {'are' if len(self.objective.settings) > 1 else 'is'} not extreme{kept}"
        )


def _progress(run: Run, epochs: int, part: Part | None) -> str:
    """What of a training is done, in words; nothing at its beginning."""
    if part is not None:
        return f"{part.batches:,} batches of epoch {epochs + 1}"
    return f"{epochs} of {run.config.epochs} epochs" if epochs else ""


def _stopped(run: Run, done: str) -> str:
    return f"stopped after {done}; {run.path} is marked unfinished. Go on with: dsh train --resume {run.path}"


def _train(
    run: Run,
    net: HashNet,
    taken: Taken | None,
    splits: Splits,
    device: torch.device,
    listeners: Sequence[Listener],
    checkpoint_every: float | None,
    spared: int,
) -> TrainResult:
    config = run.config
    net = net.to(device).to(memory_format=torch.channels_last)
    own = net.of_features if config.freeze else net
    forward = _compiled(own, device) if config.compile else own
    splits, made, notes = with_features(config, net, splits, listeners)
    batches = make_batches(config, splits.train, device)
    steps = len(batches) * config.epochs
    optimizers = make_optimizers(net, config)
    schedules = make_schedules(optimizers, config, steps)
    small = min(batches.small_steps, steps)
    costs = {shape: training_operations(net, shape) for shape in {batches.shape(0), batches.shape(steps)}}
    started = time.perf_counter()
    objective = make_objective(run, splits.train, device)
    objective.begin(net.hash_layer)
    prepared = time.perf_counter() - started
    begun = restore(run, net, optimizers, len(batches), 1 + len(objective.weights))
    first, part, seconds = begun.epochs, begun.part, begun.seconds
    with warnings.catch_warnings(action="ignore"):  # the optimizer took these steps before it was interrupted
        for _ in range(first * len(batches) if begun.steps is None else begun.steps):
            for schedule in schedules:
                schedule.step()
    if not (first or part):
        seconds += prepared
    plan = Plan(
        run.noting(notes),
        str(device),
        len(batches),
        batches.batch_size,
        first,
        taken,
        objective.told,
        part.batches if part else 0,
        [(count, costs[batches.shape(at)]) for at, count in ((0, small), (small, steps - small)) if count],
        encoding_operations(net, batches.shape(steps)),
        spared,
    )
    for listener in listeners:
        listener.on_start(plan)

    with held_back() as stopping:
        loop = _Loop(
            run,
            net,
            forward,
            batches,
            objective,
            optimizers,
            schedules,
            device,
            listeners,
            every=math.inf if checkpoint_every is None else 60 * checkpoint_every,
            seconds=seconds,
            operations=begun.operations + made,
            costs=costs,
            saved=_progress(run, first, part),
            saved_at=time.perf_counter(),
            stopping=stopping,
        )
        net.train()
        for epoch in range(first, config.epochs):
            loss = loop.epoch(epoch, part)
            part = None
            mean = loss.mean()  # the device waits, once an epoch
            elapsed = time.perf_counter() - loop.started
            # The last step of an epoch may spoil weights that no loss has seen yet.
            loop.require_finite([loss.sums, *loop.state(epoch + 1).values()], epoch, f"its last step, {len(batches)}")
            with loop.minded(epoch, f"its last step, {len(batches)}"):
                validation = encode_dataset(net, splits.validation)
            stats = EpochStats(
                epoch=epoch + 1,
                loss=mean,
                images_per_second=len(batches) * batches.batch_size / elapsed,
                validation=validation,
                validation_map=mean_average_precision(validation) if _tells(validation) else None,
                waited=batches.waited / elapsed,
                notes=batches.new_notes(),
            )
            loop.seconds += time.perf_counter() - loop.started
            loop.save(loop.state(epoch + 1), epoch + 1)
            for listener in listeners:
                listener.on_epoch(stats)
            if loop.stopping():
                raise loop.stopped()

    with loop.minded(config.epochs - 1, f"its last step, {len(batches)}"):
        result = measured(run, net, splits, loop.seconds, loop.operations)
    for listener in listeners:
        listener.on_end(result)
    return result


def _tells(codes: CodeSet) -> bool:
    """Whether codes can be looked up in themselves: two are of one class, and not all are."""
    counts = np.bincount(codes.labels)
    return bool((counts > 1).any() and (counts > 0).sum() > 1)


@contextmanager
def _listening(listeners: Sequence[Listener]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(DshError, OSError):  # what ended the training is what is to be told
            _close(listeners)
        raise
    _close(listeners)


def _close(listeners: Sequence[Listener]) -> None:
    with ExitStack() as closing:
        for listener in reversed(listeners):
            closing.callback(listener.close)
