"""Loops over pairs of codes, compiled by Numba when first called; its cache makes the next process start at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange, types
from numba.extending import intrinsic
from numpy.typing import NDArray


def _count_bits(context: Any, word: Any) -> Any:
    """Bits set in a 64-bit word: one instruction of the processor."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


_popcount: Any = intrinsic(_count_bits)


@njit(parallel=True, cache=True)
def count_by_class(
    queries: NDArray[np.uint64],
    items: NDArray[np.uint64],
    starts: NDArray[np.int64],
    weights: NDArray[np.int64],
    k: int,
) -> NDArray[np.int64]:
    """Weights of the items at each distance of each query, class by class.

    Args:
        queries: (q, words) codes.
        items: (m, words) codes, sorted by class.
        starts: (C + 1,) where each class begins, and m.
        weights: (m,) how often each item counts.
        k: bits of a code.

    Returns:
        (q, C, k + 1) sums of weights.
    """
    classes = len(starts) - 1
    counts = np.zeros((len(queries), classes, k + 1), np.int64)
    for i in prange(len(queries)):
        for label in range(classes):
            for j in range(starts[label], starts[label + 1]):
                distance = np.uint64(0)
                for word in range(queries.shape[1]):
                    distance += _popcount(queries[i, word] ^ items[j, word])
                counts[i, label, distance] += weights[j]
    return counts
