"""From what is asked for to the recipe of a run, in which every open choice is made. Free of torch until it is made."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dsh_cli.codes.centers import why_none
from dsh_cli.config import (
    AUTO,
    DATASETS,
    OWN_BACKBONES,
    PIXELS,
    VECTORS,
    Centers,
    ModelConfig,
    Optimizer,
    Recipe,
    Schedule,
    TrainConfig,
)
from dsh_cli.data.dataset import Dataset
from dsh_cli.data.splits import Splits, default_augment
from dsh_cli.data.vectors import is_vectors
from dsh_cli.errors import RunError, UsageError
from dsh_cli.network.presets import chosen, expecting
from dsh_cli.pictures.cache import holds_pictures
from dsh_cli.runs.run import Run, may_be_run
from dsh_cli.threads import cores, default_workers, free_processors

# By default, of features, which cost little, and of grey and of colour pictures: 2 epochs of MNIST, see
# benchmarks/quality.py, and 8 of CIFAR-10, whose pictures are harder; so many at most.
_STEPS, _EPOCHS, _MOST = {0: 1200, 1: 236, 3: 784}, {0: 10, 1: 2, 3: 8}, 60
_HIDDEN, _DROPOUT = 512, 0.2  # on features that stay as they are, see `benchmarks/LOG.md`
_BATCH, _BATCHES = {1: 500, 3: 250}, 20  # pictures in a batch, at most; fewer where that gives fewer batches an epoch
_LEAST = 32  # pictures in a batch, for its statistics
_PAIRS = 200  # pictures in a batch where every pair counts (DSH, section 3), and of networks that others designed
_LARGE = 24  # pixels of pictures that are shown smaller at first
_PER_CLASS = 4  # pictures of a class in a batch, where classes outnumber what a batch can hold (P x K sampling)
# Below, maps of torchvision's networks come to one pixel before their last stride, where PyTorch 2.14 computes a
# wrong gradient in bfloat16: a 3x3 convolution of stride 2, by oneDNN.
_WIDE = 32  # pixels


_NO_BACKBONE = "`freeze`: vectors have no backbone that could learn; leave it out"

# Fields of steps and classes, which methods without either have no use for.
_OF_STEPS = (
    *("centers", "margin", "alpha", "epochs", "batch_size", "per_class", "optimizer", "schedule", "lr", "weight_decay"),
    *("clip", "hidden", "dropout", "grow"),
)

# Fields of pictures, and what they may be where the data are vectors: open, or as a run on such has them.
_OF_PICTURES: dict[str, tuple[Any, ...]] = {
    "image_size": (None, 0),
    "fit": (None, "crop"),
    "interpolation": (None, "bilinear"),
    "augment": (None, "none"),
    "grow": (None, False),
    "mirror": (None, False),
    "pretrained": (False,),
    "weights": (None,),
}


@dataclass(frozen=True)
class _Usual:
    """What an optimizer goes with, where nothing else is asked for."""

    schedule: Schedule
    lr: float
    weight_decay: float


_USUAL: dict[Optimizer, _Usual] = {
    "muon": _Usual("linear", 0.12, 5e-3),  # of batches of 500; by the root of their size (Malladi et al., 2022)
    "adamw": _Usual("one-cycle", 6e-3, 5e-3),
    "sgd": _Usual("one-cycle", 6e-3, 5e-3),
}
_ON_FEATURES = _Usual("one-cycle", 3e-3, 0.1)  # of AdamW, where features stay as they are


@dataclass(frozen=True)
class Request:
    """A training asked for: a new one, one like that of another run, or one to go on with."""

    changes: Mapping[str, Any]  # fields of `TrainConfig` that were given, and their values
    out: str | None = None  # run folder to make
    like: str | None = None  # run whose recipe is changed, in place of the defaults
    resume: str | None = None  # unfinished run to go on with
    checkpoint_every: float | None = None  # minutes after which it is saved within an epoch

    def check(self) -> None:
        """Refuse what contradicts itself, before any run is opened.

        Raises:
            UsageError: it does; the message names the fields.
        """
        require_minutes(self.checkpoint_every)
        centers = self.changes.get("centers")
        of_pairs = not self.changes.keys().isdisjoint(("margin", "alpha"))
        if centers == "none" and "smoothing" in self.changes:
            raise UsageError("`centers` none and `smoothing`, of their choice, contradict each other; give one of them")
        if centers == "auto" and of_pairs:
            raise UsageError(
                "`centers` auto contradicts `margin` and `alpha`, which are of the loss over pairs; leave one out"
            )
        if "smoothing" in self.changes and of_pairs:
            raise UsageError(
                "`smoothing`, of the choice of a center, contradicts `margin` and `alpha`, which are of the loss over "
                "pairs; leave one out"
            )
        if self.resume is not None and (self.changes or self.out or self.like):
            raise UsageError("`resume` goes on with the run's own recipe; for another one use `like` instead")

    def opened(self) -> tuple[TrainConfig, Run | None]:
        """What is to be trained, and the run to go on with, if that is asked for.

        Raises:
            UsageError: the request is impossible, or the run to go on with is finished.
            RunError: there is no such run, or it is damaged, or one whose weights are to be taken.
        """
        self.check()
        run = None
        if self.resume is not None:
            run = Run.open(self.resume)
            run.require_unfinished()
            require_known_loss(run)
            # where pictures are kept is of a machine: a stranger's run shall not make files anywhere
            kept = run.config.cache in ("auto", "off") or holds_pictures(run.config.cache)
            config: TrainConfig = run.config if kept else replace(run.config, cache=TrainConfig.cache)
        else:
            if self.like is None:
                config = changed(TrainConfig(), self.changes)
            else:
                like = Run.open(self.like)
                recipe = replace(like.config, cache=TrainConfig.cache)
                config = changed(recipe, self.changes, len(like.classes) - recipe.hold_out_classes)
        if config.freeze and is_vectors(config.data):
            raise UsageError(_NO_BACKBONE)
        config.check()
        if run is None:
            _require_used(config)
        if run is None and config.weights is not None and may_be_run(Path(config.weights)):
            _ = Run.open(config.weights).fingerprint  # which reads all weights, and refuses damaged ones
        return config, run


def _require_used(config: TrainConfig) -> None:
    """Refuse what a method has no use for.

    Raises:
        UsageError: it is given.
    """
    given = [name for name in _OF_STEPS if getattr(config, name) is not None]
    if config.method != "dsh" and given:
        raise UsageError(
            f"`{given[0]}` is for learning by steps, and `method` {config.method} takes none; leave it out, or choose "
            "`method` dsh"
        )
    random = config.weights is None and not config.pretrained
    if config.method != "dsh" and random and config.backbone not in (TrainConfig.backbone, AUTO, PIXELS, VECTORS):
        raise UsageError(
            f"`method` {config.method} learns from what `backbone` {config.backbone} gives, which is worth nothing "
            "without weights; give `pretrained` or `weights` as well"
        )


def require_minutes(checkpoint_every: float | None) -> None:
    """Refuse minutes that do not pass.

    Raises:
        UsageError: they are not above 0.
    """
    if checkpoint_every is not None and not 0 < checkpoint_every < math.inf:
        raise UsageError(f"`checkpoint_every` {checkpoint_every}: minutes, above 0")


def require_known_loss(run: Run) -> None:
    """Refuse to go on with a run that an earlier version began, whose loss is no longer there.

    Raises:
        RunError: it is one.
    """
    if run.config.centers == "auto" and run.config.smoothing is None:
        raise RunError(
            f"{run.path} was begun by an earlier version of dsh, with another loss; "
            f"train anew with: dsh train --like {run.path}"
        )


def changed(recipe: TrainConfig, changes: Mapping[str, Any], class_count: int | None = None) -> TrainConfig:
    """The defaults or a run's recipe with other values, as a request.

    What was chosen by a field is open again where that field has another value, unless it is given too: all that is of
    steps goes with the method; the margin with the bits; picture size, augmentation, epochs and batches with the data;
    optimizer, hidden layer, epochs and batches with the network, and with what of it learns, and rates with either of
    these; epochs and batches with the kind of loss and the optimizer; Muon's rate and epochs with the batches; the
    picture size with pretrained weights; bfloat16 with network, picture size, data and device. Whether there are
    centers is open where any margin or alpha is given, and where bits decided it. Pretrained weights take the place of
    those of a file, and the other way round. Paths become absolute, so that they are found again from anywhere.

    Args:
        recipe: what to change.
        changes: fields of `TrainConfig` and their values.
        class_count: classes that the recipe's run was trained on.

    Raises:
        UsageError: there are no such weights.
    """
    given = dict(changes)

    def differs(*names: str) -> bool:
        return any(name in given and given[name] != getattr(recipe, name) for name in names)

    def leave_open(*names: str) -> None:
        for name in names:
            given.setdefault(name, None)

    if differs("data") and is_vectors(str(given["data"])) != (recipe.backbone == VECTORS):  # another kind of data
        for name in ("backbone", "pretrained", "weights", "freeze"):
            given.setdefault(name, getattr(TrainConfig, name))
        leave_open("fit", "interpolation", "mirror", "hidden", "dropout", "optimizer", "schedule", "lr", "weight_decay")
    if differs("method") or recipe.method != "dsh":
        leave_open(*_OF_STEPS, "image_size", "augment", "mirror", "amp")
        if recipe.backbone == PIXELS and recipe.method != "dsh":
            given.setdefault("backbone", TrainConfig.backbone)
            given.setdefault("freeze", False)
    if differs("freeze"):
        leave_open("hidden", "dropout", "optimizer", "batch_size", "epochs")
    if differs("bits"):
        leave_open("margin")
        if class_count and bool(why_none(recipe.bits, class_count)) != bool(why_none(given["bits"], class_count)):
            leave_open("centers", "alpha", "batch_size")
    of_pairs = not {given.get("margin"), given.get("alpha")} <= {None}
    if of_pairs:
        leave_open("centers")  # which these go without, even as a run has them that did not use them
    pairs = given.get("centers", recipe.centers) == "none" or of_pairs
    muon = given.get("optimizer", recipe.optimizer) == "muon"
    if pairs != (recipe.centers == "none") or muon != (recipe.optimizer == "muon"):
        leave_open("batch_size")
    if given.get("centers") == "auto" and differs("centers"):
        leave_open("margin", "alpha")
    if differs("data"):
        leave_open("image_size", "augment", "epochs", "batch_size", "per_class")
    if differs("data", "augment"):
        leave_open("mirror")
    if differs("backbone"):
        leave_open("optimizer", "batch_size", "epochs", "grow", "hidden", "dropout")
    if differs("backbone", "optimizer", "freeze"):
        leave_open("schedule", "lr", "weight_decay")
    if differs("batch_size"):
        leave_open("epochs", "per_class")
        if muon:
            leave_open("lr")
    if differs("pretrained") or (given.get("pretrained", recipe.pretrained) and differs("backbone")):
        leave_open("image_size")  # other weights have another
        leave_open("fit", "interpolation")
    if differs("image_size"):
        leave_open("grow")
    if differs("backbone", "image_size", "data", "device"):
        leave_open("amp")  # which pays, or is safe, by these
    if given.get("pretrained"):
        leave_open("weights")
    elif "weights" in given:
        given.setdefault("pretrained", False)
    config = replace(TrainConfig(**asdict(recipe)), **given)
    if config.data not in DATASETS and os.path.exists(config.data):
        config = replace(config, data=os.path.abspath(config.data))
    if config.weights is not None:
        if not os.path.exists(config.weights):
            raise UsageError(f"`weights` {config.weights}: there is no such file or run folder")
        config = replace(config, weights=os.path.abspath(config.weights))
    return config


def settle(config: TrainConfig, splits: Splits) -> Recipe:
    """The same request with every open choice made."""
    config = config if splits.train.width else chosen(config)
    if config.method != "dsh":
        return _settled_linear(config, splits)
    train, pictures = splits.train, expecting(config)
    backbone = _backbone(config, train)
    head_alone = bool(train.width) or config.freeze
    seen = len(np.unique(train.labels))
    wanted = config.centers or ("none" if config.margin is not None or config.alpha is not None else "auto")
    centers: Centers = "none" if why_none(config.bits, seen) else wanted
    default = backbone == TrainConfig.backbone
    optimizer = config.optimizer or ("muon" if default and not head_alone else "adamw")
    if optimizer == "muon" and head_alone:
        raise UsageError("`optimizer` muon: it is for convolutions, and vectors need none; choose adamw or sgd")
    batch_size = config.batch_size or _batch_size(train, optimizer == "muon", head_alone, centers)
    scarce = centers == "none" and batch_size < 2 * seen  # fewer than two of a class in a batch, on average
    usual = _ON_FEATURES if head_alone and optimizer == "adamw" else _USUAL[optimizer]
    augment = "none" if train.width else config.augment or default_augment(config.data)
    choices = {
        "backbone": backbone,
        "centers": centers,
        "smoothing": TrainConfig.smoothing if config.smoothing is None else config.smoothing,
        "threads": _threads(config),
        "margin": 2.0 * config.bits if config.margin is None else config.margin,  # DSH, section 3
        "alpha": 0.01 if config.alpha is None else config.alpha,  # DSH, section 4.1
        "optimizer": optimizer,
        "schedule": config.schedule or usual.schedule,
        "lr": _rate(usual.lr, optimizer, batch_size) if config.lr is None else config.lr,
        "weight_decay": usual.weight_decay if config.weight_decay is None else config.weight_decay,
        "batch_size": batch_size,
        "per_class": (_PER_CLASS if scarce else 0) if config.per_class is None else config.per_class,
        "amp": not head_alone and bfloat16_pays(config, train.image_size) if config.amp is None else config.amp,
        "image_size": train.image_size,
        "fit": pictures.fit,
        "interpolation": pictures.interpolation,
        "hidden": (_HIDDEN if head_alone else 0) if config.hidden is None else config.hidden,
        "dropout": (_DROPOUT if head_alone else 0.0) if config.dropout is None else config.dropout,
        "epochs": config.epochs or _epochs(train, batch_size, 0 if head_alone else train.channels),
        "augment": augment,
        "grow": default and train.image_size >= _LARGE if config.grow is None else config.grow,
        "mirror": augment == "photos" if config.mirror is None else config.mirror,
    }
    return Recipe(**{**asdict(config), **choices})


# Fields by which learning goes well or badly, and no others of the recipe are chosen.
_SHAPING = (
    *("lr", "weight_decay", "clip", "smoothing", "margin", "alpha", "dropout", "epochs", "batch_size", "per_class"),
    *("schedule", "optimizer", "augment"),
)


def unusual(recipe: Recipe, splits: Splits) -> dict[str, Any]:
    """The fields by which learning goes well or badly that are not as `settle` chooses them: what they would be.

    Each by itself, all others of the recipe as they are; those of a loss that is not used are left out.
    """
    unused = ("margin", "alpha") if recipe.centers == "auto" else ("smoothing",)
    found = {}
    for name in _SHAPING:
        usual = getattr(
            settle(replace(TrainConfig(**asdict(recipe)), **{name: getattr(TrainConfig, name)}), splits), name
        )
        if name not in unused and usual != getattr(recipe, name):
            found[name] = usual
    return found


def _settled_linear(config: TrainConfig, splits: Splits) -> Recipe:
    """The same of a method without steps: pictures as they are, and a backbone that stays as it is."""
    _require_used(config)
    train, pictures = splits.train, expecting(config)
    backbone = _backbone(config, train)
    augment = config.augment or "none"
    choices = {
        **dict.fromkeys(_OF_STEPS),
        "margin": 2.0 * config.bits,  # of no use, and as good as any
        "backbone": backbone,
        "freeze": not train.width,
        "image_size": train.image_size,
        "fit": pictures.fit,
        "interpolation": pictures.interpolation,
        "augment": augment,
        "mirror": augment == "photos" if config.mirror is None else config.mirror,
        "amp": False,
        "threads": _threads(config),
    }
    made = {field.name: field.default for field in fields(Recipe)} | asdict(config) | choices
    return Recipe(**{name: value for name, value in made.items() if name not in _OF_STEPS or value is not None})


def _rate(usual: float, optimizer: Optimizer, batch_size: int) -> float:
    return round(usual * math.sqrt(batch_size / _BATCH[1]), 4) if optimizer == "muon" else usual


def _batch_size(dataset: Dataset, muon: bool, head_alone: bool, centers: Centers) -> int:
    if centers == "none" or not (muon or head_alone):
        return _PAIRS
    return min(_PAIRS if head_alone else _BATCH[dataset.channels], max(_LEAST, len(dataset) // _BATCHES))


def bfloat16_pays(config: TrainConfig, image_size: int) -> bool:
    """Whether bfloat16 is known to train sooner: where there are matrix units for it, see `benchmarks/LOG.md`.

    They are in Nvidia's GPUs since Ampere, and in few processors. Where a processor has vectors of it alone
    (avx512_bf16), float32 is sooner by far.
    """
    import torch

    from dsh_cli.network.device import choose_device, instructions

    device = choose_device(config.device).type
    if device != "cpu":
        return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if "amx_bf16" not in instructions():
        return False
    if config.backbone in OWN_BACKBONES:
        return True

    from dsh_cli.network.model import has_depthwise

    return image_size >= _WIDE and not has_depthwise(config.backbone, image_size)


def _threads(config: TrainConfig) -> int:
    """As many as asked for, if there are so many processors; where nobody says how many, those that others leave free.

    Threads that share a convolution wait for each other at every step of it: beside a busy process two on two
    processors are slower than one, see `benchmarks/LOG.md`.
    """
    import torch

    from dsh_cli.network.device import choose_device

    most = torch.get_num_threads()
    if config.threads is not None:  # of a run on a larger machine, maybe
        return min(config.threads, max(most, default_workers()))
    # PyTorch takes a thread a core or a processor; any other number someone has told it
    said = "OMP_NUM_THREADS" in os.environ or "MKL_NUM_THREADS" in os.environ
    if said or most not in (cores(), default_workers()) or most == 1 or choose_device(config.device).type != "cpu":
        return most
    return min(most, free_processors())


def model_config(config: Recipe, splits: Splits) -> ModelConfig:
    """What network a recipe needs for such pictures."""
    train = splits.train
    return ModelConfig(
        config.backbone,
        config.bits,
        train.channels,
        train.image_size,
        config.mirror,
        fit=config.fit,
        interpolation=config.interpolation,
        hidden=config.hidden,
        width=train.width,
    )


def _backbone(config: TrainConfig, train: Dataset) -> str:
    """What is to go before the hash layer.

    Raises:
        UsageError: it is none for such data.
    """
    if not train.width:
        if config.backbone == VECTORS:
            raise UsageError(f"`backbone` {VECTORS} is for files of vectors; choose {TrainConfig.backbone}, or another")
        random = config.weights is None and not config.pretrained
        return PIXELS if config.method != "dsh" and random else config.backbone
    if config.backbone not in (AUTO, VECTORS, TrainConfig.backbone):
        raise UsageError(f"`backbone` {config.backbone}: vectors have been through one already; leave it out")
    if config.freeze:
        raise UsageError(_NO_BACKBONE)
    for name, plain in _OF_PICTURES.items():
        if getattr(config, name) not in plain:
            raise UsageError(f"`{name}` is of pictures, and {config.data} holds vectors; leave it out")
    return VECTORS


def _epochs(dataset: Dataset, batch_size: int, kind: int) -> int:
    """So many that a small set gets about as many steps as a usual one, within bounds."""
    batches = max(1, len(dataset) // batch_size)
    return min(max(_EPOCHS[kind], math.ceil(_STEPS[kind] / batches)), _MOST)
