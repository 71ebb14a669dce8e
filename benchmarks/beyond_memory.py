"""An index that stays on its disk: time and memory of a search, and the bound that the disk sets, against faiss.

    python benchmarks/beyond_memory.py FOLDER                       # 100,000,000 random codes of 64 bits, 12 GB of disk
    python benchmarks/beyond_memory.py FOLDER --rows 5000000

The index is made in FOLDER by `Index.add_codes`, unless it is there. Each search is a process of its own, in which
nothing is held: from opening the index to the neighbours of all queries, all codes checked; how long their paths then
take is told apart. Cold is after the files of the index were dropped from the system's memory (`posix_fadvise`,
DONTNEED), warm right after another search. Bytes are those that the search asked of its files (`rchar` of
/proc/self/io), and cold those that came from the disk too (`read_bytes`). The disk's own rate is that of reading the
same files plainly, dropped before; the bound is the bytes of a search at that rate. faiss has the same codes in memory,
and the time is of its search alone; distances are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS, ROWS, K, MODEL = 64, 100_000_000, 10, "benchmark"
STEP = 1 << 18  # rows of a batch
QUERIES, THREADS, TURNS = (1, 256), (1, 2), 3


def codes(rows: int) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, rows, STEP):
        size = min(STEP, rows - start)
        yield np.random.default_rng([0, start]).integers(0, 256, (size, BITS // 8), np.uint8)


def queries(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, BITS // 8), np.uint8)


def files(uri: str) -> list[Path]:
    return sorted(path for path in Path(uri).rglob("*") if path.is_file())


def drop(uri: str) -> None:
    """Let the system forget what is in the files of the index, which are on the disk."""
    for path in files(uri):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak() -> int:
    """MiB; without `_report`, which has torch in memory."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if "VmHWM" in line) >> 10


def read() -> tuple[int, int]:
    """Bytes that this process has asked of files, and those that came from a disk."""
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["rchar"]), int(told["read_bytes"])


# Each in a process of its own


def make(uri: str, rows: int) -> dict[str, Any]:
    from dsh_cli.index.index import Index, ReadyCodes

    def batches() -> Iterator[ReadyCodes]:
        start = 0
        for packed in codes(rows):
            yield ReadyCodes([f"/{i:09d}" for i in range(start, start + len(packed))], packed)
            start += len(packed)

    started = time.perf_counter()
    Index.open(uri).add_codes(batches(), BITS, MODEL)
    return {"seconds": time.perf_counter() - started, "peak": peak()}


def search(uri: str, count: int, threads: int) -> dict[str, Any]:
    import faiss  # noqa: F401
    import lance  # noqa: F401

    from dsh_cli.codes.blocks import nearest_in
    from dsh_cli.index.index import Index
    from dsh_cli.index.search import codes_of

    wanted, before, (asked, from_disk) = queries(count), peak(), read()
    started = time.perf_counter()
    index = Index.open(uri)
    index.pin()
    found = nearest_in(codes_of(index, None, len(index), 0, threads), wanted, BITS, K, None, threads)
    searched, (asked_then, from_disk_then) = time.perf_counter(), read()
    for near in found:
        index.rows_at(near.places)
    return {
        "seconds": searched - started,
        "paths": time.perf_counter() - searched,
        "before": before,
        "peak": peak(),
        "asked": asked_then - asked,
        "read": from_disk_then - from_disk,
        "distances": [near.distances.tolist() for near in found],
    }


def flat(rows: int) -> dict[str, Any]:
    import faiss

    packed = np.concatenate(list(codes(rows)))
    index = faiss.IndexBinaryFlat(BITS)
    index.add(packed)
    took = {}
    for threads in THREADS:
        faiss.omp_set_num_threads(threads)
        for count in QUERIES:
            times = []
            for _ in range(TURNS):
                started = time.perf_counter()
                distances, _ = index.search(queries(count), K)
                times.append(time.perf_counter() - started)
            took[f"{count} {threads}"] = min(times)
    return {"took": took, "peak": peak(), "distances": distances.tolist()}


def plainly(uri: str) -> tuple[int, float]:
    """Bytes of the files, and seconds to read them."""
    buffer, total, started = bytearray(1 << 23), 0, time.perf_counter()
    for path in files(uri):
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(buffer):
                total += got
    return total, time.perf_counter() - started


def in_a_process(*arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def measured(uri: str, rows: int) -> None:
    from _report import append

    what = f"index on disk, {rows:,} random codes of {BITS} bits"
    if not Path(uri).exists():
        done = in_a_process("--make", uri, rows)
        append(f"{what}: made", f"{done['seconds']:,.0f} s, peak memory {done['peak']:,} MiB")
    rates = []
    for _ in range(TURNS):
        drop(uri)
        size, seconds = plainly(uri)
        rates.append(size / seconds)
    rate = max(rates)
    append(
        f"{what}: its files", f"{size / 1e9:.2f} GB, read plainly at {rate / 1e6:,.0f} MB a second, the best of {TURNS}"
    )
    theirs = in_a_process("--flat", rows)
    for threads in THREADS:
        for count in QUERIES:
            drop(uri)
            cold = in_a_process("--search", uri, count, threads)
            warm = [in_a_process("--search", uri, count, threads) for _ in range(TURNS)]
            same = all(one["distances"] == theirs["distances"][:count] for one in (cold, *warm))
            best, most = min(one["seconds"] for one in warm), max(one["peak"] for one in (cold, *warm))
            faiss_own = theirs["took"][f"{count} {threads}"]
            append(
                f"{what}: top {K} of {count} quer{'y' if count == 1 else 'ies'}, {threads} thread{'s'[: threads - 1]}",
                f"cold {cold['seconds']:.2f} s, {cold['asked'] / 1e9:.2f} GB asked of files and "
                f"{cold['read'] / 1e9:.2f} of the disk, bound {cold['asked'] / rate:.2f} s; warm {best:.2f} s, the "
                f"best of {TURNS}; paths {warm[0]['paths']:.2f} s; peak memory {most:,} MiB, {cold['before']:,} of "
                f"them before; IndexBinaryFlat in memory {faiss_own:.2f} s, {theirs['peak']:,} MiB; "
                f"distances {'identical' if same else 'DIFFER'}",
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="where the index is made, and stays")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--search", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--flat", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        print(json.dumps(make(given.make[0], int(given.make[1]))))
    elif given.search:
        print(json.dumps(search(given.search[0], *map(int, given.search[1:]))))
    elif given.flat:
        print(json.dumps(flat(given.flat)))
    elif given.folder:
        Path(given.folder).mkdir(parents=True, exist_ok=True)
        measured(str(Path(given.folder) / f"{given.rows}.lance"), given.rows)
    else:
        parser.error("name a FOLDER")


if __name__ == "__main__":
    main()
