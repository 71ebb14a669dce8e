"""Retrieval and code quality: tie-aware average precision, class table, code health, hardest pairs. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsh_cli.bounds import DistanceBound, class_distance_bound
from dsh_cli.codes import CodeSet, Packed, hamming, to_binary, to_hex, unpack

_BLOCK = 1 << 22  # distances held at once while they are counted


@dataclass(frozen=True)
class Variant:
    """A code some pictures of a class have instead of the class's own."""

    code: str
    count: int
    distance: int  # to the class's code, in bits


@dataclass(frozen=True)
class ClassRow:
    """One class of the table. `code` and `binary` are None for a class without pictures."""

    label: str
    code: str | None  # the most frequent code, the smallest of equals
    binary: str | None
    count: int
    exact: float  # share of the pictures that have `code`, in [0, 1]
    variants: tuple[Variant, ...]  # all other codes of the class, most frequent first


@dataclass(frozen=True)
class ClassTable:
    """Codes per class of one split, and how far apart they are."""

    split: str
    bits: int
    classes: tuple[ClassRow, ...]
    class_distances: tuple[tuple[int | None, ...], ...]  # (C, C); None where a class has no pictures
    min_class_distance: int | None
    bound: DistanceBound | None
    bit_balance: tuple[float, ...]  # (k,) share of pictures whose bit is 1


@dataclass(frozen=True)
class CodeHealth:
    """How much of the code space is used."""

    distinct: int
    largest_share: float  # share of pictures that have the most common code


@dataclass(frozen=True)
class Pair:
    """Two pictures, by their place in a `CodeSet`, the first of the two before the second."""

    first: int
    second: int
    distance: float  # squared, between the relaxed codes


@dataclass(frozen=True)
class HardestPairs:
    """The pairs a network has most trouble with, the hardest first."""

    same: tuple[Pair, ...]  # of one class, and farthest apart
    different: tuple[Pair, ...]  # of two classes, and closest


def tie_aware_ap(counts: NDArray[np.int64], relevant: NDArray[np.int64]) -> NDArray[np.float64]:
    """Average precision, in expectation over random orders of items at equal distance.

    McSherry and Najork, *Computing information retrieval performance measures efficiently in the presence
    of tied scores*, ECIR 2008, in closed form per group of ties.

    Args:
        counts: (q, k + 1) database items at each Hamming distance of each query.
        relevant: (q, k + 1) those of the query's class.

    Returns:
        (q,) in [0, 1]; 0 for a query without any relevant item.
    """
    before = np.cumsum(counts, axis=1) - counts
    relevant_before = np.cumsum(relevant, axis=1) - relevant
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, counts.sum(axis=1).max(initial=0) + 1))])
    n, r = counts.astype(np.float64), relevant.astype(np.float64)
    c = np.where(n > 1, (r - 1) / np.maximum(n - 1, 1), 0.0)
    tail = harmonic[before + counts] - harmonic[before]  # H[N + n] - H[N]
    group = r / np.maximum(n, 1) * (c * n + (relevant_before + 1 - c * (before + 1)) * tail)
    precision: NDArray[np.float64] = group.sum(axis=1) / np.maximum(relevant.sum(axis=1), 1)
    return precision


def mean_average_precision(queries: CodeSet, database: CodeSet | None = None) -> float:
    """Tie-aware mAP of `queries` against `database`; without one, against themselves, self-matches excluded.

    Exact, in memory that does not grow with the number of pairs: equal codes of one class are counted once.
    """
    rows, weights = _distinct(queries)
    items, item_weights = (rows, weights) if database is None else _distinct(database)
    labels = rows.labels
    total = 0.0
    step = max(1, _BLOCK // max(1, len(items)))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        distances = hamming(rows.packed[block], items.packed)  # (b, m)
        same = labels[block, None] == items.labels[None, :]  # (b, m)
        counts = _count(distances, item_weights, queries.bits)
        relevant = _count(distances, np.where(same, item_weights, 0), queries.bits)
        if database is None:
            counts[:, 0] -= 1
            relevant[:, 0] -= 1
        total += float(tie_aware_ap(counts, relevant) @ weights[block])
    return total / max(1, len(queries))


def class_table(codes: CodeSet, split: str) -> ClassTable:
    """The table of class codes of one split, with the distances between them and the best possible."""
    rows, heads = [], []  # heads: (C, bytes) the code of each class that has one
    for index, label in enumerate(codes.classes):
        row, head = _class_row(label, codes.packed[codes.labels == index], codes.bits)
        rows.append(row)
        heads.append(head)
    present = [i for i, head in enumerate(heads) if head is not None]
    distances: list[list[int | None]] = [[None] * len(rows) for _ in rows]
    packed = np.array([head for head in heads if head is not None], np.uint8).reshape(
        len(present), codes.packed.shape[1]
    )
    between = hamming(packed, packed)  # (C, C)
    for i, row_of in zip(present, between, strict=True):
        for j, distance in zip(present, row_of, strict=True):
            distances[i][j] = int(distance)
    ones = unpack(codes.packed, codes.bits).sum(axis=0)  # (k,)
    pairs = between[np.triu_indices(len(present), 1)]
    return ClassTable(
        split=split,
        bits=codes.bits,
        classes=tuple(rows),
        class_distances=tuple(tuple(row) for row in distances),
        min_class_distance=int(pairs.min()) if len(pairs) else None,
        bound=class_distance_bound(codes.bits, len(present)),
        bit_balance=tuple((ones / max(1, len(codes))).tolist()),
    )


def code_health(codes: CodeSet) -> CodeHealth:
    """Distinct codes, and the share of the most common one."""
    _, counts = np.unique(codes.packed, axis=0, return_counts=True)
    return CodeHealth(len(counts), float(counts.max() / len(codes)))


def hardest_pairs(codes: CodeSet, count: int) -> HardestPairs:
    """The `count` same-class pairs farthest apart and different-class pairs closest, or fewer where there are.

    All pairs are compared by relaxed codes, in (n, n) float64 matrices: 8 MB each for 1,000 pictures. They are
    taken hardest first, of equals the first in order, and a picture is in one pair of each kind at most, so that
    one picture with a wrong label does not fill the list.
    """
    assert codes.relaxed is not None
    outputs = np.nan_to_num(codes.relaxed).astype(np.float64)  # (n, k)
    norms = (outputs**2).sum(axis=1)
    between = norms[:, None] + norms - 2 * outputs @ outputs.T  # (n, n)
    distances = np.maximum(np.round(between, 6), 0.0)  # so that equal codes tie, whatever the order of the sums
    same = codes.labels[:, None] == codes.labels
    once = np.triu(np.ones_like(same), 1)
    return HardestPairs(
        same=_take_pairs(np.where(once & same, distances, -np.inf), distances, count),
        different=_take_pairs(np.where(once & ~same, -distances, -np.inf), distances, count),
    )


def _take_pairs(hardness: NDArray[np.float64], distances: NDArray[np.float64], count: int) -> tuple[Pair, ...]:
    """Up to `count` pairs of highest finite hardness (n, n), which is used up; no row or column serves twice."""
    pairs: list[Pair] = []
    while hardness.size and len(pairs) < count:
        i, j = divmod(int(hardness.argmax()), len(hardness))
        if hardness[i, j] == -np.inf:
            break
        pairs.append(Pair(i, j, float(distances[i, j])))
        hardness[[i, j], :] = hardness[:, [i, j]] = -np.inf
    return tuple(pairs)


def _class_row(label: str, packed: Packed, bits: int) -> tuple[ClassRow, Packed | None]:
    if not len(packed):
        return ClassRow(label, None, None, 0, 0.0, ()), None
    found, counts = np.unique(packed, axis=0, return_counts=True)  # rows ascend as numbers do
    top = int(counts.argmax())  # the first, hence smallest, of equals
    order = [i for i in np.argsort(-counts, kind="stable") if i != top]
    distances = hamming(found[top], found)
    texts = to_hex(found, bits)
    row = ClassRow(
        label=label,
        code=texts[top],
        binary=to_binary(found[top : top + 1], bits)[0],
        count=len(packed),
        exact=float(counts[top] / len(packed)),
        variants=tuple(Variant(texts[i], int(counts[i]), int(distances[i])) for i in order),
    )
    return row, found[top]


def _distinct(codes: CodeSet) -> tuple[CodeSet, NDArray[np.int64]]:
    """The distinct pairs of code and label, and how often each occurs."""
    keys = np.column_stack([codes.labels.astype(">i8").view(np.uint8).reshape(-1, 8), codes.packed])
    found, counts = np.unique(keys, axis=0, return_counts=True)
    labels = np.ascontiguousarray(found[:, :8]).view(">i8").astype(np.int64)[:, 0]
    return CodeSet(codes.bits, np.ascontiguousarray(found[:, 8:]), labels, codes.classes, ()), counts


def _count(distances: NDArray[np.int64], weights: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Sum (m,) or (b, m) weights by distance: (b, m) distances -> (b, k + 1)."""
    rows = len(distances)
    keys = distances + np.arange(rows)[:, None] * (bits + 1)
    spread = np.broadcast_to(weights, distances.shape)
    # float64 sums of counts are exact below 2^53
    sums = np.bincount(keys.ravel(), spread.ravel(), minlength=rows * (bits + 1))
    return sums.astype(np.int64).reshape(rows, bits + 1)
