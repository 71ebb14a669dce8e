"""What a plan for very many pictures is reckoned from: rates of encoding by three networks, and what a commit takes.

    python benchmarks/scale.py FOLDER   # a folder with a folder per class, such as the CIFAR-10 tree
    python benchmarks/scale.py FOLDER --only vit --pictures 200

Pictures are JPEGs of 512 x 384, mosaics of those in the folder. Each network takes them at its own size, and is
trained for one epoch on few of them: what it has learned changes no rate. Commits are of as many rows as `dsh index
add` writes at once, into an index that has few and many files, until it makes them into fewer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _report import append
from PIL import Image
from streaming import make_photos

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.index.index import Index, ReadyCodes
from dsh_cli.network.model import timm_network

SIZE = 512, 384
PICTURES, LEARNED, TURNS = 1200, 120, 3
VIT = "timm:vit_small_patch14_dinov2"  # 22 million weights, here random ones
NETWORKS = {
    "small-resnet": TrainConfig(data="", backbone="small-resnet"),
    "airbench": TrainConfig(data=""),
    f"{VIT}, frozen": TrainConfig(data="", backbone=VIT, image_size=224, freeze=True, cache="off"),
}
BITS, ROWS, COMMITS, COMMITTING = 64, 1 << 14, 64, "commits"


def rates(source: str, scratch: Path, pictures: int, only: str) -> None:
    """Pictures a second of `Index.add` by each network, all processors at work."""
    make_photos(source, pictures, str(scratch / "photos"))
    kept = sorted((scratch / "photos").rglob("*.jpg"))
    for path in kept:
        Image.open(path).resize(SIZE).save(path, quality=90)
    few = scratch / "few"
    for path in kept[:: len(kept) // LEARNED]:
        (few / path.parent.name).mkdir(parents=True, exist_ok=True)
        (few / path.parent.name / path.name).write_bytes(path.read_bytes())
    size = sum(path.stat().st_size for path in kept) / len(kept)
    for name, config in NETWORKS.items():
        if only not in name:
            continue
        asked = replace(config, data=str(few), bits=BITS, epochs=1, tensorboard=False)
        if asked.freeze:
            net, _ = timm_network(VIT, 224)
            torch.save(net.state_dict(), scratch / "vit.pt")
            asked = replace(asked, weights=str(scratch / "vit.pt"))
        run = train(asked, load_splits(asked), str(scratch / name.partition(",")[0].replace(":", "-"))).run
        took = []
        for turn in range(TURNS):
            started = time.perf_counter()
            Index.open(scratch / f"{turn}-{run.path.name}.lance").add(run, [str(scratch / "photos")])
            took.append(time.perf_counter() - started)
        append(
            f"scale, {len(kept):,} JPEGs of {SIZE[0]} x {SIZE[1]}, {size / 1000:.0f} kB each, by {name} at "
            f"{run.model.image_size} pixels",
            f"{len(kept) / median(took):,.0f} pictures a second, {median(took):.1f} s (median of {TURNS})",
        )


def commits(scratch: Path) -> None:
    """What a commit takes: by one `add_codes` each, as many as there are files in the index."""
    rng, uri, took = np.random.default_rng(0), scratch / "commits.lance", []

    def batches() -> Iterator[ReadyCodes]:
        for number in range(COMMITS):
            names = [f"/pictures/{number:05d}/{row:08d}.jpg" for row in range(ROWS)]
            yield ReadyCodes(names, rng.integers(0, 256, (ROWS, BITS // 8), np.uint8))

    made = batches()
    while some := list(islice(made, 1)):
        started = time.perf_counter()
        Index.open(uri).add_codes(some, BITS, "scale")
        took.append(time.perf_counter() - started)
    index = Index.open(uri)
    size = sum(path.stat().st_size for path in (uri / "data").rglob("*"))
    append(
        f"scale, {COMMITS} commits of {ROWS:,} rows of {BITS} bits, a program each",
        f"{median(took[:8]):.2f} s each of the first 8, {median(took[-8:]):.2f} s of the last 8, of which each reads "
        f"what is there; {index.report().versions} versions kept, {size / len(index):.1f} bytes a row with paths of "
        f"{len('/pictures/00000/00000000.jpg')} bytes, files replaced meanwhile among them",
    )


def main() -> None:
    """Measure, as the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--only", default="", help="networks of which the name has this, or commits")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if any(options.only in name for name in NETWORKS):
            rates(options.folder, Path(folder), options.pictures, options.only)
        if options.only in ("", COMMITTING):
            commits(Path(folder))


if __name__ == "__main__":
    main()
