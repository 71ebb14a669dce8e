"""Classes by their codes: the class table, the nearest class, the hardest pairs. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dsh_cli.analysis.health import distinct
from dsh_cli.codes.bits import Packed, from_hex, hamming, to_binary, to_hex, to_words, unpack
from dsh_cli.codes.bounds import DistanceBound, class_distance_bound
from dsh_cli.codes.nearest import closest
from dsh_cli.codes.sets import CodeSet
from dsh_cli.errors import DataError

_COMPARED = 1 << 22  # pairs of a code and a class at once


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

    @property
    def on_code(self) -> int:
        """Pictures that have `code`."""
        return round(self.exact * self.count)


@dataclass(frozen=True)
class ClassTable:
    """Codes per class of one split. How far apart they are is computed when it is asked for."""

    split: str
    bits: int
    classes: tuple[ClassRow, ...]
    bit_balance: tuple[float, ...]  # (k,) share of pictures whose bit is 1

    @cached_property
    def present(self) -> NDArray[np.int64]:
        """(P,) numbers of the classes that have a code."""
        return np.array([number for number, row in enumerate(self.classes) if row.code is not None], np.int64)

    @cached_property
    def codes(self) -> Packed:
        """(P, ceil(k / 8)) codes of those."""
        return from_hex([row.code for row in self.classes if row.code is not None], self.bits)

    @property
    def class_distances(self) -> NDArray[np.int64]:
        """(C, C) distances in bits, -1 where a class has no pictures: 8 bytes for each pair, so of few classes."""
        distances = np.full((len(self.classes), len(self.classes)), -1, np.int64)
        distances[np.ix_(self.present, self.present)] = hamming(self.codes, self.codes)
        return distances

    @cached_property
    def min_class_distance(self) -> int | None:
        """The smallest distance between two classes; None where no two have pictures."""
        return min((pair.distance for pair in self.closest(1)), default=None)

    def closest(self, count: int) -> tuple[ClassPair, ...]:
        """The `count` pairs of classes whose codes are closest, or all where there are fewer; of equals in order."""
        pairs, distances = closest(self.codes, count)
        rows = self.present[pairs].tolist()
        return tuple(ClassPair(a, b, distance) for (a, b), distance in zip(rows, distances.tolist(), strict=True))

    @property
    def bound(self) -> DistanceBound | None:
        """The largest smallest distance that codes of so many classes could have; None for fewer than two."""
        return class_distance_bound(self.bits, len(self.present))


@dataclass(frozen=True)
class ClassPair:
    """Two classes, by their numbers, the first of the two before the second."""

    first: int
    second: int
    distance: int  # between their codes, in bits


@dataclass(frozen=True)
class NearestClass:
    """The class whose code is nearest to a code, see `nearest_classes`."""

    label: str
    code: str  # of the class
    distance: int  # between the two, in bits
    tied: tuple[str, ...]  # other classes whose codes are as near


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


def class_table(codes: CodeSet, split: str) -> ClassTable:
    """The table of class codes of one split."""
    classes = [ClassRow(label, None, None, 0, 0.0, ()) for label in codes.classes]
    words = to_words(codes.packed).view(">u8").astype(np.uint64)  # ascend as the numbers do
    found, counts = distinct(
        np.column_stack([(codes.labels + 1).astype(np.uint64), words])
    )  # one of each code of a class
    labels, packed = codes.labels[found], codes.packed[found]
    starts = np.searchsorted(labels, np.arange(len(classes) + 1))
    texts = to_hex(packed, codes.bits)
    for number in np.unique(labels[labels >= 0]).tolist():
        mine = slice(starts[number], starts[number + 1])
        classes[number] = _class_row(codes.classes[number], packed[mine], counts[mine], texts[mine], codes.bits)
    ones = unpack(codes.packed, codes.bits).sum(axis=0)  # (k,)
    return ClassTable(split, codes.bits, tuple(classes), tuple((ones / max(1, len(codes))).tolist()))


def nearest_classes(packed: Packed, table: ClassTable) -> tuple[NearestClass, ...]:
    """For each code the class whose code is nearest.

    Of classes equally near it is the one with the most pictures on its code, and of those the first.

    Args:
        packed: (n, ceil(k / 8)) codes.
        table: of the pictures that say what the codes of the classes are: of a run, those it was trained on.

    Raises:
        DataError: no class of the table has a code.
    """
    rows = [table.classes[number] for number in table.present.tolist()]
    found: list[NearestClass] = []
    for best, distances in _nearest(packed, table):
        for mine, away in zip(best.tolist(), distances, strict=True):
            near = np.flatnonzero(away == away[mine]).tolist()
            tied = tuple(rows[other].label for other in near if other != mine)
            found.append(NearestClass(rows[mine].label, rows[mine].code or "", int(away[mine]), tied))
    return tuple(found)


def nearest_labels(packed: Packed, table: ClassTable) -> tuple[str, ...]:
    """The names of these classes alone, without those as near, which may be nearly all for each code.

    Raises:
        DataError: no class of the table has a code.
    """
    numbers = [table.present[best] for best, _ in _nearest(packed, table)]
    return tuple(table.classes[number].label for block in numbers for number in block.tolist())


def _nearest(packed: Packed, table: ClassTable) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For blocks of b codes: (b,) places of the nearest in the table's codes, and (b, P) distances to all of them."""
    if not len(table.present):
        raise DataError("no class has a code; take pictures that have labels")
    on_code = np.array([table.classes[number].on_code for number in table.present.tolist()])
    step = max(1, _COMPARED // len(table.present))
    for start in range(0, len(packed), step):
        distances = hamming(packed[start : start + step], table.codes)  # (b, P)
        near = distances == distances.min(axis=1, keepdims=True)
        yield np.where(near, on_code, -1).argmax(axis=1), distances  # the first of equals


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


def _class_row(label: str, packed: Packed, counts: NDArray[np.int64], texts: Sequence[str], bits: int) -> ClassRow:
    """The row of a class from its distinct codes, which ascend, and how many of its pictures have each."""
    top = int(counts.argmax())  # the first, hence smallest, of equals
    order = [i for i in np.argsort(-counts, kind="stable").tolist() if i != top]
    distances = hamming(packed[top], packed)
    total = int(counts.sum())
    return ClassRow(
        label=label,
        code=texts[top],
        binary=to_binary(packed[top : top + 1], bits)[0],
        count=total,
        exact=float(counts[top] / total),
        variants=tuple(Variant(texts[i], int(counts[i]), int(distances[i])) for i in order),
    )
