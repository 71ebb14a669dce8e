"""Codes by onnxruntime beside codes by torch: starts of commands in turn, rates on a folder, bits that differ, sizes.

    python benchmarks/engines.py RUN FOLDER    # a finished run with a model.onnx, and a folder of pictures it takes

A start is a process of its own, from nothing to the end of `dsh hash PICTURE`: by the run, by its exported file, and
by torch, which takes over where onnxruntime is not to be had. Rates are of `Encoder.each` on the same pictures and
workers, decoding included, in one process in turn. Bits are those of all pictures of the run's test split, as
`dsh export` compares them. Sizes are what the packages that `without-torch.txt` lists take, with what these require,
and what all of the project does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from itertools import islice
from pathlib import Path
from statistics import median

from _report import append
from packaging.requirements import Requirement

from dsh_cli import Run
from dsh_cli.export import export
from dsh_cli.network.encoder import Encoder
from dsh_cli.network.encoding import TorchEncoder
from dsh_cli.pictures import decode
from dsh_cli.pictures.find import find
from dsh_cli.threads import default_workers

STARTS, TURNS, MOST = 7, 3, 2000  # of pictures in a turn, at most
ROOT = Path(__file__).parent.parent
HIDDEN = "import sys; sys.modules['onnxruntime'] = None"  # as if it were not installed
MAIN = "from dsh_cli.__main__ import main; main()"


def seconds(script: str, words: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", script, *words], check=True, capture_output=True)
    return time.perf_counter() - started


def starts(run: Path, file: Path, picture: str) -> None:
    """How long one picture takes, each way in turn."""
    ways = {
        "the run": (MAIN, ["hash", picture, "--model", str(run), "--quiet"]),
        "its exported file": (MAIN, ["hash", picture, "--model", str(file), "--quiet"]),
        "torch": (f"{HIDDEN}; {MAIN}", ["hash", picture, "--model", str(run), "--quiet"]),
    }
    for way in ways.values():
        seconds(*way)  # what the system keeps in memory, all have
    took = [[seconds(*way) for way in ways.values()] for _ in range(STARTS)]
    said = [
        f"{name} {median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"
        for name, times in zip(ways, zip(*took, strict=True), strict=True)
    ]
    ratio = median(row[0] / row[2] for row in took)
    append("start, dsh hash PICTURE by onnxruntime and by torch", f"{', '.join(said)}; ratio {ratio:.2f}")


def rate(encoder: Encoder, paths: Iterable[str], workers: int) -> float:
    started, done = time.perf_counter(), 0
    for _ in encoder.each(paths, lambda path: (None, decode.read(path, encoder.form)), workers):
        done += 1
    return done / (time.perf_counter() - started)


def rates(run: Run, folder: Path) -> None:
    """Pictures a second of both, in turn."""
    paths = list(islice(find(folder), MOST))
    for workers in sorted({1, default_workers()}):
        here, there = run.graph_encoder(), TorchEncoder(run.load_model())
        for encoder in (here, there):
            rate(encoder, paths[:50], workers)
        found = [(rate(here, paths, workers), rate(there, paths, workers)) for _ in range(TURNS)]
        onnx, torch = (median(column) for column in zip(*found, strict=True))
        pictures = f"{len(paths):,} pictures of {run.model.image_size} pixels"
        append(
            f"codes of {pictures}, {run.model.backbone}, {workers} workers",
            f"onnxruntime {onnx:,.0f} a second, torch {torch:,.0f}, ratio {median(a / b for a, b in found):.2f}",
        )


def agreement(run: Run, file: Path) -> None:
    """Bits of the test pictures."""
    made = export(run, file)
    found = made.compared
    listed = "".join(
        f"; {name} bit {one.bit}: {one.torch:.2g} and {one.onnx:.2g}"
        for name, one in zip(made.names, found.differing, strict=True)
    )
    append(
        f"codes by onnxruntime and by torch, {run.config.data}, {run.model.bits} bits",
        f"{found.count:,} pictures, {len(found.differing)} bits differ, outputs by {found.largest:.1e} at most{listed}",
    )


def installed(lines: Iterable[str]) -> float:
    """Megabytes of packages, and of all that they require."""
    found: dict[str, Distribution] = {}
    pending = [Requirement(line) for line in lines]
    while pending:
        wanted = pending.pop()
        if wanted.name.lower() not in found and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            found[wanted.name.lower()] = distribution(wanted.name)
            pending += map(Requirement, found[wanted.name.lower()].requires or ())
    files = {Path(str(file.locate())) for one in found.values() for file in one.files or ()}
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def sizes() -> None:
    listed = [line for line in (ROOT / "without-torch.txt").read_text().splitlines() if not line.startswith("#")]
    without, whole = installed(listed), installed(["dsh-cli"])
    append(
        "installed packages", f"without torch {without:,.0f} MB, with it {whole:,.0f} MB, ratio {without / whole:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    run = Run.open(given.run)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        agreement(run, file)
        starts(given.run, file, next(find(given.folder)))
    rates(run, given.folder)
    sizes()


if __name__ == "__main__":
    main()
