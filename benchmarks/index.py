"""The index against what it is made of: search against faiss's own, a whole look-up, ready codes, a folder.

python benchmarks/index.py                               # search, look-up, ready codes
python benchmarks/index.py --folder FOLDER --model RUN   # encoding a folder, such as the CIFAR-10 tree, by a run
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from _report import append

from dsh_cli import Run, TrainConfig, load_splits, train
from dsh_cli.codes.nearest import nearest
from dsh_cli.errors import ImageError
from dsh_cli.index.index import Index, ReadyCodes
from dsh_cli.network.encoder import form_of
from dsh_cli.network.encoding import TorchEncoder
from dsh_cli.pictures import find
from dsh_cli.pictures.reading import Intake
from dsh_cli.threads import default_workers

BITS, ROWS, MANY, K = 64, 1_000_000, 10_000_000, 10
REPEATS = 21  # of a search
ROUNDS = 5  # of encoding


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def search() -> None:
    """Both ways in turn, so that what disturbs one disturbs the other."""
    import faiss

    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (ROWS, BITS // 8), np.uint8)
    flat = faiss.IndexBinaryFlat(BITS)
    flat.add(codes)
    for count in (1, 100):
        queries = rng.integers(0, 256, (count, BITS // 8), np.uint8)
        ours, theirs = [], []
        for _ in range(REPEATS):
            theirs.append(seconds(partial(flat.search, queries, K)))
            ours.append(seconds(partial(nearest, codes, queries, BITS, K)))
        mine, faiss_own = np.median(ours) / count, np.median(theirs) / count
        append(
            f"index, top {K} of {ROWS:,} codes of {BITS} bits, {count} at once",
            f"{mine * 1e3:.2f} ms a query, IndexBinaryFlat {faiss_own * 1e3:.2f} ms, ratio {mine / faiss_own:.2f} "
            f"(medians of {REPEATS}, in turn; the best {min(ours) / count * 1e3:.2f} and "
            f"{min(theirs) / count * 1e3:.2f} ms)",
        )


def ready(rows: int, uri: str, model: str) -> None:
    """Add ready codes, in this process; prints what it took as JSON."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def batches() -> Iterator[ReadyCodes]:
        rng = np.random.default_rng(0)
        step = 100_000
        for start in range(0, rows, step):
            names = [f"/pictures/{i // 1000:05d}/{i:08d}.jpg" for i in range(start, start + step)]
            yield ReadyCodes(names, rng.integers(0, 256, (step, BITS // 8), np.uint8))

    took = seconds(lambda: Index.open(uri).add_codes(batches(), BITS, model))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": took, "peak": peak / 1024, "before": before / 1024, "rows": len(Index.open(uri))}))


def in_a_process(*arguments: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def look_up_and_ready_codes() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        config = TrainConfig(data="digits", bits=BITS, epochs=1, tensorboard=False)
        run = train(config, load_splits(config), f"{scratch}/run").run
        for rows in (ROWS, MANY):
            done = in_a_process("--ready", str(rows), f"{scratch}/{rows}.lance", run.fingerprint)
            append(
                f"index, {rows:,} ready codes of {BITS} bits added",
                f"{done['seconds']:.1f} s, {rows / done['seconds']:,.0f} a second; "
                f"peak memory {done['peak']:,.0f} MiB, {done['before']:,.0f} of them before",
            )
        uri = f"{scratch}/{ROWS}.lance"
        query = "0x" + "5a" * (BITS // 8)
        command = [sys.executable, "-m", "dsh_cli", "neighbors", query, "--index", uri, "--model", str(run.path)]
        whole = sorted(seconds(lambda: subprocess.run(command, capture_output=True, check=True)) for _ in range(7))
        codes = Index.open(uri).codes()
        own = min(seconds(lambda: nearest(codes, codes[:1], BITS, K)) for _ in range(5))
        append(
            f"dsh neighbors 0x... --index, {ROWS:,} codes of {BITS} bits",
            f"{whole[3]:.2f} s from start to end, the search {own * 1e3:.1f} ms of it (median of 7; "
            f"{whole[0]:.2f} to {whole[-1]:.2f} s)",
        )


def encoding(folder: str, model: str) -> None:
    """Decoding alone, the network alone, and both; in turn, and the median of each."""
    run = Run.open(model)
    encoder, alone = run.encoder(), TorchEncoder(run.load_model())  # which has all threads for one batch
    paths = list(find.find(folder))
    intake = Intake(form_of(run.model), default_workers())
    pictures = np.stack([picture for _, picture in intake.read(paths) if not isinstance(picture, ImageError)])
    ways: dict[str, Callable[[str], object]] = {
        "decoding": lambda scratch: sum(1 for _ in intake.read(paths)),
        "network": lambda scratch: alone.relaxed(pictures),
        "both": lambda scratch: sum(1 for _ in encoder.encode_files(paths)),
        "index": lambda scratch: Index.open(tempfile.mkdtemp(dir=scratch)).add(run, [folder]),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(ROUNDS):
            for name, work in ways.items():
                took[name].append(seconds(partial(work, scratch)))
    rates = {name: len(paths) / float(np.median(times)) for name, times in took.items()}
    slower = min(rates["decoding"], rates["network"])
    append(
        f"index, {len(paths):,} pictures of {Path(*Path(folder).parts[-2:])}, {run.model.backbone}",
        f"pictures a second: decoding alone {rates['decoding']:,.0f}, network alone {rates['network']:,.0f}, "
        f"encode_files {rates['both']:,.0f} ({rates['both'] / slower:.0%} of the slower), "
        f"dsh index add {rates['index']:,.0f} ({rates['index'] / slower:.0%}); medians of {ROUNDS}, in turn",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="encode the pictures below it")
    parser.add_argument("--model", help="by this run")
    parser.add_argument("--ready", nargs=3, metavar=("ROWS", "INDEX", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ready:
        return ready(int(arguments.ready[0]), *arguments.ready[1:])
    if arguments.folder:
        return encoding(arguments.folder, arguments.model)
    search()
    look_up_and_ready_codes()


if __name__ == "__main__":
    main()
