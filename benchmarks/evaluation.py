"""All measures of `dsh evaluate` against the usual loop, 10,000 queries and 60,000 codes of 48 bits, in one process.

The usual loop is that of DeepHash-pytorch's `CalcTopMap`, as most published code has it: for each query all distances
by a dot product, `argsort`, and the ground truth in that order. It gives one mAP, of whatever order the sort left.

    python benchmarks/evaluation.py                # random codes, all distinct, and codes as training leaves them
    python benchmarks/evaluation.py --loop 10000   # the loop over every query, rather than over 1,000
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from dsh_cli.analysis.retrieval import Evaluation, evaluate
from dsh_cli.codes.bits import hamming, pack, unpack
from dsh_cli.codes.sets import CodeSet

BITS, QUERIES, DATABASE, CLASSES = 48, 10_000, 60_000, 10
REPEATS = 5
CHECKED = 50  # queries compared with the slow reference
KINDS = ("random", "trained")


def make(kind: str, count: int, seed: int) -> CodeSet:
    """Random bits; or class centers, one bit in a hundred flipped and one picture in twenty that of a wrong class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    bits = rng.random((count, BITS)) < 0.5
    if kind == "trained":
        centers = np.random.default_rng(0).random((CLASSES, BITS)) < 0.5
        taken = np.where(rng.random(count) < 0.05, rng.integers(0, CLASSES, count), labels)
        bits = centers[taken] ^ (rng.random((count, BITS)) < 0.01)
    return CodeSet(BITS, pack(bits), labels, tuple(map(str, range(CLASSES))), ())


def usual_loop(queries: CodeSet, database: CodeSet) -> float:
    ones = [np.where(unpack(part.packed, BITS), 1, -1).astype(np.float32) for part in (queries, database)]
    onehot = [np.eye(CLASSES, dtype=np.float32)[part.labels] for part in (queries, database)]
    total = 0.0
    for code, label in zip(ones[0], onehot[0], strict=True):
        truth = (np.dot(label, onehot[1].T) > 0).astype(np.float32)
        distances = 0.5 * (BITS - np.dot(code, ones[1].T))
        truth = truth[np.argsort(distances)]
        found = int(truth.sum())
        if found:
            total += float(np.mean(np.linspace(1, found, found) / (np.flatnonzero(truth == 1) + 1.0)))
    return total / len(queries)


def slow_reference(queries: CodeSet, database: CodeSet) -> dict[str, float]:
    """Place by place, ties in expectation or sorted by relevance; no closed form."""
    sums = dict.fromkeys(("map", "map_worst", "map_best", "map_at.1000", "precision_at.100"), 0.0)
    for row, label in zip(hamming(queries.packed, database.packed), queries.labels, strict=True):
        same = database.labels == label
        place = relevant_before = 0
        values = dict.fromkeys(sums, 0.0)
        for distance in range(BITS + 1):
            n, r = int((row == distance).sum()), int((same & (row == distance)).sum())
            for i in range(n):
                place += 1
                here = r / n * (relevant_before + 1 + (i * (r - 1) / (n - 1) if n > 1 else 0)) / place
                values["map"] += here
                values["map_at.1000"] += here if place <= 1000 else 0
                values["precision_at.100"] += r / n if place <= 100 else 0
            relevant_before += r
        for name, order in (("map_worst", np.lexsort((same, row))), ("map_best", np.lexsort((~same, row)))):
            places = np.flatnonzero(same[order]) + 1.0
            values[name] = float((np.arange(1, len(places) + 1) / places).sum())
        possible = int(same.sum())
        divisors = {"map_at.1000": min(1000, possible), "precision_at.100": 100}
        for name, value in values.items():
            sums[name] += value / divisors.get(name, possible)
    return {name: value / len(queries) for name, value in sums.items()}


def part_of(codes: CodeSet, count: int) -> CodeSet:
    return CodeSet(codes.bits, codes.packed[:count], codes.labels[:count], codes.classes, ())


def peak(kind: str) -> None:
    """Memory of a process that does nothing else, in MiB."""
    evaluate(make(kind, QUERIES, 1), make(kind, DATABASE, 2))
    status = Path("/proc/self/status")
    if status.exists():  # for what resource tells counts in the process that started this one
        print(next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if "VmHWM" in line))
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def timed(kind: str, loop: int) -> tuple[str, str]:
    queries, database = make(kind, QUERIES, 1), make(kind, DATABASE, 2)
    started = time.perf_counter()
    evaluation: Evaluation = evaluate(queries, database)  # the loop may be compiled, or its machine code loaded
    first = time.perf_counter() - started
    usual, ours = [], []
    for _ in range(REPEATS):  # in turns, for a machine that others use as well
        started = time.perf_counter()
        evaluate(queries, database)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        usual_loop(part_of(queries, loop // REPEATS), database)
        usual.append((time.perf_counter() - started) / (loop // REPEATS) * QUERIES)
    checked = part_of(queries, CHECKED)
    figures, slow = evaluate(checked, database).figures(), slow_reference(checked, database)
    off = max(abs(figures[name] - value) for name, value in slow.items())
    done = subprocess.run([sys.executable, __file__, "--peak", kind], capture_output=True, text=True, check=True)
    return (
        f"evaluate, {kind} codes: {QUERIES:,} queries, {DATABASE:,} codes of {BITS} bits, "
        f"{evaluation.health.distinct:,} distinct",
        f"{median(ours):.3f} s (median of {REPEATS}; the first {first:.2f} s), usual loop {median(usual):.1f} s "
        f"({median(usual) / QUERIES * 1e3:.2f} ms a query, over {loop:,}), ratio {median(usual) / median(ours):.0f}; "
        f"from the slow reference {off:.0e} at most over {CHECKED} queries; peak memory {float(done.stdout):.0f} MiB",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", type=int, default=1000, help="queries to time the usual loop with")
    parser.add_argument("--peak", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        peak(arguments.peak)
        return
    from _report import append  # which brings torch, and would add to the peak

    for kind in KINDS:
        append(*timed(kind, arguments.loop))


if __name__ == "__main__":
    main()
