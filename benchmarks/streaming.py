"""How pictures reach the network: rate and waiting of two epochs, and peak memory, for each way of holding them.

python benchmarks/streaming.py FOLDER                  # a folder with a folder per class, such as the CIFAR-10 tree
python benchmarks/streaming.py FOLDER --photos 5000    # JPEGs of 1600 x 1200 instead, mosaics of its pictures

Each way runs in a process of its own, so that peak memory is its alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from _report import append
from PIL import Image

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.training.events import EpochStats, Quiet

WAYS = {  # GiB that may be held, and whether small copies are kept
    "in memory": (64.0, False),
    "in files, with a cache": (0.0, True),
    "in files, without a cache": (0.0, False),
}
EPOCHS = 2


class Watch(Quiet):
    def __init__(self) -> None:
        self.epochs: list[tuple[float, float]] = []

    def on_epoch(self, stats: EpochStats) -> None:
        self.epochs.append((stats.images_per_second, stats.waited))


def one_way(folder: str, way: str) -> None:
    """Two epochs of one way, in this process; prints what they came to as JSON."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch = Watch()
    with tempfile.TemporaryDirectory() as scratch:
        memory, kept = WAYS[way]
        cache = f"{scratch}/cache" if kept else "off"
        config = TrainConfig(data=folder, bits=48, epochs=EPOCHS, tensorboard=False, memory=memory, cache=cache)
        started = time.perf_counter()
        splits = load_splits(config)
        loading = time.perf_counter() - started
        result = train(config, splits, f"{scratch}/run", listeners=[watch])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "loading": loading,
                "epochs": watch.epochs,
                "peak": peak * 1024,
                "before": before * 1024,
                "pictures": sum(result.run.counts.values()),
                "size": result.run.config.image_size,
                "seconds": result.seconds,
            }
        )
    )


def make_photo(number: int, source: list[str], folder: str, classes: list[str]) -> None:
    """A mosaic of twelve enlarged pictures of one class, with noise, so that its JPEG is as hard as a photograph's."""
    rng = np.random.default_rng(number)
    label = classes[number % len(classes)]
    own = [path for path in source if Path(path).parent.name == label]
    canvas = Image.new("RGB", (1600, 1200))
    for i, path in enumerate(rng.choice(own, 12)):
        canvas.paste(
            Image.open(path).convert("RGB").resize((400, 400), Image.Resampling.BICUBIC), (i % 4 * 400, i // 4 * 400)
        )
    noise = rng.integers(-12, 13, (300, 400, 3)).repeat(4, 0).repeat(4, 1)
    noisy = np.clip(np.asarray(canvas).astype(np.int16) + noise + rng.integers(-6, 7, (1200, 1600, 1)), 0, 255)
    target = Path(folder, label, f"{number:05d}.jpg")
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy.astype(np.uint8)).save(target, quality=90)


def make_photos(source: str, count: int, folder: str) -> None:
    paths = sorted(map(str, Path(source).rglob("*.jpg")))[::20]
    classes = sorted({Path(path).parent.name for path in paths})
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(make_photo, source=paths, folder=folder, classes=classes), range(count), chunksize=50))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--photos", type=int, help="make so many large pictures out of those in the folder")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        return one_way(arguments.folder, arguments.way)
    with tempfile.TemporaryDirectory() as made:
        folder, what = arguments.folder, f"{Path(arguments.folder).name}"
        if arguments.photos:
            make_photos(folder, arguments.photos, made)
            size = sum(file.stat().st_size for file in Path(made).rglob("*.jpg")) / arguments.photos
            folder, what = made, f"{arguments.photos:,} JPEGs of 1600 x 1200, {size / 1000:.0f} kB each"
        for way in WAYS:
            command = [sys.executable, __file__, folder, "--way", way]
            done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            epochs = "; ".join(
                f"epoch {number}: {rate:,.0f} pictures/s, {waited:.1%} waiting"
                for number, (rate, waited) in enumerate(done["epochs"], 1)
            )
            append(
                f"{what}, {way}",
                f"reading {done['loading']:.1f} s; {epochs}; peak memory {done['peak'] / 2**20:,.0f} MiB, "
                f"{done['before'] / 2**20:,.0f} of them before",
            )


if __name__ == "__main__":
    main()
