"""The loop that NumPy cannot express: distances counted as they arise, never stored. Imported only where it is used."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.extending import intrinsic

_TILE = 1024  # distances between filling and counting: they stay in the first-level cache


def _popcount(typing: Any, word: Any) -> Any:
    """Bits set in a word: one instruction, or a few for many words at once, as LLVM sees fit."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return word(word), generate


_ones: Any = intrinsic(_popcount)


def _tally(queries: Any, database: Any, weights: Any, starts: Any, stops: Any, others: Any, relevant: Any) -> None:
    """Add up weights by distance, those of a query's own class apart.

    Args:
        queries: (q, w) uint64.
        database: (w, m) uint64, of each class in one stretch.
        weights: (m,) int64.
        starts: (q,) int64, where the stretch of the query's class starts; `stops`, where it ends.
        stops: (q,) int64.
        others: (q, k + 1) int64, to add to.
        relevant: (q, k + 1) int64, to add to.
    """
    words, items = database.shape
    bins = others.shape[1]
    distances = np.empty(_TILE, np.uint16)
    lanes = np.zeros((4, bins), np.int64)  # four in turn, for adding to one place twice in a row makes the second wait
    for query in range(queries.shape[0]):
        edges = (0, starts[query], stops[query], items)
        for part in range(3):
            out = relevant[query] if part == 1 else others[query]
            lanes[:] = 0
            for start in range(edges[part], edges[part + 1], _TILE):
                count = min(_TILE, edges[part + 1] - start)
                first = queries[query, 0]
                row = database[0, start : start + count]
                for i in range(count):
                    distances[i] = _ones(first ^ row[i])
                for word in range(1, words):
                    more = queries[query, word]
                    row = database[word, start : start + count]
                    for i in range(count):
                        distances[i] += _ones(more ^ row[i])
                weight = weights[start : start + count]
                whole = count - count % 4
                for i in range(0, whole, 4):
                    lanes[0, distances[i]] += weight[i]
                    lanes[1, distances[i + 1]] += weight[i + 1]
                    lanes[2, distances[i + 2]] += weight[i + 2]
                    lanes[3, distances[i + 3]] += weight[i + 3]
                for i in range(whole, count):
                    lanes[0, distances[i]] += weight[i]
            for bin in range(bins):
                out[bin] += lanes[0, bin] + lanes[1, bin] + lanes[2, bin] + lanes[3, bin]


def _compiled(function: Any) -> Any:
    try:
        return njit(function, nogil=True, cache=True)
    except RuntimeError:  # nowhere to keep the machine code, so that each process makes it again
        return njit(function, nogil=True)


tally = _compiled(_tally)
