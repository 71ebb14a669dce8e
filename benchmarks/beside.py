"""Beside another program: pictures a second alone, and with a process busy on one processor; before and now in turn.

python benchmarks/beside.py                       # training of a small and a large network; dsh hash; dsh index add
python benchmarks/beside.py --only train --turns 5

Before: as many threads as processors, as `OMP_NUM_THREADS` says; now: as many as others leave free. Each turn is a
process of its own. A training's rate is of its first seconds after one to warm up; a command's of the whole of it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from _report import append

SECONDS = 3.0  # of training that are measured
FILES = 6_000
HERE = Path(__file__).parent.parent


def rate_of_training(backbone: str, data: str) -> None:
    """Train for some seconds, and print pictures a second."""
    from dsh_cli import TrainConfig, load_splits, train
    from dsh_cli.errors import Interrupted
    from dsh_cli.training.events import Plan, Quiet, RunningLoss

    class Clock(Quiet):
        started, warm, batches = 0.0, 0.0, 0

        def on_start(self, plan: Plan) -> None:
            self.started, self.batch_size = time.perf_counter(), plan.batch_size

        def on_batch(self, epoch: int, done: int, loss: RunningLoss) -> None:
            now = time.perf_counter()
            if self.warm:
                self.batches += 1
            elif now - self.started > 1:
                self.warm = now
            if self.warm and now - self.warm > SECONDS:
                raise KeyboardInterrupt

    clock = Clock()
    config = TrainConfig(data=data, backbone=backbone, epochs=1000, tensorboard=False)
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(config, load_splits(config), f"{folder}/run", listeners=[clock])
        except Interrupted:
            print(clock.batches * clock.batch_size / (time.perf_counter() - clock.warm))


def turn(command: list[str], before: bool, busy: bool, count: int) -> float:
    """Pictures a second of one process: as it prints, or so many in the time it takes."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(HERE)} | ({"OMP_NUM_THREADS": str(os.cpu_count())} if before else {})
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True, text=True)
        return float(done.stdout) if not count else count / (time.perf_counter() - started)
    finally:
        if other:
            other.kill()
            other.wait()


def compare(what: str, command: Callable[[], list[str]], turns: int, count: int = 0) -> None:
    """Add a row: the medians of turns, alone and beside a busy process."""
    said = []
    for busy in (False, True):
        took = [[turn(command(), before, busy, count) for before in (True, False)] for _ in range(turns)]
        old, new = (median(rates) for rates in zip(*took, strict=True))
        place = "beside a busy process" if busy else "alone"
        said.append(f"{place} {new:,.0f} pictures a second, before {old:,.0f}, ratio {new / old:.2f}")
    append(f"beside, {what}", f"{'; '.join(said)} (medians of {turns} turns)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("train", "hash", "index"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        return rate_of_training(*arguments.train)
    from PIL import Image

    from dsh_cli import TrainConfig, load_splits, train

    with tempfile.TemporaryDirectory() as scratch:
        rng = np.random.default_rng(0)
        for number in range(FILES):
            file = Path(scratch, "pictures", f"{number % 10}", f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file, compress_level=1)
        pictures, run = f"{scratch}/pictures", f"{scratch}/run"
        if arguments.only in (None, "train"):
            for backbone, data in (("small-resnet", "mnist"), (TrainConfig.backbone, pictures)):
                what = f"training {backbone} on {'MNIST' if data == 'mnist' else 'colour pictures of 32 pixels'}"
                command = [__file__, "--train", backbone, data]
                compare(what, lambda command=command: command, arguments.turns)  # type: ignore[misc]
        if arguments.only == "train":
            return
        config = TrainConfig(data=pictures, backbone="small-resnet", epochs=1, tensorboard=False)
        train(config, load_splits(config), run)
        dsh, end = ["-m", "dsh_cli"], [pictures, "--model", run, "--quiet"]
        if arguments.only != "index":
            compare(f"dsh hash of {FILES:,} files", lambda: [*dsh, "hash", *end], arguments.turns, FILES)
        if arguments.only != "hash":
            compare(
                f"dsh index add of {FILES:,} files",
                lambda: [*dsh, "index", "add", f"{scratch}/{time.monotonic_ns()}.lance", *end],
                arguments.turns,
                FILES,
            )


if __name__ == "__main__":
    main()
