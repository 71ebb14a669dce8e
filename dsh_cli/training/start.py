"""Where a training starts: network, normalisation, random numbers, and the state it goes on from."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsh_cli.config import ModelConfig, Recipe
from dsh_cli.data.dataset import Dataset
from dsh_cli.data.splits import Splits
from dsh_cli.errors import DataError, RunError, UsageError, reason
from dsh_cli.network.encoding import to_float
from dsh_cli.network.model import Airbench, HashNet
from dsh_cli.network.weights import Taken, take_file, take_pretrained
from dsh_cli.runs.run import Run
from dsh_cli.threads import default_workers
from dsh_cli.training.optimizer import COUNTS, moments
from dsh_cli.training.processes import ALONE, Processes

Optimizers = Sequence[torch.optim.Optimizer]
_SMALL = 0.75  # of the side of pictures, in a training's first steps
_SAMPLE = 2000  # pictures in files that mean and deviation are taken from
_ROWS = 4096  # vectors whose squares are summed at once, in double precision
_AT_ONCE = 200  # pictures read at once
_PATCHED, _PIXELS = 1000, 1000 * 128**2  # pictures whose patches the first layer is made from, and pixels, at most


def shown_first(side: int) -> int:
    """The side of pictures in a training's first steps, where they grow."""
    return round(_SMALL * side)


def starting_network(
    config: Recipe,
    model: ModelConfig,
    splits: Splits,
    resume: Run | None,
    processes: Processes = ALONE,
) -> tuple[HashNet, Taken | None]:
    """The network a training starts from, normalisation included, and what weights it took over."""
    net = HashNet(model)
    net.require_size()
    if config.grow:
        _require_small(net, model)
    taken = processes.by_first(lambda: _filled(net, config, splits, resume))
    processes.start_alike(net)
    net.dropout.p = config.dropout
    if config.freeze:
        net.freeze()
    return net, taken


def _filled(net: HashNet, config: Recipe, splits: Splits, resume: Run | None) -> Taken | None:
    """Give a network what it is to have before it learns; what weights it took over, if any."""
    taken = None
    if resume is None or not resume.begun:  # else all comes from its state
        if config.pretrained:
            taken = take_pretrained(net)
        elif config.weights is not None:
            taken = take_file(net, config.weights)
        if taken is None or not taken.normalised:
            fit_normalisation(net, splits.train, config.seed)
        if taken is None and isinstance(net.backbone, Airbench):
            most = min(_PATCHED, _PIXELS // net.config.image_size**2)
            net.backbone.whiten((to_float(_sampled(splits.train, config.seed, most)) - net.mean) / net.std)
    elif config.freeze:  # whose features are wanted before all else is restored
        _restore_weights(resume, net)
    return taken


def _require_small(net: HashNet, model: ModelConfig) -> None:
    """Refuse to let pictures grow that are too small at first.

    Raises:
        UsageError: they are.
    """
    side = shown_first(model.image_size)
    try:
        net.require_size(side)
    except UsageError as error:
        raise UsageError(
            f"`grow` shows pictures of {model.image_size} pixels at {side} first, and {model.backbone} does not take "
            "such; leave it out"
        ) from error


def _restore_weights(run: Run, net: HashNet) -> None:
    """Give a network the weights of a run's state.

    Raises:
        RunError: the state is missing or damaged.
    """
    state = run.load_state()
    try:
        _take_weights(state, net)
    except (KeyError, ValueError) as error:
        raise _damaged(run, error) from error


def _take_weights(state: Mapping[str, Tensor], net: HashNet) -> None:
    """The weights alone.

    Raises:
        KeyError, ValueError: they are none of such a network.
    """
    _require_like(state, {f"net.{name}": value for name, value in net.state_dict().items()})
    net.load_state_dict({name: state[f"net.{name}"] for name in net.state_dict()})


def _damaged(run: Run, error: Exception) -> RunError:
    why = f"it lacks {error}" if isinstance(error, KeyError) else reason(error)
    return RunError(f"the state of {run.path} is damaged ({why}); train again with: dsh train --like {run.path}")


def fit_normalisation(net: HashNet, dataset: Dataset, seed: int) -> None:
    """Set mean and deviation per channel to those of the training pictures, or of a sample of those in files.

    Of vectors each number has its mean, and all have one deviation, so that angles stay what they are.
    """
    if dataset.width:
        assert dataset.features is not None
        mean_of_each, deviation_of_all = moments_of(dataset.features)
        net.mean.copy_(torch.from_numpy(mean_of_each))
        net.std.fill_(deviation_of_all)
        return
    pictures = dataset.images
    if not isinstance(pictures, np.ndarray):
        pictures = _sampled(dataset, seed, _SAMPLE).numpy()
    # From histograms: exact, and no float copy of the set.
    for channel in range(pictures.shape[3]):
        counts = np.bincount(pictures[..., channel].ravel(), minlength=256)
        levels = np.arange(256) / 255
        mean = float(np.average(levels, weights=counts))
        deviation = float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))
        planes = slice(channel, None, pictures.shape[3])  # all of them for grey pictures
        net.mean[planes] = mean
        net.std[planes] = max(deviation, 1 / 255)  # a set of one colour has none


def moments_of(features: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """(d,) means of (n, views, d) features or vectors, and the one deviation of all numbers from these, or 1."""
    mean = features.mean(axis=(0, 1), dtype=np.float64)
    parts = (features[start : start + _ROWS] for start in range(0, len(features), _ROWS))
    squares = sum(float(((part - mean) ** 2).sum()) for part in parts)
    deviation = math.sqrt(squares / max(1, features.size))
    rounding = np.finfo(np.float32).eps * np.abs(mean).max(initial=0.0)  # within which they are all the same
    return mean, deviation if deviation > rounding else 1.0


def _sampled(dataset: Dataset, seed: int, most: int) -> Tensor:
    """(n, H, W, channels) uint8 pictures, a sample by lot.

    Raises:
        DataError: none can be read.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:most])
    pictures = np.concatenate([batch.images for batch in dataset.read(np.array_split(rows, -(-len(rows) // _AT_ONCE)))])
    if not len(pictures):
        raise DataError(f"none of {len(rows):,} pictures of {dataset.source} can be read; are they still there?")
    return torch.from_numpy(pictures)


@dataclass(frozen=True)
class Part:
    """An epoch that was left after one of its batches: what it takes to go on with the next."""

    batches: int  # trained on
    read: int  # in the order of the epoch: more where too few pictures of a batch could be read
    losses: Tensor  # sums of `RunningLoss`
    seconds: float
    waited: float  # of these, for pictures
    notes: Sequence[str]  # that the data has to report, and has not yet
    shuffle: Tensor  # the state of what shuffles and augments
    random: Mapping[str, Tensor]  # the states of PyTorch's own generators, by kind of device

    def tensors(self) -> dict[str, Tensor]:
        """The same as flat tensors."""
        return {
            "epoch.batches": torch.tensor(self.batches),
            "epoch.read": torch.tensor(self.read),
            "epoch.losses": self.losses,
            "epoch.seconds": torch.tensor(self.seconds, dtype=torch.float64),
            "epoch.waited": torch.tensor(self.waited, dtype=torch.float64),
            "epoch.notes": torch.tensor(list(json.dumps(self.notes).encode()), dtype=torch.uint8),
            "epoch.shuffle": self.shuffle,
            **{f"epoch.random.{kind}": state for kind, state in self.random.items()},
        }

    @classmethod
    def of(cls, state: Mapping[str, Tensor], batches: int, losses: int, device: torch.device) -> Part:
        """Undo `tensors`.

        Args:
            state: they, among others.
            batches: of a whole epoch.
            losses: how many sums there are.
            device: of the training.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: they are not such.
        """
        name = "epoch.random."
        random = {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
        torch.Generator().set_state(state["epoch.shuffle"])  # which refuses what is none, as here and below
        torch.Generator().set_state(state[f"{name}cpu"])
        if device.type in random:  # it may have been another device
            torch.Generator(device.type).set_state(random[device.type])
        _require_like(state, {"epoch.losses": torch.empty(losses)})
        notes = json.loads(state["epoch.notes"].numpy().tobytes())
        if not isinstance(notes, list):
            raise ValueError("'epoch.notes' is no list")
        read = int(_number(state, "epoch.read", most=batches))
        return cls(
            batches=int(_number(state, "epoch.batches", least=1, most=read)),
            read=read,
            losses=state["epoch.losses"],
            seconds=_number(state, "epoch.seconds"),
            waited=_number(state, "epoch.waited"),
            notes=tuple(map(str, notes)),
            shuffle=state["epoch.shuffle"],
            random=random,
        )


@dataclass(frozen=True)
class Standing:
    """Where a training goes on, beside weights and moments; by default at its beginning."""

    epochs: int = 0  # whole ones that are done
    steps: int | None = 0  # of the optimizer, in all; None: as many as these epochs have batches
    seconds: float = 0.0  # that these epochs took
    operations: float = 0.0  # of all pictures so far; not a number where that is not known
    part: Part | None = None  # of the next one


def state_of(net: HashNet, optimizers: Optimizers, standing: Standing) -> dict[str, Tensor]:
    """Weights, optimizer moments and what else it takes to go on, as flat tensors.

    Shuffles of whole epochs need no state: they follow the number of the epoch.
    """
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():  # frozen ones have none
                state[f"optimizer.{name}.{key}"] = value
    state |= {"steps": torch.tensor(standing.steps), "seconds": torch.tensor(standing.seconds, dtype=torch.float64)}
    if not math.isnan(standing.operations):
        state["operations"] = torch.tensor(standing.operations, dtype=torch.float64)
    # Here as well as in metrics.json, for the two files are not written at one moment.
    return {**state, "epochs_done": torch.tensor(standing.epochs), **(standing.part.tensors() if standing.part else {})}


def restore(
    run: Run,
    net: HashNet,
    optimizers: Optimizers,
    batches: int,
    losses: int,
    processes: Processes = ALONE,
) -> Standing:
    """Undo `state_of` where the run has a state.

    Args:
        run: has the state.
        net: is given its weights.
        optimizers: are given their moments.
        batches: of an epoch.
        losses: how many sums a part of an epoch has.
        processes: of which the first reads the state.

    Raises:
        RunError: the state is missing or damaged, or that of another training.
    """
    state = processes.by_first(run.load_state)
    if not state:
        return Standing()
    epochs, device = run.config.epochs, next(net.parameters()).device
    try:
        found = _moments(state, net, optimizers)
        _require_like(state, {f"net.{name}": value for name, value in net.state_dict().items()})
        standing = Standing(
            epochs=int(_number(state, "epochs_done", most=epochs)),
            # older versions did not count them; the schedule has no more
            steps=int(_number(state, "steps", most=epochs * batches)) if "steps" in state else None,
            seconds=_number(state, "seconds"),
            operations=_number(state, "operations") if "operations" in state else math.nan,  # not in older versions
            part=Part.of(state, batches, losses, device) if "epoch.batches" in state else None,
        )
        if standing.part is not None and standing.epochs == epochs:
            raise ValueError(f"'epochs_done' is {epochs}, and it has a part of one more")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(run, error) from error
    _take_weights(state, net)
    for optimizer, parameter, of_it in found:
        optimizer.state[parameter] = {
            # moments in the layout of their parameter and steps on its device: fused optimizers rely on both
            key: torch.empty_like(parameter).copy_(value) if value.dim() else value.to(parameter.device)
            for key, value in of_it.items()
        }
    return standing


def _moments(
    state: Mapping[str, Tensor], net: HashNet, optimizers: Optimizers
) -> list[tuple[torch.optim.Optimizer, torch.nn.Parameter, dict[str, Tensor]]]:
    """What a state has of each parameter that an optimizer has moved.

    Raises:
        KeyError, ValueError: something is missing, or no such thing.
    """
    names_of = {parameter: name for name, parameter in net.named_parameters()}
    found = []
    for optimizer in optimizers:
        for parameter in (one for group in optimizer.param_groups for one in group["params"]):
            names = {key: f"optimizer.{names_of[parameter]}.{key}" for key in moments(optimizer)}
            if state.keys().isdisjoint(names.values()):  # some take no part in the loss
                continue
            scalar = parameter.new_empty(())
            _require_like(state, {full: scalar if key in COUNTS else parameter for key, full in names.items()})
            for count in COUNTS:
                if count in names:
                    _number(state, names[count])
            found.append((optimizer, parameter, {key: state[full] for key, full in names.items()}))
    return found


def _require_like(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that there are finite tensors of the types and shapes of others.

    Raises:
        KeyError: one is missing.
        ValueError: one is another.
    """
    for name, like in expected.items():
        found = state[name]
        if found.dtype != like.dtype or found.shape != like.shape:
            raise ValueError(f"{name!r} is {_kind(found)}, in place of {_kind(like)}")
        if not found.isfinite().all():
            raise ValueError(f"{name!r} is not finite")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _number(state: Mapping[str, Tensor], name: str, least: float = 0, most: float = sys.float_info.max) -> float:
    """The number that a tensor is.

    Raises:
        KeyError: it is missing.
        ValueError: it is none, or out of its range.
    """
    tensor = state[name]
    if tensor.dim() or not least <= tensor.item() <= most:  # NaN fails too
        up_to = "" if most == sys.float_info.max else f" to {most:,}"
        raise ValueError(f"{name!r} is no number from {least}{up_to}")
    return tensor.item()


def generators(device: torch.device) -> dict[str, Any]:
    """What PyTorch draws random numbers from on this device, for dropout and such, by kind of device."""
    return {kind: torch.get_device_module(kind) if kind != "cpu" else torch.random for kind in {"cpu", device.type}}


@contextmanager
def deterministic(seed: int, threads: int | None = None) -> Iterator[None]:
    """Seed PyTorch, set its threads where told how many, and give the caller's state and settings back afterwards.

    How sums are rounded depends on the number of threads that share them.
    """
    before = torch.are_deterministic_algorithms_enabled()
    settings: Any = torch.utils.deterministic  # its attributes are made at run time
    fill_before = settings.fill_uninitialized_memory
    threads_before = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.set_num_threads(min(threads or threads_before, max(threads_before, default_workers())))
        torch.use_deterministic_algorithms(True, warn_only=True)
        settings.fill_uninitialized_memory = False  # nothing here reads such; it costs a third
        try:
            yield
        finally:
            torch.set_num_threads(threads_before)
            torch.use_deterministic_algorithms(before)
            settings.fill_uninitialized_memory = fill_before
