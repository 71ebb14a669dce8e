"""Seconds of the epochs of a training on a backbone that stays as it is, and of a second one with other bits and seed.

    python benchmarks/frozen.py FOLDER   # a folder with a folder per class, such as the CIFAR-10 tree

The backbone is a resnet18 with random weights, for what it has learned changes no time. Its features are computed in
the first training, before the first epoch, and found in their cache by the second.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from _report import append, isa
from torchvision.models import resnet18

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.training.events import EpochStats, Featured, Plan, Quiet

PICTURES, EPOCHS, SIZE = 5_000, 4, 64


class Times(Quiet):
    """How many features were computed, in how many seconds, and those of each epoch."""

    def __init__(self) -> None:
        self.made = 0
        self.marks = [time.perf_counter()]

    def on_features(self, featured: Featured) -> None:
        self.made = featured.made

    def on_start(self, plan: Plan) -> None:
        self.marks.append(time.perf_counter())

    def on_epoch(self, stats: EpochStats) -> None:
        self.marks.append(time.perf_counter())

    def told(self) -> str:
        """In words."""
        before, *epochs = (after - mark for mark, after in pairwise(self.marks))
        return f"{self.made:,} features computed, {before:.1f} s; epochs of {', '.join(f'{s:.2f}' for s in epochs)} s"


def some(source: Path, folder: Path) -> None:
    """Copy pictures, equally many of each class."""
    classes = sorted(path for path in source.iterdir() if path.is_dir())
    for of in classes:
        (folder / of.name).mkdir(parents=True)
        for path in sorted(of.iterdir())[: PICTURES // len(classes)]:
            shutil.copy(path, folder / of.name)


def main() -> None:
    """Measure, as the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        some(options.folder, scratch / "photos")
        torch.manual_seed(0)
        torch.save(resnet18().state_dict(), scratch / "resnet18.pt")
        asked = TrainConfig(
            str(scratch / "photos"),
            epochs=EPOCHS,
            backbone="resnet18",
            weights=str(scratch / "resnet18.pt"),
            freeze=True,
            image_size=SIZE,
            cache=str(scratch / "cache"),
            tensorboard=False,
        )
        for turn, (bits, seed) in enumerate([(16, 0), (32, 1)], 1):
            config = replace(asked, bits=bits, seed=seed)
            splits = load_splits(config)
            times = Times()
            train(config, splits, str(scratch / f"run-{turn}"), listeners=[times])
            append(
                f"frozen resnet18, {PICTURES:,} pictures of {SIZE} pixels, training {turn} ({bits} bits, seed {seed})",
                f"{times.told()}, isa {isa()}",
            )


if __name__ == "__main__":
    main()
