"""What a run was asked to do. Everything here is written to `config.json` and read back unchanged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dsh_cli.errors import UsageError

MAX_BITS = 1024
MAX_HIDDEN = 65536
SPLITS = ("train", "validation", "test")
ANY_SIZE = ("airbench", "resnet9", "small-resnet")  # networks that take pictures of other sizes than their own
PIXELS = "pixels"  # the backbone whose features are the pixels
OWN_BACKBONES = ("airbench", "resnet9", "small-resnet", "dsh-cnn", PIXELS)
AUTO = "auto"  # the backbone of which weights are at hand, see `network.presets.chosen`
VECTORS = "vectors"  # what stands in place of a backbone where the data are features already
TIMM = "timm:"  # how names of timm's networks begin; all others are torchvision's
DATASETS = ("mnist", "fashion-mnist", "cifar10", "digits")  # a folder of such a name is given as ./mnist

UNSEEN = "unseen"  # the split of the training pictures whose classes were held out

Among = Literal["all", "seen", "unseen"]  # classes, by whether a run was trained on them
Augment = Literal["none", "digits", "photos"]
Centers = Literal["auto", "none"]
Fit = Literal["crop", "pad", "stretch"]  # of a picture into a square
Interpolation = Literal["bilinear", "bicubic"]
Device = Literal["auto", "cpu", "cuda", "mps"]
EngineName = Literal["local", "ray"]  # where pictures become codes
Method = Literal["dsh", "itq", "pca", "rotation"]  # the last three without labels, and without steps
Optimizer = Literal["muon", "adamw", "sgd"]
Schedule = Literal["linear", "one-cycle", "step", "constant"]
ProtocolName = Literal["test-vs-train", "paper", "cifar10", "cifar10-1", "cifar10-2"]
Rescore = Literal["outputs", "asymmetric"]  # what the outputs of a query are held against: outputs, or codes
Service = Literal["milvus", "elasticsearch", "pgvector"]  # what else looks codes up, which an index is handed on to


@dataclass(frozen=True)
class Protocol:
    """Which pictures are looked up in which. The queries are always the test split of the run."""

    database: tuple[str, ...]  # splits, one after the other; none: the queries themselves, without self-matches
    pooled: bool = False  # whether queries and training pictures are drawn from all, the set's own test part included


# `paper`: Liu et al., CVPR 2016, as its author explains; the others as DeepHash-pytorch names them.
PROTOCOLS: dict[str, Protocol] = {
    "test-vs-train": Protocol(("train",)),
    "paper": Protocol(()),
    "cifar10": Protocol(("database",), pooled=True),
    "cifar10-1": Protocol(("database", "train", "validation"), pooled=True),
    "cifar10-2": Protocol(("train", "validation")),
}


@dataclass(frozen=True)
class TrainConfig:
    """One training, as asked for. `None` means: chosen from the data when the run starts.

    The defaults are the recipe measured in `benchmarks/quality.py`, some of whose rows give it more epochs; DSH is Liu
    et al., CVPR 2016.
    """

    data: str = "mnist"  # a named set, a folder with a folder per class, a CSV file of path,label, a file of vectors
    protocol: ProtocolName = "test-vs-train"  # decides the splits, and which are compared in the end
    data_root: str | None = None  # where named sets lie; else $DSH_DATA, else the cache folder
    hold_out_classes: int = 0  # so many, drawn by the seed, are kept from the training
    bits: int = 8  # k, length of the code
    method: Method = "dsh"  # how codes are learned: from classes, or as a linear map of features, see `codes.linear`
    backbone: str = "airbench"  # or another of OWN_BACKBONES, a classification model of torchvision, timm:NAME
    pretrained: bool = False  # start from the weights torchvision or timm has, with the pictures they expect
    weights: str | None = None  # start from the weights of a file or run folder, see `weights.take_file`
    freeze: bool = False  # train the hash layer alone, and the hidden one before it
    hidden: int | None = None  # units of a layer between features and hash layer; 0: none; None: see `settle`
    dropout: float | None = None  # share of the features left out in training; None: see `settle`
    image_size: int | None = None  # pixels, square; None: that of pretrained weights, else native up to 64, else 128
    fit: Fit | None = None  # how pictures become square; None: as pretrained weights expect, else crop
    interpolation: Interpolation | None = None  # where they are resized; None: likewise, else bilinear
    augment: Augment | None = None  # None: what fits the set
    grow: bool | None = None  # pictures at three quarters of their side for the first half of the epochs
    mirror: bool | None = None  # codes of a picture and its mirror image together; None: where the augmentation mirrors
    centers: Centers | None = None  # codes far apart that classes are given; None: auto, or none with a margin or alpha
    smoothing: float | None = 0.2  # share of other centers in the choice of one; None: of a run of an earlier version
    margin: float | None = None  # squared distance between relaxed codes; None: 2 * bits (DSH, section 3)
    alpha: float | None = None  # weight of the quantization term; None: 0.01 (DSH, section 4.1)
    epochs: int | None = None  # None: see `settle`, as wherever there is no comment
    batch_size: int | None = None  # pictures
    per_class: int | None = None  # pictures of a class kept together in a batch; 0: none
    optimizer: Optimizer | None = None
    schedule: Schedule | None = None
    lr: float | None = None  # peak learning rate
    weight_decay: float | None = None
    clip: float | None = None  # largest norm of the gradient, all parameters together; None: no limit
    seed: int = 0  # splits, initial weights, order of batches, augmentation
    device: Device = "auto"
    workers: int | None = None  # threads that decode pictures; None: one a processor
    threads: int | None = None  # that compute; None: as many processors as other programs leave free
    memory: float = 2.0  # GiB of decoded pictures to hold; a larger folder is read again each epoch
    cache: str = "auto"  # folder for resized pictures, or "off"; "auto": the user's cache, where memory is too small
    amp: bool | None = None  # training in bfloat16; codes are always made in float32. None: see `settle`
    compile: bool = False  # torch.compile for training
    tensorboard: bool = True

    def check(self) -> None:
        """Refuse what no run could do, before anything is read or written.

        Raises:
            UsageError: an option is out of its range; the message names it.
        """
        checks = (
            (bool(self.data), "`data` is empty; name a set, a folder or a CSV file"),
            (self.protocol in PROTOCOLS, f"`protocol` {self.protocol}: it is one of {', '.join(PROTOCOLS)}"),
            (self.hold_out_classes >= 0, f"`hold_out_classes` {self.hold_out_classes}: 0 or more"),
            (
                not self.hold_out_classes or not PROTOCOLS[self.protocol].pooled,
                f"`hold_out_classes` and `protocol` {self.protocol}, which draws from all classes, contradict each "
                f"other; take `protocol` {' or '.join(name for name, kind in PROTOCOLS.items() if not kind.pooled)}",
            ),
            (1 <= self.bits <= MAX_BITS, f"`bits` {self.bits}: a code has 1 to {MAX_BITS} bits"),
            (
                self.image_size is None
                or 8 <= self.image_size <= 1024
                or (self.backbone, self.image_size) == (VECTORS, 0),
                f"`image_size` {self.image_size}: 8 to 1024",
            ),
            (self.margin is None or 0 < self.margin < math.inf, f"`margin` {self.margin}: above 0 (default: 2 * bits)"),
            (self.alpha is None or 0 <= self.alpha < math.inf, f"`alpha` {self.alpha}: 0 or more (default: 0.01)"),
            (
                self.smoothing is None or 0 < self.smoothing < 0.5,  # at which of two classes neither is preferred
                f"`smoothing` {self.smoothing}: above 0, below 0.5",
            ),
            (
                self.epochs is None or self.epochs >= (1 if self.method == "dsh" else 0),
                f"`epochs` {self.epochs}: 1 or more",
            ),
            (
                self.batch_size is None or self.batch_size >= 2,
                f"`batch_size` {self.batch_size}: 2 or more, for maps are normalised over a batch",
            ),
            (self.per_class is None or self.per_class >= 0, f"`per_class` {self.per_class}: 0 or more"),
            (self.workers is None or self.workers >= 1, f"`workers` {self.workers}: 1 or more"),
            (self.threads is None or self.threads >= 1, f"`threads` {self.threads}: 1 or more"),
            (0 <= self.memory < math.inf, f"`memory` {self.memory}: 0 GiB or more"),
            (self.lr is None or 0 < self.lr < math.inf, f"`lr` {self.lr}: above 0"),
            (
                self.weight_decay is None or 0 <= self.weight_decay < math.inf,
                f"`weight_decay` {self.weight_decay}: 0 or more",
            ),
            (self.clip is None or 0 < self.clip < math.inf, f"`clip` {self.clip}: above 0 (default: no limit)"),
            (
                not self.pretrained or self.backbone not in (*OWN_BACKBONES, VECTORS),
                f"`pretrained`: there are no such weights of {self.backbone}; choose one of torchvision or timm, "
                "such as `backbone` resnet18 or timm:tf_efficientnet_lite0",
            ),
            (not self.pretrained or self.weights is None, "`pretrained` and `weights`: give one of them"),
            (
                not self.grow or self.backbone in ANY_SIZE,
                f"`grow`: {self.backbone} takes pictures of one size; choose `backbone` {', '.join(ANY_SIZE)}",
            ),
            (
                self.optimizer != "muon" or self.backbone in ANY_SIZE,
                f"`optimizer` muon: it is for convolutions with BatchNorm after each; choose `backbone` "
                f"{', '.join(ANY_SIZE)}",
            ),
            (
                self.optimizer != "muon" or not self.freeze,
                "`optimizer` muon is for convolutions, and with `freeze` none of them learns; leave one of them out",
            ),
            (
                not self.freeze or self.pretrained or self.weights is not None or self.backbone in (AUTO, PIXELS),
                "`freeze`: there are no weights to freeze; give `pretrained` or `weights` as well",
            ),
            (
                self.hidden is None or 0 <= self.hidden <= MAX_HIDDEN,
                f"`hidden` {self.hidden}: 0 to {MAX_HIDDEN:,} units",
            ),
            (self.dropout is None or 0 <= self.dropout < 1, f"`dropout` {self.dropout}: 0 or more, below 1"),
            (0 <= self.seed < 2**63, f"`seed` {self.seed}: 0 to 2^63 - 1"),
        )
        for fine, message in checks:
            if not fine:  # NaN fails every comparison, so it is refused too
                raise UsageError(message)


@dataclass(frozen=True)
class Recipe(TrainConfig):
    """A request with every open choice made: what a run did, and is saved with it."""

    image_size: int = 0
    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"
    hidden: int = 0
    dropout: float = 0.0
    augment: Augment = "none"
    grow: bool = False
    mirror: bool = False
    centers: Centers = "none"  # as it was before there was the choice
    smoothing: float | None = None
    margin: float = 0.0
    alpha: float = 0.01
    epochs: int = 0
    batch_size: int = 200
    per_class: int = 0
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "one-cycle"
    lr: float = 6e-3
    weight_decay: float = 5e-3
    amp: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """What it takes to build the network again and to feed it: saved with the weights."""

    backbone: str
    bits: int
    channels: int  # 1 (grey) or 3 (RGB); 0 where inputs are vectors
    image_size: int  # pixels, square; 0 where inputs are vectors
    mirror: bool = False  # whether codes are those of the mean of the outputs of a picture and its mirror image
    fit: Fit = "crop"  # how pictures become square
    interpolation: Interpolation = "bilinear"  # where they are resized
    hidden: int = 0  # units of a layer between features and hash layer; 0: none
    width: int = 0  # numbers in a vector, where inputs are such and no pictures

    @property
    def of_vectors(self) -> bool:
        """Whether its inputs are vectors, and no pictures."""
        return self.backbone == VECTORS

    def __post_init__(self) -> None:
        """Refuse what no network is built from, such as an edited file might say.

        Raises:
            TypeError: a field is not of its kind.
        """
        numbers = (self.bits, self.channels, self.image_size, self.hidden, self.width)
        fine = all(type(number) is int for number in numbers) and isinstance(self.backbone, str)
        if not fine or not 1 <= self.bits <= MAX_BITS or not 0 <= self.hidden <= MAX_HIDDEN:
            raise TypeError(f"no such network: {self}")
        pictures, vectors = (self.channels, self.image_size), self.width
        if (
            (pictures != (0, 0) or vectors < 1)
            if self.of_vectors
            else (self.channels not in (1, 3) or self.image_size < 1 or vectors)
        ):
            raise TypeError(f"no such network: {self}")
