"""How many pictures, and how many relevant ones, lie at each distance from a query."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsh_cli.analysis.health import distinct
from dsh_cli.codes.bits import to_words
from dsh_cli.codes.sets import CodeSet
from dsh_cli.errors import UsageError

_BLOCK = 1 << 22  # distances NumPy holds at once
_CELLS = 1 << 19  # of the (q, k + 1) counts held at once
_COMPILE_FROM = 1 << 25  # words to compare from which the compiled loop is worth its import: 0.3 s, see LOG.md
_TASKS = 8  # pieces of a block for each thread, so that none waits long for the last

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Tally:
    """Items by distance, for a block of b distinct queries.

    Attributes:
        counts: (b, k + 1) items at each Hamming distance, the query itself left out.
        relevant: (b, k + 1) those of the query's class.
        labels: (b,) classes of the queries.
        weights: (b,) queries that have this code and class.
    """

    counts: Counts
    relevant: Counts
    labels: NDArray[np.int64]
    weights: Counts


def tallies(queries: CodeSet, database: CodeSet | None = None) -> Iterator[Tally]:
    """Items by distance for all queries, in blocks; equal codes of one class are counted once, with their weight.

    Raises:
        UsageError: codes or classes of the two do not go together.
    """
    items = queries if database is None else database
    if (queries.bits, queries.classes) != (items.bits, items.classes):
        what = "length" if queries.bits != items.bits else "classes"
        raise UsageError(f"queries and database have codes of different {what}; encode both with one run")
    query_keys = _keys(queries)
    item_keys = query_keys if database is None else _keys(items)
    rows, weights = distinct(query_keys)
    columns, item_weights = (rows, weights) if database is None else distinct(item_keys)
    labels, item_labels = queries.labels[rows], items.labels[columns]  # ascending, both
    starts = np.searchsorted(item_labels, labels, "left")
    stops = np.where(labels < 0, starts, np.searchsorted(item_labels, labels, "right"))  # -1 is of no class
    query_words = np.ascontiguousarray(query_keys[rows, 1:])
    item_words = np.ascontiguousarray(item_keys[columns, 1:].T)
    count = _counted_compiled if len(rows) * item_words.size >= _COMPILE_FROM else _counted
    step = max(1, _CELLS // (queries.bits + 1))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        shape = (len(labels[block]), queries.bits + 1)
        others, relevant = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        count(query_words[block], item_words, item_weights, starts[block], stops[block], others, relevant)
        counts = others + relevant
        if database is None:
            counts[:, 0] -= 1
            relevant[:, 0] -= labels[block] >= 0
        yield Tally(counts, relevant, labels[block], weights[block])


def _keys(codes: CodeSet) -> NDArray[np.uint64]:
    """Label and words of each code, (n, 1 + w), in which it sorts by label first."""
    return np.column_stack([(codes.labels + 1).astype(np.uint64), to_words(codes.packed)])


def _counted(
    queries: NDArray[np.uint64],
    database: NDArray[np.uint64],
    weights: Counts,
    starts: Counts,
    stops: Counts,
    others: Counts,
    relevant: Counts,
) -> None:
    """Add weights by distance, as `compiled.tally` does and explains."""
    (words, items), bins = database.shape, others.shape[1]
    step = max(1, _BLOCK // max(1, items))
    place = np.arange(items)
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        distances = np.zeros((len(queries[block]), items), np.int64)
        for word in range(words):
            distances += np.bitwise_count(queries[block, word, None] ^ database[word])
        distances += np.arange(len(distances))[:, None] * bins  # each query's own stretch of bins
        own = (place >= starts[block, None]) & (place < stops[block, None])
        for out, chosen in ((relevant, own), (others, ~own)):
            # float64 sums of counts are exact below 2^53
            sums = np.bincount(distances.ravel(), np.where(chosen, weights, 0).ravel(), distances.shape[0] * bins)
            out[block] += sums.astype(np.int64).reshape(-1, bins)


def _counted_compiled(
    queries: NDArray[np.uint64],
    database: NDArray[np.uint64],
    weights: Counts,
    starts: Counts,
    stops: Counts,
    others: Counts,
    relevant: Counts,
) -> None:
    """The same, compiled and on all processors."""
    from dsh_cli.analysis.compiled import tally
    from dsh_cli.threads import default_workers

    workers = default_workers()
    step = -(-len(queries) // (_TASKS * workers))
    pieces = [slice(start, start + step) for start in range(0, len(queries), step)]
    with ThreadPoolExecutor(workers) as pool:  # the loop releases the interpreter's lock
        run = [
            pool.submit(tally, queries[p], database, weights, starts[p], stops[p], others[p], relevant[p])
            for p in pieces
        ]
        for future in run:
            future.result()
