"""Many classes: what each command takes with 20,000 of them, three pictures of 8 x 8 each, and with a million names.

    python benchmarks/classes.py                 # seconds and peak memory of each command
    python benchmarks/classes.py --classes 5000

Every command runs in a process of its own, so that peak memory is its alone. (Rows that say 517 MiB are of when that
of this script was counted in.) The names are those of a run whose list of classes is long and whose pictures are few,
as a stranger's may be.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _report import append
from PIL import Image

PICTURES = 3  # of a class: two to train on, one to test
BITS = 16
NAMES = 1_000_000


_STARTER = """
import os, sys
process = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(process, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss, file=sys.stderr)
"""


def made(root: Path, classes: int) -> None:
    """A folder with a folder per class, of noise around a picture of its own."""
    rng = np.random.default_rng(0)
    for number in range(classes):
        folder = root / f"{number:07d}"
        folder.mkdir(parents=True)
        base = rng.integers(0, 200, (8, 8), np.uint8)
        for i in range(PICTURES):
            Image.fromarray(base + rng.integers(0, 30, (8, 8), np.uint8)).save(folder / f"{i}.png")


def run_of_names(root: Path, names: int) -> None:
    """A run of three pictures and so many names of classes."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.support.runs import edit, small_run

    few = ["0000000", "0000001", f"{names - 1:07d}"]
    small_run(root, [(name, f"{i:016x}") for i, name in enumerate(few)], 64, [], [(few[0], "0" * 16)], few)
    edit(root / "config.json", classes=[f"{number:07d}" for number in range(names)])


def taken(*command: str) -> str:
    """Seconds and peak memory of a command, in words."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        # by a small process, for Linux counts in what the one that starts it has in memory
        starter = [sys.executable, "-S", "-c", _STARTER, sys.executable, "-m", "dsh_cli", *command]
        done = subprocess.run(starter, stdout=out, stderr=subprocess.PIPE, check=True)
        code, peak = map(int, done.stderr.split()[-2:])
        size = out.seek(0, os.SEEK_END)
    ended = "" if code == 0 else f", exit {code}"
    return f"{time.perf_counter() - started:.1f} s, {peak // 1024:,} MiB, {size / 1e6:.1f} MB out{ended}"


def main() -> None:
    """Make, measure, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=20_000)
    classes = parser.parse_args().classes
    with tempfile.TemporaryDirectory() as folder:
        data, run, names = f"{folder}/many", f"{folder}/run", f"{folder}/names"
        made(Path(data), classes)
        one = f"{data}/0000000"
        train = ["train", data, "--bits", str(BITS), "--epochs", "1", "--backbone", "dsh-cnn", "--no-tensorboard"]
        commands = {
            "dsh train, 1 epoch": [*train, "--quiet", "--out", run],
            "dsh table --format table": ["table", "-m", run, "--format", "table"],
            "dsh table --format plain": ["table", "-m", run, "--format", "plain"],
            "dsh table --json": ["table", "-m", run, "--json"],
            "dsh hash": ["hash", one, "-m", run, "--json"],
            "dsh neighbors": ["neighbors", one, "-m", run, "--json"],
            "dsh evaluate": ["evaluate", "-m", run, "--json"],
            "dsh embed": ["embed", "-m", run, "--out", f"{folder}/e.png"],
            "dsh embed, all pictures": [
                *("embed", "-m", run, "--method", "pca", "--sample", str(classes), "--out", f"{folder}/a.png")
            ],
            "dsh embed, page of all": [
                *("embed", "-m", run, "--method", "pca", "--sample", str(classes), "--out", f"{folder}/a.html")
            ],
        }
        for what, command in commands.items():
            append(f"{what}: {classes:,} classes of {PICTURES} pictures, {BITS} bits", taken(*command))
        run_of_names(Path(names), NAMES)
        for form in ("table", "plain", "json"):
            command = ["table", "-m", names, "--format", form]
            append(f"dsh table --format {form}: {NAMES:,} names of classes", taken(*command))


if __name__ == "__main__":
    main()
