"""Whether codes are used well, or have collapsed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import to_words, unpack
from dsh_cli.codes.sets import CodeSet

_BLOCK = 1 << 22  # bits unpacked at once


@dataclass(frozen=True)
class CodeHealth:
    """How much of the code space is used."""

    distinct: int
    largest_share: float  # share of pictures that have the most common code
    bit_balance: tuple[float, ...] = ()  # (k,) share of pictures whose bit is 1
    bit_correlation: float = 0.0  # largest absolute correlation of two bits; a constant bit has none


def code_health(codes: CodeSet) -> CodeHealth:
    """How many codes there are, how evenly they are used, and how far their bits repeat each other."""
    _, counts = distinct(to_words(codes.packed))
    together = np.zeros((codes.bits, codes.bits))  # (k, k) pictures in which both bits are 1
    step = max(1, _BLOCK // codes.bits)
    for start in range(0, len(codes), step):
        ones = unpack(codes.packed[start : start + step], codes.bits).astype(np.float32)  # sums are exact below 2^24
        together += ones.T @ ones
    share = together / len(codes)
    balance = share.diagonal()
    spread = np.sqrt(balance * (1 - balance))
    varies = spread > 0
    covariance = (share - np.outer(balance, balance))[np.ix_(varies, varies)]
    correlation = np.abs(covariance / np.outer(spread[varies], spread[varies]))
    pairs = correlation[np.triu_indices(len(correlation), 1)]
    largest = min(1.0, float(pairs.max(initial=0.0)))
    return CodeHealth(len(counts), float(counts.max() / len(codes)), tuple(balance.tolist()), largest)


def distinct(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One of each set of equal rows of (n, c) keys, by its place and in the order of the keys; and how many equal it.

    A sort by columns: ten times as fast as `numpy.unique` of rows.
    """
    order = np.lexsort(keys.T[::-1])
    ordered = keys[order]
    starts = np.flatnonzero(np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))[: len(keys)])
    return order[starts], np.diff(np.append(starts, len(keys)))
