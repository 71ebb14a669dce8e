"""The alarm of a collapse: told of trainings whose codes collapse, and of no others. Five seeds of each, some seconds a
training on one core.

    python benchmarks/alarms.py                        # all, and a row of what they came to
    python benchmarks/alarms.py --only digits --seeds 0 1

A training has collapsed where the mAP of its test pictures among its training pictures is no more than LITTLE of the
way from that of a code that all share to the best there is: 1, or less where classes outnumber codes. It is missed
where neither an alarm nor an error tells it. A false alarm is one of a training that came farther than WELL; what lies
between is poor, and either is right.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from _report import append

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.data.dataset import Dataset
from dsh_cli.data.splits import Splits
from dsh_cli.errors import DshError
from dsh_cli.show.alarm import CollapseAlarm

LITTLE, WELL = 0.05, 0.25
ENDS = ("well", "poor", "collapsed", "ended in an error")
SMALL, TESTED = 5000, 500  # pictures of MNIST and Fashion-MNIST in a training, and to test it


@dataclass(frozen=True)
class Kind:
    """A training to watch: pictures by the seed, and what differs from the default recipe."""

    splits: Callable[[int], Splits]
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Watched:
    """What a training came to, and what was said of it."""

    learned: float  # share of what there is to learn, see above; not a number where it ended in an error
    said: str  # the alarm or the error; nothing where there was none

    def end(self) -> str:
        """Which of `ENDS` it came to."""
        if math.isnan(self.learned):
            return "ended in an error"
        return "collapsed" if self.learned < LITTLE else "poor" if self.learned < WELL else "well"


def digits(seed: int) -> Splits:
    return load_splits(TrainConfig(data="digits", seed=seed))


@cache
def whole(data: str) -> Splits:
    return load_splits(TrainConfig(data=data))


def small(data: str) -> Callable[[int], Splits]:
    """A part of a set, drawn by the seed."""

    def drawn(seed: int) -> Splits:
        splits, rng = whole(data), np.random.default_rng(seed)

        def part(dataset: Dataset, count: int) -> Dataset:
            return dataset.take(np.isin(np.arange(len(dataset)), rng.permutation(len(dataset))[:count]))

        return Splits(part(splits.train, SMALL), part(splits.validation, SMALL // 10), part(splits.test, TESTED))

    return drawn


def each(splits: Splits, change: Callable[[Dataset], Dataset]) -> Splits:
    return Splits(change(splits.train), change(splits.validation), change(splits.test))


def two(pictures: Callable[[int], Splits], one: int = 3, other: int = 8) -> Callable[[int], Splits]:
    """Two classes of them, alike ones."""

    def of_two(dataset: Dataset) -> Dataset:
        chosen = dataset.take(np.isin(dataset.labels, (one, other)))
        return replace(chosen, labels=(chosen.labels == other).astype(np.int64), classes=(str(one), str(other)))

    return lambda seed: each(pictures(seed), of_two)


def hundred(pictures: Callable[[int], Splits]) -> Callable[[int], Splits]:
    """As many pictures of numbers of two digits, in the lower half of a square."""

    def drawn(seed: int) -> Splits:
        rng = np.random.default_rng(seed)

        def numbers(dataset: Dataset) -> Dataset:
            tens, ones = rng.integers(len(dataset), size=(2, len(dataset)))
            assert isinstance(dataset.images, np.ndarray)
            side = np.concatenate([dataset.images[tens], dataset.images[ones]], axis=2)
            images = np.concatenate([np.zeros_like(side), side], axis=1)
            images = images[:, ::2, ::2] if dataset.image_size > 16 else images
            labels = dataset.labels[tens] * 10 + dataset.labels[ones]
            return replace(dataset, images=images, labels=labels, classes=tuple(f"{n:02d}" for n in range(100)))

        return each(pictures(seed), numbers)

    return drawn


def shuffled(pictures: Callable[[int], Splits]) -> Callable[[int], Splits]:
    """They with labels at random."""

    def drawn(seed: int) -> Splits:
        rng = np.random.default_rng(seed)
        return each(pictures(seed), lambda dataset: replace(dataset, labels=rng.permutation(dataset.labels)))

    return drawn


MNIST, FASHION = small("mnist"), small("fashion-mnist")
SETS: dict[str, Callable[[int], Splits]] = {"digits": digits, "mnist": MNIST, "fashion": FASHION}
DATA = {"digits": "digits", "mnist": "mnist", "fashion": "fashion-mnist"}
SMALL_RESNET = {"backbone": "small-resnet"}
KINDS: dict[str, Kind] = {
    "digits, default": Kind(digits, {}),
    **{f"digits, {epochs} epochs": Kind(digits, {"epochs": epochs}) for epochs in (1, 2, 3, 6, 12)},
    **{
        f"{name}, {epochs} epochs": Kind(SETS[name], {"epochs": epochs, "data": DATA[name]})
        for name in ("mnist", "fashion")
        for epochs in (1, 2, 4)
    },
    "two digits": Kind(two(digits), {"epochs": 6}),
    "two of mnist": Kind(two(MNIST), {"epochs": 4}),
    "two of fashion": Kind(two(FASHION, 0, 6), {"epochs": 4, "data": "fashion-mnist"}),
    "hundred numbers of digits": Kind(hundred(digits), {"epochs": 12, "bits": 16}),
    "hundred numbers of mnist": Kind(hundred(MNIST), {"epochs": 6, "bits": 16}),
    "hundred numbers, 5 bits": Kind(hundred(digits), {"epochs": 12, "bits": 5}),
    **{f"digits, {bits} bits": Kind(digits, {"epochs": 6, "bits": bits}) for bits in (1, 2, 3, 4, 48)},
    "digits, loss over pairs": Kind(digits, {"epochs": 6, "centers": "none"}),
    "hundred numbers, loss over pairs": Kind(hundred(digits), {"epochs": 12, "bits": 16, "centers": "none"}),
    **{
        f"digits, small-resnet, {epochs} epochs": Kind(digits, {"epochs": epochs, **SMALL_RESNET})
        for epochs in (1, 2, 6, 12)
    },
    "digits, small-resnet, loss over pairs": Kind(digits, {"epochs": 12, "centers": "none", **SMALL_RESNET}),
    "digits, small-resnet, sgd": Kind(digits, {"epochs": 12, "optimizer": "sgd", **SMALL_RESNET}),
    **{f"digits, lr {lr:g}": Kind(digits, {"epochs": 6, "lr": lr}) for lr in (1.0, 10.0, 100.0)},
    **{f"digits, small-resnet, lr {lr:g}": Kind(digits, {"epochs": 6, "lr": lr, **SMALL_RESNET}) for lr in (1.0, 10.0)},
    **{
        f"digits, small-resnet, sgd, lr {lr:g}": Kind(
            digits, {"epochs": 6, "lr": lr, "optimizer": "sgd", **SMALL_RESNET}
        )
        for lr in (1.0, 10.0)
    },
    "mnist, lr 10": Kind(MNIST, {"epochs": 3, "lr": 10.0}),
    **{
        f"{name}, margin 1e-6": Kind(SETS[name], {"epochs": 6 if name == "digits" else 3, "margin": 1e-6})
        for name in SETS
    },
    "digits, small-resnet, margin 1e-6": Kind(digits, {"epochs": 6, "margin": 1e-6, **SMALL_RESNET}),
    "digits, alpha 50": Kind(digits, {"epochs": 6, "alpha": 50.0}),
    "digits, labels at random": Kind(shuffled(digits), {"epochs": 12}),
    "mnist, labels at random": Kind(shuffled(MNIST), {"epochs": 4}),
    "two digits, labels at random": Kind(shuffled(two(digits)), {"epochs": 6}),
    "hundred numbers, labels at random": Kind(shuffled(hundred(digits)), {"epochs": 12, "bits": 16}),
    "digits, small-resnet, labels at random": Kind(shuffled(digits), {"epochs": 12, **SMALL_RESNET}),
    "digits, loss over pairs, labels at random": Kind(shuffled(digits), {"epochs": 12, "centers": "none"}),
}


def watched(kind: Kind, seed: int) -> Watched:
    """Train it."""
    splits, said = kind.splits(seed), list[str]()
    config = replace(TrainConfig(data="digits", seed=seed, device="cpu", tensorboard=False), **kind.changes)
    shares = np.bincount(splits.train.labels) / len(splits.train)
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = train(config, splits, f"{folder}/run", listeners=[CollapseAlarm(said.append, splits)])
        except DshError as error:
            return Watched(math.nan, str(error))
    chance = float(shares[splits.test.labels].mean())
    best = min(1.0, 2**result.run.config.bits / len(shares))
    return Watched(((result.map or 0.0) - chance) / (best - chance), " ".join(said))


def main() -> None:
    """Train, listen, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="kinds whose name has this")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    given = parser.parse_args()
    counts: Counter[tuple[str, bool]] = Counter()
    for seed in given.seeds:
        for name in (name for name in KINDS if given.only in name):
            done = watched(KINDS[name], seed)
            counts[done.end(), bool(done.said)] += 1
            print(f"{name}, seed {seed}: {done.end()}, learned {done.learned:.3f}. {done.said}", flush=True)
    kinds = sum(given.only in name for name in KINDS)
    append(
        f"the alarm of a collapse: {kinds} kinds of training{given.only and ', ' + given.only}, seeds {given.seeds}",
        "; ".join(f"{counts[end, True] + counts[end, False]} {end}, {counts[end, True]} told" for end in ENDS),
    )


if __name__ == "__main__":
    main()
