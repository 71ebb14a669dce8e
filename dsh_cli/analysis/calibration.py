"""What a distance means, by pairs of held-out and training pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import to_words
from dsh_cli.codes.sets import CodeSet

_HELD_OUT = 1000  # pictures compared for the calibration, at most
_WORDS = 1 << 26  # of 64 bits compared for it, at most: a fifth of a second


@dataclass(frozen=True)
class Calibration:
    """How often two pictures at a distance are of one class, by pairs of a held-out and a training picture of a run.

    Held out is the validation split, or the test split where a run has no validation pictures. Pictures without a
    label are left out. Of more pictures than can be compared at once some are taken, evenly over the split.
    """

    split: str  # the held-out one
    queries: int  # held-out pictures compared
    database: int  # training pictures compared with each
    pairs: NDArray[np.int64]  # (k + 1,) by distance
    same: NDArray[np.int64]  # (k + 1,) those of one class

    def rate(self, distance: int) -> float | None:
        """The share of the pairs at a distance that are of one class; None where there are none."""
        return float(self.same[distance] / self.pairs[distance]) if self.pairs[distance] else None


def calibrate(held_out: CodeSet, train: CodeSet, split: str) -> Calibration:
    """Count the pairs of a held-out and a training picture, and those of one class, by their distance."""
    width = -(-held_out.bits // 64)  # words of a code
    queries, labels = _sampled(held_out, _HELD_OUT)
    database, database_labels = _sampled(train, max(1, _WORDS // (width * max(1, len(queries)))))
    order = np.argsort(database_labels, kind="stable")  # so that one class is one slice
    database, database_labels = database[order], database_labels[order]
    starts, ends = (np.searchsorted(database_labels, labels, side) for side in ("left", "right"))
    pairs, same = np.zeros((2, held_out.bits + 1), np.int64)
    for query, start, end in zip(queries, starts, ends, strict=True):
        distances = np.bitwise_count(database ^ query)  # (m, words)
        between = distances[:, 0] if width == 1 else distances.sum(axis=1, dtype=np.int16)
        pairs += np.bincount(between, minlength=len(pairs))
        same += np.bincount(between[start:end], minlength=len(same))
    return Calibration(split, len(queries), len(database), pairs, same)


def _sampled(codes: CodeSet, most: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """At most so many codes that have a label, evenly over the split, as (n, words), and their labels."""
    rows = np.flatnonzero(codes.labels >= 0)
    if len(rows) > most:
        rows = rows[np.arange(most) * len(rows) // most]
    return to_words(codes.packed[rows]), codes.labels[rows]
