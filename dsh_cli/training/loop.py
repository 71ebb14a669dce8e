"""The training loop."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from dsh_cli.analysis.retrieval import mean_average_precision
from dsh_cli.config import TrainConfig
from dsh_cli.data.splits import Splits
from dsh_cli.errors import DataError, DshError, Interrupted, RunError
from dsh_cli.network.device import choose_device
from dsh_cli.network.model import HashNet
from dsh_cli.network.weights import Taken
from dsh_cli.runs.folders import created, resumed
from dsh_cli.runs.run import Run
from dsh_cli.training.batches import Batches
from dsh_cli.training.events import EpochStats, Listener, Plan, RunningLoss, TrainResult
from dsh_cli.training.measuring import encode_dataset, measured
from dsh_cli.training.objective import DshObjective, Objective
from dsh_cli.training.optimizer import make_optimizer, make_schedule
from dsh_cli.training.recipe import model_config, settle
from dsh_cli.training.start import deterministic, restore, starting_network, state_of

_LOOK = 50  # steps between looks at whether the loss is finite: each makes a GPU wait, and loses it about a step


def train(
    config: TrainConfig,
    splits: Splits,
    out: str | None = None,
    resume: Run | None = None,
    listeners: Sequence[Listener] = (),
) -> TrainResult:
    """Train a network, save its run, and measure it.

    One seed on one machine gives identical weights, whether or not the training was interrupted in between.

    Args:
        config: what to do; its open choices are made from the data, and saved.
        splits: from `load_splits(config)`.
        out: the run folder; None makes one under `runs/`.
        resume: an unfinished run to go on with, in place of `out`.
        listeners: told what happens.

    Raises:
        UsageError: `out` is taken, the device is not there, the backbone is not one, or not for such pictures, or the
            run to go on with was finished meanwhile.
        RunError: the pictures are not those the run began with, its hash centers are gone, another process has it, or
            its folder was deleted, moved or replaced meanwhile.
        WeightsError: the weights to start from cannot be had, or do not fit. No run is made then.
        DshError: the loss or a weight is not finite. The run keeps the state of its last whole epoch.
        Interrupted: Ctrl-C; the run stays, unfinished.
    """
    device = choose_device(config.device)
    if resume is not None and resume.names() != splits.names():
        raise RunError(
            f"the pictures of {resume.config.data} are not those {resume.path} began with; "
            f"train anew with: dsh train --like {resume.path}"
        )
    recipe = resume.config if resume else settle(config, splits)
    model = resume.model if resume else model_config(config, splits)
    with _listening(listeners), deterministic(recipe.seed):
        net, taken = starting_network(recipe, model, splits, resume)
        with resumed(resume.path) if resume else created(recipe, model, splits, out) as run:
            try:
                return _train(run, net, taken, splits, device, listeners)
            except KeyboardInterrupt as interrupt:
                done = Run.open(run.path).metrics.get("epochs_done", 0)
                raise Interrupted(
                    f"stopped after {done} of {run.config.epochs} epochs; {run.path} is marked unfinished. "
                    f"Go on with: dsh train --resume {run.path}"
                ) from interrupt


def _compiled(net: HashNet, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The network as a compiled function of the same weights.

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
    return torch.compile(net)


@dataclass(frozen=True)
class _Loop:
    """What goes round: batch, forward, loss, backward, step."""

    run: Run
    net: HashNet
    forward: Callable[[Tensor], Tensor]  # that network, or compiled from it
    batches: Batches
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    device: torch.device
    listeners: Sequence[Listener]

    def epoch(self, number: int) -> RunningLoss:
        """Train for one epoch, numbered from 0."""
        config, loss = self.run.config, RunningLoss(self.objective.weights, self.device)
        # bfloat16 has the range of float32, so small gradients need no scaling as they do in float16.
        precision = torch.autocast(self.device.type, torch.bfloat16, enabled=config.amp)
        self.objective.prepare(self.net, number)
        torch.manual_seed((config.seed * 1_000_003 + number) % 2**63)  # of dropout, the same in a resumed run
        for done, (images, labels) in enumerate(self.batches.epoch(number), 1):
            with precision:
                relaxed = self.forward(images).float()  # (B, k)
            terms = self.objective(relaxed, labels, number + (done - 1) / len(self.batches))
            self.optimizer.zero_grad(set_to_none=True)
            terms.total.backward()  # type: ignore[no-untyped-call]
            if config.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.clip)
            self.optimizer.step()
            self.schedule.step()
            loss.add(terms)
            if done % _LOOK == 0:
                self.require_finite([loss.sums], number, f"step {done} of {len(self.batches)}")
            for listener in self.listeners:
                listener.on_batch(number + 1, done, loss)
        if not loss.batches:
            raise DataError(f"none of the pictures of {config.data} could be read in epoch {number + 1}")
        return loss

    def require_finite(self, tensors: Sequence[Tensor], epoch: int, step: str) -> None:
        """Stop where a loss, a weight or a moment is infinite or no number; the last whole epoch stays saved."""
        if all(bool(tensor.isfinite().all()) for tensor in tensors):
            return
        config, run = self.run.config, self.run
        precision = ", leave `amp` out" if config.amp else ""  # rounding does it too, and on tiny maps a PyTorch kernel
        kept = f"; {run.path} stays as it was after {epoch} of {config.epochs} epochs" if epoch else ""
        *first, last = (f"`{name}`" for name in self.objective.settings())
        raise DshError(
            f"the loss is not finite in epoch {epoch + 1}, by {step}: training has diverged. "
            f"Try `lr` {min(config.lr / 10, TrainConfig.lr):g} or `clip` {(config.clip or 10) / 10:g}{precision}, "
            f"and see that {', '.join(first)} and {last} are not extreme{kept}"
        )


def _train(
    run: Run,
    net: HashNet,
    taken: Taken | None,
    splits: Splits,
    device: torch.device,
    listeners: Sequence[Listener],
) -> TrainResult:
    config = run.config
    net = net.to(device).to(memory_format=torch.channels_last)
    forward = _compiled(net, device) if config.compile else net
    batches = Batches(splits.train, config.batch_size, config.augment, config.seed, device, config.per_class)
    optimizer = make_optimizer(net, config)
    schedule = make_schedule(optimizer, config, steps=len(batches) * config.epochs)
    first, seconds = restore(run, net, optimizer)
    with warnings.catch_warnings(action="ignore"):  # the optimizer took these steps before it was interrupted
        for _ in range(first * len(batches)):
            schedule.step()
    started = time.perf_counter()
    objective = DshObjective(run, splits.train, len(batches), device)
    if not first:
        seconds += time.perf_counter() - started
    for listener in listeners:
        listener.on_start(Plan(run, str(device), len(batches), batches.batch_size, first, taken, objective.told))

    loop = _Loop(run, net, forward, batches, objective, optimizer, schedule, device, listeners)
    net.train()
    for epoch in range(first, config.epochs):
        started, waited_before = time.perf_counter(), batches.waited
        loss = loop.epoch(epoch)
        mean = loss.mean()  # the device waits, once an epoch
        elapsed = time.perf_counter() - started
        # The last step of an epoch may spoil weights that no loss has seen yet.
        state = state_of(net, optimizer, epoch + 1)
        loop.require_finite([loss.sums, *state.values()], epoch, f"its last step, {len(batches)}")
        validation = encode_dataset(net, splits.validation)
        stats = EpochStats(
            epoch=epoch + 1,
            loss=mean,
            images_per_second=len(batches) * batches.batch_size / elapsed,
            validation=validation,
            validation_map=mean_average_precision(validation) if len(validation) > 1 else None,
            waited=(batches.waited - waited_before) / elapsed,
            notes=batches.new_notes(),
        )
        seconds += time.perf_counter() - started
        run.write_state({**state, "seconds": torch.tensor(seconds, dtype=torch.float64)}, epochs_done=epoch + 1)
        for listener in listeners:
            listener.on_epoch(stats)

    result = measured(run, net, splits, seconds)
    for listener in listeners:
        listener.on_end(result)
    return result


@contextmanager
def _listening(listeners: Sequence[Listener]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(DshError):  # what ended the training is what is to be told
            _close(listeners)
        raise
    _close(listeners)


def _close(listeners: Sequence[Listener]) -> None:
    with ExitStack() as closing:
        for listener in reversed(listeners):
            closing.callback(listener.close)
