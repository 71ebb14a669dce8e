"""The training loop."""

from __future__ import annotations

import hashlib
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from dsh_cli.analysis.retrieval import mean_average_precision
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import ModelConfig, Recipe, TrainConfig
from dsh_cli.data.splits import Splits
from dsh_cli.errors import (
    DataError,
    DivergedError,
    DshError,
    Interrupted,
    LostProcess,
    RunError,
    Terminated,
    UsageError,
)
from dsh_cli.network.device import choose_device
from dsh_cli.network.model import HashNet
from dsh_cli.network.operations import encoding_operations, training_operations
from dsh_cli.network.weights import Taken
from dsh_cli.runs.folders import created, resumed
from dsh_cli.runs.run import Run, may_be_run
from dsh_cli.training.batches import Batches, make_batches
from dsh_cli.training.events import EpochStats, Listener, Plan, RunningLoss, TrainResult
from dsh_cli.training.features import with_features
from dsh_cli.training.fitting import fitted
from dsh_cli.training.interrupts import held_back
from dsh_cli.training.measuring import encode_dataset, measured
from dsh_cli.training.objective import Objective, make_objective
from dsh_cli.training.optimizer import make_optimizers, make_schedules
from dsh_cli.training.processes import Processes, joined
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

    Where `torchrun` has started several processes, see `training.processes`, all call this alike, and are given the
    same. The first alone has listeners and touches the run; the data all must have.

    Args:
        config: what to do; its open choices are made from the data, and saved.
        splits: from `load_splits(config)`.
        out: the run folder; None makes one under `runs/`.
        resume: an unfinished run to go on with, in place of `out`.
        listeners: told what happens.
        checkpoint_every: minutes after which it is saved within an epoch too, between two batches.

    Raises:
        UsageError: `out` is taken, the device is not there, the backbone is not one, or not for such pictures, the
            minutes are not above 0, or the run to go on with was finished meanwhile; or there are several processes,
            and the method takes no steps, or its batches are too small for them.
        RunError: the pictures are not those the run began with, its hash centers are gone, an earlier version began it,
            another process has it, or its folder was deleted, moved or replaced meanwhile.
        WeightsError: the weights to start from cannot be had, or do not fit. No run is made then.
        DshError: the loss or a weight is not finite. The run keeps the state that was saved last.
        Interrupted: Ctrl-C, or SIGTERM or SIGHUP (`Terminated`); the run stays, unfinished.
        LostProcess: another of several processes has ended; the run stays, unfinished.
    """
    require_minutes(checkpoint_every)
    with joined() as processes:
        device = processes.place(choose_device(config.device))
        _require_alike(processes, splits, device)
        recipe, model = processes.by_first(lambda: _asked(config, splits, resume))
        _require_shareable(processes, recipe, splits)
        listeners = listeners if processes.is_first else ()
        spared = torch.get_num_threads() - recipe.threads if recipe.threads and config.threads is None else 0
        around = _Around(processes, device, listeners, checkpoint_every, max(0, spared))
        with _listening(listeners), deterministic(recipe.seed, recipe.threads):
            net, taken = starting_network(recipe, model, splits, resume, processes)
            with ExitStack() as held:
                run = processes.by_first(
                    lambda: held.enter_context(resumed(resume.path) if resume else created(recipe, model, splits, out))
                )
                with _told_of(run, processes):
                    if recipe.method != "dsh":
                        return fitted(run, net, taken, splits, device, listeners)
                    return _train(run, net, taken, splits, around)


@dataclass(frozen=True)
class _Around:
    """What a training happens in."""

    processes: Processes
    device: torch.device
    listeners: Sequence[Listener]
    checkpoint_every: float | None  # minutes
    spared: int  # threads, see `Plan`


def _asked(config: TrainConfig, splits: Splits, resume: Run | None) -> tuple[Recipe, ModelConfig]:
    """The recipe, with every open choice made, and the network.

    Raises:
        RunError: there is a run to go on with, and its pictures are others, or its loss is no longer known.
    """
    if resume is None:
        recipe = settle(config, splits)
        return recipe, model_config(recipe, splits)
    if resume.names() != splits.names():
        raise RunError(
            f"the pictures of {resume.config.data} are not those {resume.path} began with; "
            f"train anew with: dsh train --like {resume.path}"
        )
    require_known_loss(resume)
    return resume.config, resume.model


def _require_alike(processes: Processes, splits: Splits, device: torch.device) -> None:
    """Refuse to train on data, or kinds of devices, that are not the same for all processes.

    Raises:
        DataError, UsageError: they are not.
    """
    if processes.alone:
        return
    digest = hashlib.blake2b(digest_size=8)
    for split, part in splits.parts().items():
        digest.update("\0".join([split, *part.names]).encode(errors="surrogatepass") + part.labels.tobytes())
    kinds = processes.of_all(device.type)
    if len(set(kinds)) > 1:
        found = ", ".join(f"{kind} for process {rank}" for rank, kind in enumerate(kinds))
        raise UsageError(f"`device`: it is {found}; name one that all have")
    seen = processes.of_all(digest.hexdigest())
    if unlike := [str(rank) for rank, one in enumerate(seen) if one != seen[0]]:
        raise DataError(
            f"the pictures that process {', '.join(unlike)} finds are not those of the first; "
            "give all the same folder, with the same in it"
        )


def _require_shareable(processes: Processes, recipe: Recipe, splits: Splits) -> None:
    """Refuse what several processes cannot share.

    Raises:
        UsageError: as said.
    """
    if processes.alone:
        return
    if recipe.method != "dsh":
        raise UsageError(f"`method` {recipe.method} takes no steps that processes could share; run it without torchrun")
    most = min(recipe.batch_size, len(splits.train)) // 2  # for BatchNorm, and for pairs
    if processes.world_size > most:
        raise UsageError(
            f"`batch_size` {min(recipe.batch_size, len(splits.train))}: each of {processes.world_size} processes takes "
            f"two pictures of a batch at least; start {most}, or choose larger batches"
        )


@contextmanager
def _told_of(run: Run, processes: Processes) -> Iterator[None]:
    """Say how to go on with a run where its training is stopped."""
    try:
        yield
    except (KeyboardInterrupt, LostProcess) as ended:
        if not (processes.is_first or may_be_run(run.path)):
            raise  # on a machine that has not the run
        kept = Run.open(run.path)
        lost = isinstance(ended, LostProcess)
        if kept.finished:
            what = f"{ended}, when all was trained" if lost else "stopped when all was trained"
            said = (
                f"{what}: {run.path} is finished; what listens to the training, such as TensorBoard, may lack its end"
            )
        else:
            done = f"{kept.metrics.get('epochs_done', 0)} of {run.config.epochs} epochs"
            said = f"{ended}; " * lost + _stopped(run, done)
        raise (LostProcess if lost else Interrupted)(said) from ended
    except DshError:
        if processes.is_first:
            run.require_in_place()  # where its folder is gone, that is why a listener's file could not be written
        raise


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
    processes: Processes
    listeners: Sequence[Listener]
    every: float  # seconds after which it is saved within an epoch
    seconds: float  # that the whole epochs took
    operations: float  # of all pictures so far; not a number where a state of an older version has not counted them
    costs: Mapping[tuple[int, ...], int]  # operations of a picture, or of its features, by the shape
    saved: str  # after what, in words; nothing if it is not yet
    saved_at: float
    stopping: Callable[[], int]  # the number of what is to stop it: of Ctrl-C, SIGTERM or SIGHUP, if one came
    started: float = 0.0  # when the epoch under way would have been, had it not been interrupted
    told: set[str] = field(default_factory=set)  # notes, by whichever process has them

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
        # of dropout: another in each process, and the same in a resumed run, but for others than the first in the
        # epoch that was left
        torch.manual_seed((config.seed * 1_000_003 + number + (self.processes.rank << 40)) % 2**63)
        if part is not None:
            self.started -= part.seconds
            loss.go_on(part.losses, part.batches)
            for kind, generator in generators(self.device).items():
                if kind in part.random and self.processes.is_first:  # it may have been another device
                    generator.set_rng_state(part.random[kind])
        for done, (images, labels) in enumerate(self.batches.epoch(number, part), begun + 1):
            with precision:
                relaxed = self.forward(images)  # (b, k)
            relaxed = relaxed.to(torch.promote_types(relaxed.dtype, torch.float32))
            relaxed, labels = self.processes.gathered(relaxed, labels)  # (B, k), of all processes
            terms = self.objective(relaxed, labels)
            self.net.zero_grad(set_to_none=True)
            terms.total.backward()  # type: ignore[no-untyped-call]
            self.processes.add_gradients(self.net)
            if config.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.clip)
            for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
                optimizer.step()
                schedule.step()
            loss.add(terms)
            self.operations += len(labels) * self.costs[tuple(images.shape[1:])]
            if done % _LOOK == 0:
                self.require_finite([loss.sums], number, f"step {done} of {len(self.batches)}")
            for listener in self.listeners:
                listener.on_batch(number + 1, done, loss)
            stopping, due = self.processes.most(self.stopping(), time.perf_counter() - self.saved_at >= self.every)
            if stopping or due:
                self.save_within(number, loss)
            if stopping:
                raise self.stopped(stopping)
        if not loss.batches:
            raise DataError(f"none of the pictures of {config.data} could be read in epoch {number + 1}")
        return loss

    def save_within(self, number: int, loss: RunningLoss) -> None:
        """Save what it takes to go on with the next batch of an epoch."""
        self.processes.average_statistics(self.net)
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

    def new_notes(self) -> tuple[str, ...]:
        """What the data of all processes had to report since this was last asked, and was not told."""
        found = dict.fromkeys(chain.from_iterable(self.processes.of_all(self.batches.new_notes())))
        new = tuple(note for note in found if note not in self.told)
        self.told.update(new)
        return new

    def state(self, epochs: int, part: Part | None = None) -> dict[str, Tensor]:
        """What it takes to go on after so many epochs and a part of one."""
        standing = Standing(epochs, self.schedules[0].last_epoch, self.seconds, self.operations, part)
        return state_of(self.net, self.optimizers, standing)

    def save(self, state: Mapping[str, Tensor], epochs: int, part: Part | None = None) -> None:
        """Save it in the run."""
        self.processes.by_first(lambda: self.run.write_state(state, epochs_done=epochs))
        self.saved_at, self.saved = time.perf_counter(), _progress(self.run, epochs, part)

    def stopped(self, by: float) -> Interrupted:
        """What to raise where a signal of that number was to stop it, and all is saved."""
        kind = Interrupted if by == signal.SIGINT else Terminated
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
    around: _Around,
) -> TrainResult:
    config, processes, device, listeners = run.config, around.processes, around.device, around.listeners
    net = net.to(device).to(memory_format=torch.channels_last)
    own = net.of_features if config.freeze else net
    forward = _compiled(own, device) if config.compile else own
    splits, made, notes = with_features(config, net, splits, listeners)
    _require_alike(processes, splits, device)  # for what could not be read is gone where features were made
    batches = make_batches(config, splits.train, device, processes)
    steps = len(batches) * config.epochs
    optimizers = make_optimizers(net, config)
    schedules = make_schedules(optimizers, config, steps)
    small = min(batches.small_steps, steps)
    costs = {shape: training_operations(net, shape) for shape in {batches.shape(0), batches.shape(steps)}}
    started = time.perf_counter()
    objective = make_objective(run, splits.train, device, processes)
    objective.begin(net.hash_layer)
    prepared = time.perf_counter() - started
    begun = restore(run, net, optimizers, len(batches), 1 + len(objective.weights), processes)
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
        around.spared,
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
            processes,
            listeners,
            every=math.inf if around.checkpoint_every is None else 60 * around.checkpoint_every,
            seconds=seconds,
            operations=begun.operations + made,
            costs=costs,
            saved=_progress(run, first, part),
            saved_at=time.perf_counter(),
            stopping=stopping,
        )
        processes.synchronise(net, device)
        net.train()
        for epoch in range(first, config.epochs):
            loss = loop.epoch(epoch, part)
            part = None
            mean = loss.mean()  # the device waits, once an epoch
            elapsed = time.perf_counter() - loop.started
            processes.average_statistics(net)
            # The last step of an epoch may spoil weights that no loss has seen yet.
            loop.require_finite([loss.sums, *loop.state(epoch + 1).values()], epoch, f"its last step, {len(batches)}")
            with loop.minded(epoch, f"its last step, {len(batches)}"):
                validation = processes.by_first(lambda: encode_dataset(net, splits.validation))
            stats = EpochStats(
                epoch=epoch + 1,
                loss=mean,
                images_per_second=len(batches) * batches.batch_size / elapsed,
                validation=validation,
                validation_map=mean_average_precision(validation) if _tells(validation) else None,
                waited=batches.waited / elapsed,
                notes=loop.new_notes(),
            )
            loop.seconds += time.perf_counter() - loop.started
            loop.save(loop.state(epoch + 1), epoch + 1)
            for listener in listeners:
                listener.on_epoch(stats)
            (stop,) = processes.most(loop.stopping())
            if stop:
                raise loop.stopped(stop)

    with loop.minded(config.epochs - 1, f"its last step, {len(batches)}"):
        result = processes.by_first(lambda: measured(run, net, splits, loop.seconds, loop.operations))
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
