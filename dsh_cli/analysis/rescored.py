"""Rankings of which the nearest by Hamming distance are ordered anew, as groups of ties, which all measures take.

What is ordered anew is here the pool of `codes/rescoring.py` with all that are as near as its last. Of ties at the edge
of a pool `dsh neighbors` takes those added first; measured so, a figure would hang on the order of the database, which
in folders is that of classes. What is as far as others by score and by distance ties; beyond the pool ties are those by
distance alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsh_cli.analysis.counting import Counts
from dsh_cli.codes import rescoring
from dsh_cli.codes.bits import to_words
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import Rescore
from dsh_cli.errors import DataError

POOL = 1000  # pictures ordered anew for each query, at least: as many as mAP is usually measured within

_CELLS = 1 << 17  # of the (b, g) counts held at once


class _Row(NamedTuple):
    """A ranking, as one row of a block."""

    counts: Counts
    relevant: Counts
    label: int
    pooled: int


@dataclass(frozen=True)
class Ranked:
    """Rankings of a block of b queries, as g groups of ties at most, the first ones first; empty groups mean nothing.

    Attributes:
        counts: (b, g) items of each group, the query itself left out.
        relevant: (b, g) those of the query's class.
        labels: (b,) classes of the queries.
        pooled: (b,) items that were ordered anew.
    """

    counts: Counts
    relevant: Counts
    labels: NDArray[np.int64]
    pooled: Counts


def rankings(queries: CodeSet, database: CodeSet | None, by: Rescore, pool: int) -> Iterator[Ranked]:
    """Rescored rankings of all queries, in any order, in blocks. Memory does not grow with the number of pairs.

    Args:
        queries: codes with outputs.
        database: codes of the same length and classes, with outputs too where these are what is compared; None: the
            queries, each left out of its own ranking.
        by: what the queries' outputs are held against.
        pool: items ordered anew for each query, at least.

    Raises:
        DataError: there are no outputs.
    """
    items = queries if database is None else database
    if queries.relaxed is None or (by == "outputs" and items.relaxed is None):
        raise DataError("there are no outputs to rescore by; encode queries and database with their outputs")
    outputs = scale = None
    if by == "outputs" and items.relaxed is not None:
        scale = rescoring.scale_of(items.relaxed)
        outputs = rescoring.quantised(items.relaxed, scale)
    waiting: dict[int, list[_Row]] = {}  # by their length, of which a power of two is the next: padding costs half
    for query, near in _nearest(queries, items):
        label = int(queries.labels[query])
        relevant = (near.labels == label) & (label >= 0)
        counts, itself = np.diff(near.ends), None
        if database is None:
            itself = int(np.flatnonzero(near.rows[: near.ends[1]] == query)[0])
            relevant[itself] = False
            counts[0] -= 1
        hits = np.bincount(near.distances[relevant], minlength=len(counts))
        edge = int(np.searchsorted(np.cumsum(counts), min(pool, counts.sum())))
        inside = slice(0, near.ends[edge + 1])
        rows_inside = near.rows[inside]
        against = rescoring.signs(items.packed[rows_inside], items.bits) if outputs is None else outputs[rows_inside]
        scores = rescoring.scores(rescoring.steps_of(queries.relaxed[query], scale), against).astype(np.int64)
        # of equal scores the nearer first
        ranks = scores * (items.bits + 1) - near.distances[inside]
        pooled = 2 * ranks + relevant[inside]
        groups = _groups(pooled if itself is None else np.delete(pooled, itself))
        items_of, hits_of = (
            np.concatenate([of, rest[edge + 1 :]]) for of, rest in zip(groups, (counts, hits), strict=True)
        )
        size = len(items_of).bit_length()
        rows = waiting.setdefault(size, [])
        rows.append(_Row(items_of, hits_of, label, int(counts[: edge + 1].sum())))
        if len(rows) << size >= _CELLS:
            yield _block(waiting.pop(size))
    yield from map(_block, waiting.values())


@dataclass(frozen=True)
class _Near:
    """All items in the order of their distance to a code."""

    rows: NDArray[np.int64]  # (n,)
    labels: NDArray[np.int64]  # (n,)
    distances: NDArray[np.int64]  # (n,)
    ends: Counts  # (k + 2,) items nearer than each distance, from 0 to k + 1


def _nearest(queries: CodeSet, items: CodeSet) -> Iterator[tuple[int, _Near]]:
    """Queries, those of one code after one another, and what is near each: of one code the same."""
    words, query_words = to_words(items.packed), to_words(queries.packed)
    near = None
    last = None
    for query in np.lexsort(query_words.T).tolist():
        if near is None or last is None or (query_words[query] != query_words[last]).any():
            distances = np.bitwise_count(query_words[query] ^ words).sum(axis=1, dtype=np.uint16)
            rows = np.argsort(distances, kind="stable")
            ends = np.concatenate([[0], np.cumsum(np.bincount(distances, minlength=items.bits + 1))])
            near = _Near(rows, items.labels[rows], distances[rows].astype(np.int64), ends)
        last = query
        yield query, near


def _groups(pooled: NDArray[np.int64]) -> tuple[Counts, Counts]:
    """Items, and relevant ones, of each group of ties, the highest rank first.

    Each item is given as twice its rank, and 1 more if it is relevant, by which a group lies together when sorted.
    Groups in a row that are relevant alone come as one, and so do those without any relevant item: of such any order
    is the same.
    """
    order = np.sort(pooled)[::-1]
    places = np.flatnonzero(np.diff(order >> 1, prepend=(order[0] >> 1) + 1))
    counts = np.diff(places, append=len(order))
    hits = np.add.reduceat(order & 1, places)
    mixed = (hits > 0) & (hits < counts)
    apart = np.ones(len(counts), bool)
    apart[1:] = mixed[1:] | mixed[:-1] | ((hits[1:] > 0) != (hits[:-1] > 0))
    starts = np.flatnonzero(apart)
    return np.add.reduceat(counts, starts), np.add.reduceat(hits, starts)


def _block(rows: list[_Row]) -> Ranked:
    counts, relevant = np.zeros((2, len(rows), max(len(row.counts) for row in rows)), np.int64)
    for i, row in enumerate(rows):
        counts[i, : len(row.counts)], relevant[i, : len(row.counts)] = row.counts, row.relevant
    labels, pooled = (np.array(of, np.int64) for of in zip(*(row[2:] for row in rows), strict=True))
    return Ranked(counts, relevant, labels, pooled)
