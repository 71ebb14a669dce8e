"""Exact search for the nearest codes by Hamming distance, with faiss; and for the pairs closest to one another."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import Packed, to_words
from dsh_cli.errors import UsageError

Found = tuple[NDArray[np.int64], NDArray[np.int32]]  # rows of the database, and their distances in bits

_WIDTHS = (4, 8, 16, 20, 32, 64)  # bytes of the codes that faiss has a loop of its own for, up to 4 times as fast
_COUNTED = 1 << 26  # bytes of faiss's lists of rows for each distance, at most; a heap takes less, and longer
_PAIRS = 1 << 20  # compared at once by `closest`


def nearest(database: Packed, queries: Packed, bits: int, k: int) -> Found:
    """The k nearest codes of each query, or all where there are fewer.

    Args:
        database: (n, ceil(bits / 8)) packed codes.
        queries: (q, ceil(bits / 8)) packed codes.
        bits: of a code.
        k: at least 1.

    Returns:
        Two (q, min(k, n)): rows and distances, nearest first, rows of one distance in their order.

    Raises:
        UsageError: the codes are not of so many bits, or k is none.
    """
    _require_fit(database, queries, bits)
    if k < 1:
        raise UsageError(f"k is {k}; ask for at least one neighbour")
    most = min(k, len(database))
    rows, distances = np.empty((len(queries), most), np.int64), np.empty((len(queries), most), np.int32)
    if not rows.size:
        return rows, distances

    import faiss

    padded, wanted = _padded(database), _padded(queries)
    # Both keep rows of one distance in their order, which tests hold.
    each = (8 * padded.shape[1] + 1) * most * 8  # bytes of lists for a query
    counted = each <= _COUNTED
    step = max(1, _COUNTED // each) if counted else len(queries)
    for start in range(0, len(queries), step):
        some = slice(start, start + step)
        distances[some], rows[some] = faiss.knn_hamming(wanted[some], padded, most, "mc" if counted else "hc")
    return rows, distances


def within(database: Packed, queries: Packed, bits: int, radius: int) -> list[Found]:
    """For each query the codes at most `radius` bits away, as (m,) rows and distances in the order of `nearest`.

    Raises:
        UsageError: the codes are not of so many bits.
    """
    return list(each_within(database, queries, bits, radius))


def each_within(database: Packed, queries: Packed, bits: int, radius: int) -> Iterator[Found]:
    """As `within`, a query at a time: all codes may be within the radius of each."""
    _require_fit(database, queries, bits)
    if not len(database) or radius < 0:
        yield from ((np.zeros(0, np.int64), np.zeros(0, np.int32)) for _ in queries)
        return

    import faiss

    padded = _padded(database)
    index = faiss.IndexBinaryFlat(8 * padded.shape[1])
    index.add(padded)
    for query in _padded(queries):
        _, distances, rows = index.range_search(query[None], min(radius, bits) + 1)  # faiss: less than
        order = np.lexsort((rows, distances))
        yield rows[order].astype(np.int64), distances[order].astype(np.int32)


def closest(packed: Packed, count: int) -> Found:
    """The `count` pairs of codes that are closest to one another, or all where there are fewer.

    Codes fewer bits apart than they have bytes agree in a byte. So those that do are compared first, a hundredth of all
    pairs of short codes; all are compared only where these hold too few so close.

    Args:
        packed: (n, bytes) codes.
        count: at least 1.

    Returns:
        (m, 2) rows, the first of the two before the second, and (m,) distances: closest first, of equals in order.
    """
    words, (codes, width) = to_words(packed), packed.shape
    best = np.zeros(0, np.int64)  # distance, first and second row as one number, ascending
    for column in packed.T if codes**2 > _PAIRS * width**2 else ():  # else groups cost more than they save
        order = np.argsort(column, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(column[order])) + 1):
            best = _closest(words, group, best, count)
    if len(best) < count or best[-1] // codes**2 >= width:
        best = _closest(words, np.arange(codes), best, count)
    distances, rows = np.divmod(best, max(1, codes**2))
    return np.stack(np.divmod(rows, max(1, codes)), axis=1), distances.astype(np.int32)


def _closest(
    words: NDArray[np.uint64], group: NDArray[np.int64], best: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """The `count` best of those known and of the pairs within a group of rows, which ascend; as `closest` has them."""
    codes, step = len(words), max(1, _PAIRS // max(1, len(group)))
    for start in range(0, len(group) - 1, step):
        first, second = group[start : start + step], group[start + 1 :]
        limit = np.iinfo(np.uint16).max if len(best) < count else (best[-1] - first[0] * codes) // codes**2
        if limit < 0:  # those known are equal, and come first
            break
        distances = np.zeros((len(first), len(second)), np.uint16)
        for word in words.T:
            distances += np.bitwise_count(word[first, None] ^ word[second])
        i, j = np.nonzero(np.triu(distances <= limit))
        found = (distances[i, j].astype(np.int64) * codes + first[i]) * codes + second[j]
        if len(found) > count:
            found = np.partition(found, count - 1)[:count]
        best = np.unique(np.concatenate([best, found]))[:count]
    return best


def _require_fit(database: Packed, queries: Packed, bits: int) -> None:
    width = -(-bits // 8)
    for codes in (database, queries):
        if codes.ndim != 2 or codes.shape[1] != width:
            raise UsageError(f"codes of {bits} bits are (n, {width}) bytes, not {codes.shape}")


def _padded(codes: Packed) -> Packed:
    """Codes with zeros behind them, as many as faiss is fast with; equal bytes add nothing to a distance."""
    width = next((width for width in _WIDTHS if width >= codes.shape[1]), codes.shape[1])
    if width == codes.shape[1]:
        return np.ascontiguousarray(codes)
    padded = np.zeros((len(codes), width), np.uint8)
    padded[:, : codes.shape[1]] = codes
    return padded
