"""Retrieval measured, against the usual loop that sorts all distances for each query, in one process.

python benchmarks/evaluation.py            # 10,000 queries against 60,000 codes of 48 bits, random and trained

The loop is that of most published code (a dot product, an argsort and a cumulative sum for each query), written anew
from its description; it gives one order of ties, so its mAP lies between the bounds.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
from _report import append

from dsh_cli import Run
from dsh_cli.codes import CodeSet, pack, unpack
from dsh_cli.retrieval import measure, tie_aware_ap

QUERIES, DATABASE, BITS, CLASSES = 10_000, 60_000, 48, 10
LOOPED = 1000  # queries given to the usual loop


def usual_loop(queries: CodeSet, database: CodeSet) -> float:
    """mAP over all ranks, one query at a time."""
    asked, items = (2.0 * unpack(codes.packed, codes.bits).astype(np.float32) - 1 for codes in (queries, database))
    total = 0.0
    for code, label in zip(asked, queries.labels, strict=True):
        distances = 0.5 * (queries.bits - items @ code)
        relevant = (database.labels == label)[np.argsort(distances)]
        ranks = np.flatnonzero(relevant) + 1
        total += (np.arange(1, len(ranks) + 1) / ranks).mean() if len(ranks) else 0.0
    return total / len(asked)


def slow_reference(queries: CodeSet, database: CodeSet, chosen: np.ndarray) -> np.ndarray:
    """Tie-aware AP of some queries, from a histogram each."""
    bits = unpack(database.packed, database.bits)
    values = []
    for row in chosen:
        distances = (bits != unpack(queries.packed[row : row + 1], queries.bits)).sum(axis=1)
        hits = database.labels == queries.labels[row]
        counts, relevant = (np.bincount(d, minlength=queries.bits + 1)[None] for d in (distances, distances[hits]))
        values.append(tie_aware_ap(counts, relevant)[0])
    return np.array(values)


def made(count: int, noise: float, seed: int) -> CodeSet:
    """Codes of ten classes, each bit turned with probability `noise`: .5 is random, .002 as if trained well."""
    centres = np.random.default_rng(99).random((CLASSES, BITS)) < 0.5
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    packed = pack(centres[labels] ^ (rng.random((count, BITS)) < noise))
    return CodeSet(BITS, packed, labels, tuple(map(str, range(CLASSES))), ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a run whose test and train codes are measured as well")
    arguments = parser.parse_args()
    cases = {
        "random codes": (made(QUERIES, 0.5, 0), made(DATABASE, 0.5, 1)),
        "trained codes": (made(QUERIES, 0.002, 0), made(DATABASE, 0.002, 1)),
    }
    if arguments.run:
        run = Run.open(arguments.run)
        cases["codes of a run"] = (run.codes("test"), run.codes("train"))
    some = made(300, 0.5, 2)
    started = time.perf_counter()
    measure(some, cases["random codes"][1])
    append("evaluation, start of the compiled loop", f"{time.perf_counter() - started:.1f} s, once a process")
    for name, (queries, database) in cases.items():
        ours, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(3):
            started = time.perf_counter()
            measure(queries, database)
            ours.append(time.perf_counter() - started)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        chosen = np.linspace(0, len(queries) - 1, 50).astype(int)
        few = CodeSet(queries.bits, queries.packed[chosen], queries.labels[chosen], queries.classes, ())
        differ = abs(measure(few, database).map - slow_reference(queries, database, chosen).mean())
        looped = np.linspace(0, len(queries) - 1, LOOPED).astype(int)
        part = CodeSet(queries.bits, queries.packed[looped], queries.labels[looped], queries.classes, ())
        bounds = measure(part, database)
        started = time.perf_counter()
        loop_map = usual_loop(part, database)
        theirs = (time.perf_counter() - started) * len(queries) / LOOPED
        assert bounds.map_worst - 1e-6 <= loop_map <= bounds.map_best + 1e-6
        append(
            f"evaluation, {len(queries):,} queries against {len(database):,} codes of {queries.bits} bits, {name}",
            f"all measures {min(ours):.2f} s, the usual loop {theirs:.1f} s (from {LOOPED:,} of the queries), ratio "
            f"{theirs / min(ours):.0f}; peak memory grew by {more:,.0f} MiB; off a slow reference by {differ:.0e}",
        )


if __name__ == "__main__":
    main()
