"""Exact search for the nearest codes by Hamming distance. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes import Packed, hamming

Found = tuple[NDArray[np.int64], NDArray[np.int32]]  # rows of the database, and their distances in bits


def nearest(database: Packed, queries: Packed, bits: int, k: int) -> Found:
    """The k nearest codes of each query, or all where there are fewer.

    Returns:
        Two (q, min(k, n)): rows and distances, nearest first, rows of one distance in their order.
    """
    most = min(k, len(database))
    rows = np.empty((len(queries), most), np.int64)
    distances = np.empty((len(queries), most), np.int32)
    for i, query in enumerate(queries):
        between = hamming(query, database)  # (n,)
        rows[i] = np.argsort(between, kind="stable")[:most]
        distances[i] = between[rows[i]]
    return rows, distances


def within(database: Packed, queries: Packed, bits: int, radius: int) -> list[Found]:
    """For each query the codes at most `radius` bits away, as (m,) rows and distances in the order of `nearest`."""
    found = []
    for query in queries:
        between = hamming(query, database)  # (n,)
        rows = np.flatnonzero(between <= radius)
        rows = rows[np.argsort(between[rows], kind="stable")]
        found.append((rows.astype(np.int64), between[rows].astype(np.int32)))
    return found
