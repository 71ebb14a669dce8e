"""Codes of pictures, with what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import Packed, to_hex


@dataclass(frozen=True)
class CodeSet:
    """Codes of n pictures, and what is known of each.

    Attributes:
        bits: k, the length of every code.
        packed: (n, ceil(k / 8)) uint8.
        labels: (n,) int64, index into `classes`; -1 where unknown.
        classes: class names.
        names: paths or names of the pictures.
        relaxed: (n, k) float16 outputs before the sign, or None.
        thumbnails: (n, h, w, channels) uint8, or None.
    """

    bits: int
    packed: Packed
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    names: Sequence[str]
    relaxed: NDArray[np.float16] | None = None
    thumbnails: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def hex(self) -> list[str]:
        """The codes as text."""
        return to_hex(self.packed, self.bits)


def sample(labels: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Rows of at most `most` pictures, each class in proportion, in their order."""
    if len(labels) <= most:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    places = np.empty(len(labels))  # of each picture within its class, in (0, 1)
    places[by_class] = (np.arange(len(labels)) - np.repeat(starts, counts) + 0.5) / np.repeat(counts, counts)
    return np.sort(np.argsort(places, kind="stable")[:most])


def taken(codes: CodeSet, rows: NDArray[np.int64]) -> CodeSet:
    """The pictures of these rows."""
    return replace(
        codes,
        packed=codes.packed[rows],
        labels=codes.labels[rows],
        names=[codes.names[row] for row in rows] if len(codes.names) else (),
        relaxed=None if codes.relaxed is None else codes.relaxed[rows],
        thumbnails=None if codes.thumbnails is None else codes.thumbnails[rows],
    )
