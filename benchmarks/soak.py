"""Long work in one process: whether resident memory stays flat after the first tenth, and the rate.

python benchmarks/soak.py                                  # 200,000 files into an index, 60,000 hashed twice over
python benchmarks/soak.py --files 20000 --pictures 6000    # a tenth of it
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from _report import append

SIDE = 30  # pixels; noise of so many grey ones is a PNG of about 1 kB
SECONDS = 0.25  # between two looks at the memory


def make(folder: Path, count: int) -> float:
    """So many different pictures; gives their mean size in bytes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    size = 0
    for number in range(count):
        file = folder / f"{number // 1000:03d}" / f"{number:06d}.png"
        file.parent.mkdir(exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), np.uint8)).save(content, "png", compress_level=1)
        size += file.write_bytes(content.getvalue())
    return size / count


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(times: int, command: list[str]) -> None:
    """Run a command so many times in this process; prints its seconds and the memory over time as JSON, on stderr."""
    from dsh_cli.cli import app

    seen, done = [], threading.Event()

    def watch() -> None:
        while not done.wait(SECONDS):
            seen.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        for _ in range(times):
            try:
                app(command)
            except SystemExit as end:
                assert not end.code, end.code
    finally:
        took = time.perf_counter() - started
        done.set()
        watcher.join()
    print(json.dumps({"seconds": took, "resident": seen}), file=sys.stderr)


def measured(what: str, count: int, times: int, *command: str) -> None:
    """Soak in a process of its own, and add the row."""
    whole = [sys.executable, __file__, "--soak", str(times), *command]
    process = subprocess.run(whole, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if process.returncode:
        raise SystemExit(process.stderr)
    figures = json.loads(process.stderr.splitlines()[-1])
    seen, took = figures["resident"], figures["seconds"]
    first, rest = seen[: len(seen) // 10 + 1], seen[len(seen) // 10 :]
    tenths = ", ".join(f"{max(part):,.0f}" for part in np.array_split(seen, 10))
    append(
        f"soak, {what}",
        f"{took:.0f} s, {count / took:,.0f} a second; resident memory at most {max(first):,.0f} MiB in the first "
        f"tenth, {max(rest):,.0f} MiB after it (tenths: {tenths} MiB), {rest[-1]:,.0f} MiB at the end",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000, help="to be added to an index; 0: none")
    parser.add_argument("--pictures", type=int, default=60_000, help="to be hashed twice over; 0: none")
    parser.add_argument("--soak", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.soak:
        return soak(int(arguments.soak[0]), arguments.soak[1:])
    from dsh_cli import TrainConfig, load_splits, train

    with tempfile.TemporaryDirectory() as scratch:
        config = TrainConfig(data="digits", epochs=1, tensorboard=False)
        train(config, load_splits(config), f"{scratch}/run")
        pictures = Path(scratch, "pictures")
        pictures.mkdir()
        if arguments.files:
            size = make(pictures, arguments.files)
            what = f"dsh index add of {arguments.files:,} files of {size:,.0f} bytes"
            run = f"{scratch}/run"
            measured(what, arguments.files, 1, "index", "add", f"{scratch}/i", str(pictures), "--model", run, "--quiet")
        if arguments.pictures:
            if arguments.pictures > arguments.files:
                make(pictures, arguments.pictures)
            some = pictures / "some"
            some.mkdir()
            for folder in sorted(pictures.glob("[0-9]*"))[: -(-arguments.pictures // 1000)]:
                folder.rename(some / folder.name)
            what = f"dsh hash of {arguments.pictures:,} pictures twice over"
            measured(what, 2 * arguments.pictures, 2, "hash", str(some), "--model", f"{scratch}/run", "--quiet")


if __name__ == "__main__":
    main()
