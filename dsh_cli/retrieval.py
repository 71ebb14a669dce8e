"""Retrieval measured over Hamming rankings, with ties treated honestly.

With k bits there are only k + 1 distances, so a ranking is groups of ties, and everything here follows from two
histograms of each query: all items by distance, and the relevant ones (those of the query's class) by distance.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes import CodeSet
from dsh_cli.errors import DataError

Counts = NDArray[np.int64]  # (q, k + 1) items at each Hamming distance of each query

AT = (1000,)  # K of mAP@K by default
PRECISION_AT = (1, 10, 100)
RADII = (0, 1, 2)  # bits, of the lookup by radius
_BLOCK = 1 << 22  # distances, or counts by class and distance, held at once
_COMPILED = 1 << 24  # pairs from which the compiled loop repays its start


@dataclass(frozen=True)
class Lookup:
    """Everything within a Hamming radius, averaged over queries; an empty ball has precision and recall 0."""

    radius: int
    precision: float
    recall: float
    empty: int  # queries with nothing in their ball


@dataclass(frozen=True)
class ClassScore:
    """Tie-aware mAP of one class's queries; None for a class without queries."""

    label: str
    queries: int
    map: float | None


@dataclass(frozen=True)
class Retrieval:
    """How well queries find their class. All in [0, 1] but counts and seconds."""

    bits: int
    queries: int
    database: int  # items each query is ranked against
    self_excluded: bool  # queries are the database, and none finds itself
    map: float  # in expectation over random orders of ties
    map_best: float  # relevant items first in each group of ties
    map_worst: float  # relevant items last
    map_at: Mapping[int, float]  # by K
    precision_at: Mapping[int, float]  # by K
    lookups: tuple[Lookup, ...]  # by radius, 0 to k
    per_class: tuple[ClassScore, ...]
    seconds: float


def tie_aware_ap(counts: Counts, relevant: Counts, at: int | None = None) -> NDArray[np.float64]:
    """Average precision, in expectation over random orders of items at equal distance.

    McSherry and Najork, *Computing information retrieval performance measures efficiently in the presence
    of tied scores*, ECIR 2008, in closed form per group of ties.

    Args:
        counts: (q, k + 1) database items at each Hamming distance of each query.
        relevant: (q, k + 1) those of the query's class.
        at: K of AP@K, which counts the first K ranks and divides by min(K, relevant items); None: all.

    Returns:
        (q,) in [0, 1]; 0 for a query without any relevant item.
    """
    before = np.cumsum(counts, axis=1) - counts
    relevant_before = np.cumsum(relevant, axis=1) - relevant
    within = counts if at is None else np.clip(at - before, 0, counts)  # ranks of each group that count
    harmonic = _harmonic(counts)
    n, r = counts.astype(np.float64), relevant.astype(np.float64)
    c = np.where(n > 1, (r - 1) / np.maximum(n - 1, 1), 0.0)
    tail = harmonic[before + within] - harmonic[before]  # H[N + t] - H[N]
    group = r / np.maximum(n, 1) * (c * within + (relevant_before + 1 - c * (before + 1)) * tail)
    total = relevant.sum(axis=1)
    precision: NDArray[np.float64] = group.sum(axis=1) / np.maximum(total if at is None else np.minimum(total, at), 1)
    return precision


def ap_bounds(counts: Counts, relevant: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AP in the worst and in the best order of ties: relevant items last, or first, in each group. Both (q,)."""
    before = np.cumsum(counts, axis=1) - counts
    relevant_before = np.cumsum(relevant, axis=1) - relevant
    harmonic = _harmonic(counts)
    total = np.maximum(relevant.sum(axis=1), 1)

    def ap(ahead: Counts) -> NDArray[np.float64]:
        """With `ahead` items before the first relevant one of a group: the sum over it of (R + i) / (ahead + i)."""
        tail = harmonic[ahead + relevant] - harmonic[ahead]
        group = relevant + (relevant_before - ahead) * tail
        precision: NDArray[np.float64] = group.sum(axis=1) / total
        return precision

    return ap(before + counts - relevant), ap(before)


def precision_at(counts: Counts, relevant: Counts, at: int) -> NDArray[np.float64]:
    """Share of relevant items among the first `at`, or among all where there are fewer; in expectation over ties."""
    before = np.cumsum(counts, axis=1) - counts
    within = np.clip(at - before, 0, counts)
    found = (relevant * within / np.maximum(counts, 1)).sum(axis=1)
    share: NDArray[np.float64] = found / np.maximum(np.minimum(counts.sum(axis=1), at), 1)
    return share


def mean_average_precision(queries: CodeSet, database: CodeSet | None = None) -> float:
    """Tie-aware mAP of `queries` against `database`; without one, against themselves, self-matches excluded.

    Exact, in memory that does not grow with the number of pairs: equal codes of one class are counted once.
    """
    total = 0.0
    for counts, relevant, weights, _ in histograms(queries, database):
        total += float(tie_aware_ap(counts, relevant) @ weights)
    return total / max(1, len(queries))


def measure(queries: CodeSet, database: CodeSet | None = None, at: Sequence[int] = AT) -> Retrieval:
    """All of it, for `queries` against `database`, or against themselves with self-matches excluded.

    Queries with nothing relevant in the database score 0, and count.

    Raises:
        DataError: there are no queries, or nothing to find.
    """
    started = time.perf_counter()
    size = len(queries) - 1 if database is None else len(database)
    if not len(queries) or size < 1:
        raise DataError(f"{len(queries):,} queries against {max(0, size):,} pictures: there is nothing to measure")
    sums = np.zeros(3 + len(at) + len(PRECISION_AT))  # of AP, worst, best, AP@K, precision@K
    by_radius = np.zeros((3, queries.bits + 1))  # sums of precision and recall, and empty balls
    classes = np.zeros((2, len(queries.classes)))  # queries of each class, and the sum of their AP
    for counts, relevant, weights, labels in histograms(queries, database):
        ap = tie_aware_ap(counts, relevant)
        worst, best = ap_bounds(counts, relevant)
        at_k = [tie_aware_ap(counts, relevant, k) for k in at]
        precision = [precision_at(counts, relevant, k) for k in PRECISION_AT]
        for i, values in enumerate((ap, worst, best, *at_k, *precision)):
            sums[i] += float(values @ weights)
        retrieved, hits = np.cumsum(counts, axis=1), np.cumsum(relevant, axis=1)
        by_radius[0] += weights @ (hits / np.maximum(retrieved, 1))
        by_radius[1] += weights @ (hits / np.maximum(hits[:, -1:], 1))
        by_radius[2] += weights @ (retrieved == 0)
        np.add.at(classes[0], labels, weights)
        np.add.at(classes[1], labels, ap * weights)
    n = len(queries)
    means = (sums / n).tolist()
    return Retrieval(
        bits=queries.bits,
        queries=n,
        database=size,
        self_excluded=database is None,
        map=sums[0] / n,
        map_worst=means[1],
        map_best=means[2],
        map_at=dict(zip(at, means[3:], strict=False)),
        precision_at=dict(zip(PRECISION_AT, means[3 + len(at) :], strict=True)),
        lookups=tuple(
            Lookup(radius, float(precision / n), float(recall / n), int(empty))
            for radius, (precision, recall, empty) in enumerate(by_radius.T)
        ),
        per_class=tuple(
            ClassScore(label, int(count), float(total / count) if count else None)
            for label, count, total in zip(queries.classes, *classes, strict=True)
        ),
        seconds=time.perf_counter() - started,
    )


def histograms(
    queries: CodeSet, database: CodeSet | None = None
) -> Iterator[tuple[Counts, Counts, Counts, NDArray[np.int64]]]:
    """The histograms of distinct queries, block by block.

    Yields:
        counts (b, k + 1), relevant (b, k + 1), weights (b,): how many queries share them, and labels (b,).
    """
    rows, weights = _distinct(queries)
    items, item_weights = (rows, weights) if database is None else _distinct(database)
    classes = max(int(rows.labels.max(initial=0)), int(items.labels.max(initial=0))) + 1
    starts = np.searchsorted(items.labels, np.arange(classes + 1))  # _distinct sorts by label
    left, right = _words(rows), _words(items)
    compiled = len(rows) * len(items) >= _COMPILED
    widest = classes * (queries.bits + 1) if compiled else max(len(items), classes * (queries.bits + 1))
    step = max(1, _BLOCK // max(1, widest))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        if compiled:
            from dsh_cli.kernels import count_by_class

            by_class = count_by_class(left[block], right, starts, item_weights, queries.bits)
        else:
            by_class = _count_by_class(left[block], right, items.labels, classes, item_weights, queries.bits)
        labels = rows.labels[block]
        relevant = by_class[np.arange(len(labels)), labels]
        counts = by_class.sum(axis=1)
        if database is None:
            counts[:, 0] -= 1
            relevant[:, 0] -= 1
        yield counts, relevant, weights[block], labels


def _count_by_class(
    queries: NDArray[np.uint64],
    items: NDArray[np.uint64],
    labels: NDArray[np.int64],
    classes: int,
    weights: Counts,
    bits: int,
) -> Counts:
    """As `kernels.count_by_class`, without its start: (q, C, k + 1)."""
    distances = np.zeros((len(queries), len(items)), np.int64)
    for word in range(queries.shape[1]):
        distances += np.bitwise_count(queries[:, word, None] ^ items[None, :, word])
    keys = distances + (labels + np.arange(len(queries))[:, None] * classes) * (bits + 1)
    spread = np.broadcast_to(weights, keys.shape)
    # float64 sums of counts are exact below 2^53
    sums = np.bincount(keys.ravel(), spread.ravel(), minlength=len(queries) * classes * (bits + 1))
    return sums.astype(np.int64).reshape(len(queries), classes, bits + 1)


def _words(codes: CodeSet) -> NDArray[np.uint64]:
    """(n, words): packed codes as 64-bit words, padded with zeros, which change no distance."""
    padded = np.zeros((len(codes), -(-codes.packed.shape[1] // 8) * 8), np.uint8)
    padded[:, : codes.packed.shape[1]] = codes.packed
    return padded.view(np.uint64)


def _distinct(codes: CodeSet) -> tuple[CodeSet, Counts]:
    """The distinct pairs of label and code, in their order, and how often each occurs."""
    keys = np.column_stack([codes.labels.astype(">i8").view(np.uint8).reshape(-1, 8), codes.packed])
    found, counts = np.unique(keys, axis=0, return_counts=True)
    labels = np.ascontiguousarray(found[:, :8]).view(">i8").astype(np.int64)[:, 0]
    return CodeSet(codes.bits, np.ascontiguousarray(found[:, 8:]), labels, codes.classes, ()), counts


def _harmonic(counts: Counts) -> NDArray[np.float64]:
    """H[0] to H[n] for the largest number of items any query has."""
    most = int(counts.sum(axis=1).max(initial=0))
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, most + 1))])
