"""How long commands take from start to end.

python benchmarks/start.py RUN                      # a finished run of small grey pictures, such as digits
python benchmarks/start.py RUN --against CHECKOUT   # beside another checkout of this project, in turn
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from _report import append
from PIL import Image

TIMES = 5
HERE = Path(__file__).parent.parent


def seconds(command: list[str], tree: Path) -> float:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dsh_cli", *command], env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    arguments = parser.parse_args()
    run = str(arguments.run.absolute())
    trees = [HERE, *([arguments.against.absolute()] if arguments.against else [])]
    with tempfile.TemporaryDirectory() as folder:
        picture = f"{folder}/one.png"
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(picture)
        commands = {
            "dsh --help": ["--help"],
            "dsh table": ["table", "-m", run],
            "dsh neighbors 0x..": ["neighbors", "0xf0", "-m", run],
            "dsh hash one.png": ["hash", picture, "-m", run],
        }
        for name, command in commands.items():
            for tree in trees:
                seconds(command, tree)  # what the system keeps in memory, all have
            took = [[seconds(command, tree) for tree in trees] for _ in range(TIMES)]
            here = [row[0] for row in took]
            text = f"{median(here):.2f} s (median of {TIMES}; {min(here):.2f} to {max(here):.2f} s)"
            if arguments.against:
                there = [row[1] for row in took]
                text += f", the other checkout {median(there):.2f} s, ratio {median(a / b for a, b in took):.2f}"
            append(f"start, {name}", text)


if __name__ == "__main__":
    main()
