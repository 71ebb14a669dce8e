"""The training loop."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsh_cli.batches import Batches
from dsh_cli.centers import Codewords, assign, construct
from dsh_cli.checkpoint import Run, create, discard
from dsh_cli.codes import pack, unpack
from dsh_cli.config import OWN_BACKBONES, UNSEEN, ModelConfig, Recipe, TrainConfig
from dsh_cli.data import Dataset, Splits, default_augment
from dsh_cli.encoding import Encoder, encode_dataset
from dsh_cli.errors import DataError, DshError, Interrupted, RunError
from dsh_cli.events import EpochStats, Listener, Plan, TrainResult
from dsh_cli.losses import center_term, choice_term, dsh_loss
from dsh_cli.metrics import class_table
from dsh_cli.model import HashNet
from dsh_cli.network.device import choose_device
from dsh_cli.protocols import compared
from dsh_cli.retrieval import mean_average_precision
from dsh_cli.weights import Taken, take_file, take_pretrained

_STEP_AT = (0.6, 0.85)  # shares of the training at which the `step` schedule divides the rate by ten
# By default, of grey and of colour pictures: 4 epochs of MNIST, see benchmarks/quality.py, and 12 of CIFAR-10, whose
# pictures are harder; 60 times over at most.
_STEPS, _EPOCHS, _MOST = {1: 1180, 3: 3000}, {1: 4, 3: 12}, 60
_PER_CLASS = 4  # pictures of a class in a batch, where classes outnumber what a batch can hold (P x K sampling)
_SAMPLE = 2000  # pictures in files that mean and deviation are taken from
_WARM_UP = 0.125  # share of the epochs before classes are given their centers, and in which these are phased in
_CHOICE = 10 / 3  # weight of choosing the own center beside pairs with centers: 1 in all by default, see LOG.md
_SURE = 6 / 7  # probability of the own center for a picture on it, all others equally far: 2 / distance for ten classes
_CLASSES = 3000  # that centers are found for: it takes seconds up to there, and grows with the cube
_MEANS = (5000, 20)  # pictures whose codes show where the classes are: in all, and for each class, at least
_LOOK = 50  # steps between looks at whether the loss is finite: each makes a GPU wait, and loses it about a step
# Below, maps of torchvision's networks come to one pixel before their last stride, where PyTorch 2.14 computes a
# wrong gradient in bfloat16: a 3x3 convolution of stride 2, by oneDNN.
_WIDE = 32  # pixels
_MOMENTUM = 0.9  # of SGD, as in the DSH authors' released code


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
        UsageError: `out` is taken, the device is not there, or the backbone is not one, or not for such pictures.
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
    model = resume.model if resume else _model_config(config, splits)
    with _listening(listeners), _deterministic(recipe.seed):
        net, taken = _network(recipe, model, splits, resume)
        run = resume or create(recipe, model, splits, out)
        try:
            with run.held():
                return _train(run, net, taken, splits, device, listeners)
        except KeyboardInterrupt as interrupt:
            done = Run.open(run.path).metrics.get("epochs_done", 0)
            raise Interrupted(
                f"stopped after {done} of {run.config.epochs} epochs; {run.path} is marked unfinished. "
                f"Go on with: dsh train --resume {run.path}"
            ) from interrupt
        except DshError:
            if resume is None:
                discard(run)  # nothing half-written
            raise


def settle(config: TrainConfig, splits: Splits) -> Recipe:
    """The same request with every open choice made."""
    seen = len(np.unique(splits.train.labels))
    scarce = config.batch_size < 2 * seen  # fewer than two of a class in a batch, on average
    choices = {
        "per_class": (_PER_CLASS if scarce else 0) if config.per_class is None else config.per_class,
        "amp": _bfloat16_pays(config, splits.train.image_size) if config.amp is None else config.amp,
        "image_size": splits.train.image_size,
        "epochs": config.epochs or _epochs(splits.train, config.batch_size),
        "augment": config.augment or default_augment(config.data),
        "margin": 2.0 * config.bits if config.margin is None else config.margin,  # DSH, section 3
    }
    return Recipe(**{**asdict(config), **choices})


def _bfloat16_pays(config: TrainConfig, image_size: int) -> bool:
    """Whether bfloat16 is known to train sooner: on processors with instructions for it, see `benchmarks/LOG.md`."""
    if choose_device(config.device).type != "cpu":
        return False
    if config.backbone not in OWN_BACKBONES and image_size < _WIDE:
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def _model_config(config: TrainConfig, splits: Splits) -> ModelConfig:
    return ModelConfig(config.backbone, config.bits, splits.train.channels, splits.train.image_size)


def _epochs(dataset: Dataset, batch_size: int) -> int:
    """So many that a small set gets about as many steps as MNIST or CIFAR-10, within bounds."""
    batches = max(1, len(dataset) // batch_size)
    return min(max(_EPOCHS[dataset.channels], math.ceil(_STEPS[dataset.channels] / batches)), _MOST)


def _network(config: Recipe, model: ModelConfig, splits: Splits, resume: Run | None) -> tuple[HashNet, Taken | None]:
    """The network a training starts from, normalisation included, and what weights it took over."""
    net = HashNet(model)
    net.require_size()
    taken = None
    if resume is None or not resume.begun:  # else all comes from its state
        if config.pretrained:
            taken = take_pretrained(net)
        elif config.weights is not None:
            taken = take_file(net, config.weights)
        if taken is None or not taken.normalised:
            _fit_normalisation(net, splits.train, config.seed)
    if config.freeze:
        net.freeze()
    return net, taken


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
            f"--compile: PyTorch cannot compile on this machine ({reason}); "
            "install a C++ compiler such as g++, or leave --compile out"
        ) from error
    return torch.compile(net)


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
    # bfloat16 has the range of float32, so small gradients need no scaling as they do in float16.
    precision = torch.autocast(device.type, torch.bfloat16, enabled=config.amp)
    batches = Batches(splits.train, config.batch_size, config.augment, config.seed, device, config.per_class)
    optimizer = _optimizer(net, config)
    schedule = _schedule(optimizer, config, steps=len(batches) * config.epochs)
    first, seconds = _restore(run, net, optimizer)
    with warnings.catch_warnings(action="ignore"):  # the optimizer took these steps before it was interrupted
        for _ in range(first * len(batches)):
            schedule.step()
    started = time.perf_counter()
    centers = _Centers.of(run, splits.train, device)
    if not first:
        seconds += time.perf_counter() - started
    for listener in listeners:
        listener.on_start(Plan(run, str(device), len(batches), batches.batch_size, first, taken, centers.told))

    net.train()
    for epoch in range(first, config.epochs):
        started, waited_before = time.perf_counter(), batches.waited
        totals, done = torch.zeros(4, device=device), 0
        centers.prepare(net, epoch)
        torch.manual_seed((config.seed * 1_000_003 + epoch) % 2**63)  # of dropout, the same in a resumed run
        for done, (images, labels) in enumerate(batches.epoch(epoch), 1):
            with precision:
                relaxed = forward(images).float()  # (B, k)
            loss, pair, quantization = dsh_loss(relaxed, labels, config.margin, config.alpha)
            center = centers.term(relaxed, labels, epoch + (done - 1) / len(batches))
            loss = loss + center
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if config.clip is not None:
                torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip)
            optimizer.step()
            schedule.step()
            totals += torch.stack([loss, pair, quantization, center]).detach()
            if done % _LOOK == 0:
                _require_finite([totals], run, epoch, f"step {done} of {len(batches)}")
            for listener in listeners:
                listener.on_batch(epoch + 1, done, totals)
        if not done:
            raise DataError(f"none of the pictures of {config.data} could be read in epoch {epoch + 1}")
        # the device waits, once an epoch
        loss_mean, pair_mean, quantization_mean, center_mean = (totals / done).tolist()
        elapsed = time.perf_counter() - started
        rate = len(batches) * batches.batch_size / elapsed
        # The last step of an epoch may spoil weights that no loss has seen yet.
        state = _state(net, optimizer, epoch + 1)
        _require_finite([totals, *state.values()], run, epoch, f"its last step, {len(batches)}")
        validation = encode_dataset(net, splits.validation)
        value = mean_average_precision(validation) if len(validation) > 1 else None
        waited = (batches.waited - waited_before) / elapsed
        stats = EpochStats(
            epoch=epoch + 1,
            loss=loss_mean,
            pair=pair_mean,
            quantization=quantization_mean,
            center=center_mean,
            images_per_second=rate,
            validation=validation,
            validation_map=value,
            waited=waited,
            notes=batches.new_notes(),
        )
        seconds += time.perf_counter() - started
        run.write_state({**state, "seconds": torch.tensor(seconds, dtype=torch.float64)}, epochs_done=epoch + 1)
        for listener in listeners:
            listener.on_epoch(stats)

    result = _measured(run, net, splits, seconds)
    for listener in listeners:
        listener.on_end(result)
    return result


class _Centers:
    """Hash centers in a training: made before it, given to classes after a warm-up, then phased in."""

    def __init__(self, run: Run, dataset: Dataset, device: torch.device, words: Codewords | None, told: str) -> None:
        self.run, self.dataset, self.device, self.words, self.told = run, dataset, device, words, told
        self.warm_up = max(1, round(_WARM_UP * run.config.epochs))  # epochs
        self.classes = np.unique(dataset.labels)  # without those held out
        # A picture on its center pays nothing for the others: 4 is what one bit adds to a squared distance.
        self.margin = min(run.config.margin, 4.0 * words.distance) if words else 0.0
        self.labels = torch.from_numpy(self.classes).to(device)
        odds = (len(self.classes) - 1) * _SURE / (1 - _SURE)
        self.scale = math.log(odds) / (2 * words.distance) if words else 0.0  # of inner products, into logits
        self.centers: Tensor | None = None  # (C, k) of +1 and -1, of these classes

    @classmethod
    def of(cls, run: Run, dataset: Dataset, device: torch.device) -> _Centers:
        """Those of a run, or none where it wants none or can have none."""
        config, classes = run.config, len(np.unique(dataset.labels))
        if config.centers == "none" or not config.center_weight:
            return cls(run, dataset, device, None, "")
        reason = (
            "there is one class" if classes < 2
            else f"{classes} classes cannot have different codes of {config.bits} bits" if classes > 2**config.bits
            else f"{classes:,} classes would take too long, {_CLASSES:,} at most" if classes > _CLASSES
            else "they take a second epoch" if config.epochs < 2
            else ""
        )  # fmt: skip
        if reason:
            return cls(run, dataset, device, None, f"hash centers are off: {reason}")
        words = construct(config.bits, classes, config.seed)
        limit = f" of at most {words.bound.distance}" if words.bound else ""
        return cls(run, dataset, device, words, f"hash centers: distance {words.distance}{limit} between classes")

    def prepare(self, net: HashNet, epoch: int) -> None:
        """Give the classes their centers once the warm-up is over."""
        if self.words is None or self.centers is not None or epoch < self.warm_up:
            return
        packed = self.run.centers() if epoch > self.warm_up else None
        if packed is None:
            seed = self.run.config.seed
            means = _class_means(net, self.dataset, seed)[self.classes]
            packed = np.zeros((len(self.run.classes), -(-self.run.config.bits // 8)), np.uint8)
            packed[self.classes] = pack(assign(means, self.words.words, seed))
            self.run.write_centers(packed)
        bits = torch.from_numpy(unpack(packed[self.classes], self.run.config.bits)).to(self.device)
        self.centers = bits.float() * 2 - 1

    def term(self, relaxed: Tensor, labels: Tensor, epoch: float) -> Tensor:
        """What they add to the loss of a batch."""
        if self.centers is None:
            return relaxed.new_zeros(())
        weight = self.run.config.center_weight * min(1.0, epoch / self.warm_up - 1)
        own = torch.searchsorted(self.labels, labels)  # rows of the centers
        pairs = center_term(relaxed, own, self.centers, self.margin)
        return weight * (pairs + _CHOICE * choice_term(relaxed, own, self.centers, self.scale))


def _class_means(net: HashNet, dataset: Dataset, seed: int) -> NDArray[np.float32]:
    """(C, k) means of the relaxed codes of the classes, of a sample."""
    classes, (least, each) = len(dataset.classes), _MEANS
    rows = np.sort(np.random.default_rng(seed).permutation(len(dataset))[: max(least, each * classes)])
    encoder = Encoder(net)
    sums, counts = np.zeros((classes, encoder.bits), np.float32), np.zeros((classes, 1), np.float32)
    for batch in dataset.read(np.array_split(rows, -(-len(rows) // encoder.at_once))):
        labels = dataset.labels[batch.rows]
        np.add.at(sums, labels, encoder.relaxed(batch.images))
        np.add.at(counts, labels, 1)
    sums /= np.maximum(counts, 1)
    return sums


def _measured(run: Run, net: HashNet, splits: Splits, seconds: float) -> TrainResult:
    """Encode all pictures, measure them, and save the run as finished."""
    codes = {split: encode_dataset(net, part) for split, part in splits.parts().items()}
    table = class_table(codes["test"], "test")
    value = mean_average_precision(*compared(run.config.protocol, codes.__getitem__, UNSEEN in codes))
    result = TrainResult(run, seconds, value, table)
    metrics = {
        "epochs": run.config.epochs,
        "seconds": round(seconds, 3),
        "map": result.map,
        "min_class_distance": table.min_class_distance,
        "class_distance_bound": table.bound.distance if table.bound else None,
        "device": str(net.mean.device),
    }
    return replace(result, run=run.write_results(net, codes, metrics))


@contextmanager
def _listening(listeners: Sequence[Listener]) -> Iterator[None]:
    try:
        yield
    finally:
        for listener in listeners:
            listener.close()


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seed PyTorch, and give the caller's random state and settings back afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    settings: Any = torch.utils.deterministic  # its attributes are made at run time
    fill_before = settings.fill_uninitialized_memory
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        settings.fill_uninitialized_memory = False  # nothing here reads such; it costs a third
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            settings.fill_uninitialized_memory = fill_before


def _fit_normalisation(net: HashNet, dataset: Dataset, seed: int) -> None:
    """Set mean and deviation per channel to those of the training pictures, or of a sample of those in files."""
    pictures = dataset.images
    if not isinstance(pictures, np.ndarray):
        sample = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:_SAMPLE])
        pictures = np.concatenate([batch.images for batch in dataset.read([sample])])
        if not len(pictures):
            raise DataError(f"none of {len(sample):,} pictures of {dataset.source} can be read; are they still there?")
    # From histograms: exact, and no float copy of the set.
    for channel in range(pictures.shape[3]):
        counts = np.bincount(pictures[..., channel].ravel(), minlength=256)
        levels = np.arange(256) / 255
        mean = float(np.average(levels, weights=counts))
        deviation = float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))
        planes = slice(channel, None, pictures.shape[3])  # all of them for grey pictures
        net.mean[planes] = mean
        net.std[planes] = max(deviation, 1 / 255)  # a set of one colour has none


def _optimizer(net: HashNet, config: Recipe) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.lr, momentum=_MOMENTUM, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay, fused=True)


def _schedule(optimizer: torch.optim.Optimizer, config: Recipe, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    # Schedulers plan one step more than is taken, for `step` is also called after the last batch.
    if config.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps + 1)
    drops = [int(steps * share) for share in _STEP_AT] if config.schedule == "step" else []
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, drops)


def _state(net: HashNet, optimizer: torch.optim.Optimizer, epochs_done: int) -> dict[str, Tensor]:
    """Weights and optimizer moments as flat tensors. Shuffles need no state: they follow the epoch."""
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():  # frozen ones have none
            state[f"optimizer.{name}.{key}"] = value
    # Here as well as in metrics.json, for the two files are not written at one moment.
    return {**state, "epochs_done": torch.tensor(epochs_done)}


def _restore(run: Run, net: HashNet, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Undo `_state` where the run has one; returns the epochs done and the seconds they took."""
    state = run.load_state()
    if not state:
        return 0, 0.0
    try:
        net.load_state_dict({name: state[f"net.{name}"] for name in net.state_dict()})
        for name, parameter in net.named_parameters():
            prefix = f"optimizer.{name}."
            optimizer.state[parameter] = {
                # moments in the layout of their parameter and steps on its device: fused optimizers rely on both
                key.removeprefix(prefix): (
                    torch.empty_like(parameter).copy_(value) if value.dim() else value.to(parameter.device)
                )
                for key, value in state.items()
                if key.startswith(prefix)
            }
        return int(state["epochs_done"]), float(state["seconds"])
    except (KeyError, RuntimeError) as error:
        raise RunError(f"{run.path / 'state.safetensors'} is damaged ({error}); train again with: dsh train") from error


def _require_finite(tensors: Sequence[Tensor], run: Run, epoch: int, step: str) -> None:
    """Stop where a loss, a weight or a moment is infinite or no number; the last whole epoch stays saved."""
    if all(bool(tensor.isfinite().all()) for tensor in tensors):
        return
    config = run.config
    precision = ", leave --amp out" if config.amp else ""  # rounding, and on tiny maps a kernel of PyTorch's, do it too
    kept = f"; {run.path} stays as it was after {epoch} of {config.epochs} epochs" if epoch else ""
    raise DshError(
        f"the loss is not finite in epoch {epoch + 1}, by {step}: training has diverged. "
        f"Try --lr {min(config.lr / 10, TrainConfig.lr):g} or --clip {(config.clip or 10) / 10:g}{precision}, "
        f"and see that --margin and --alpha are not extreme{kept}"
    )
