"""Classes by their codes: the class table, the nearest class, the hardest pairs. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import Packed, from_hex, hamming, to_binary, to_hex, unpack
from dsh_cli.codes.bounds import DistanceBound, class_distance_bound
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
    """Codes per class of one split, and how far apart they are."""

    split: str
    bits: int
    classes: tuple[ClassRow, ...]
    class_distances: tuple[tuple[int | None, ...], ...]  # (C, C); None where a class has no pictures
    min_class_distance: int | None
    bound: DistanceBound | None
    bit_balance: tuple[float, ...]  # (k,) share of pictures whose bit is 1


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


def nearest_classes(packed: Packed, table: ClassTable) -> tuple[NearestClass, ...]:
    """For each code the class whose code is nearest.

    Of classes equally near it is the one with the most pictures on its code, and of those the first.

    Args:
        packed: (n, ceil(k / 8)) codes.
        table: of the pictures that say what the codes of the classes are: of a run, those it was trained on.

    Raises:
        DataError: no class of the table has a code.
    """
    rows = [row for row in table.classes if row.code is not None]
    if not rows:
        raise DataError("no class has a code; take pictures that have labels")
    codes = from_hex([row.code or "" for row in rows], table.bits)  # (C, bytes)
    on_code = np.array([row.on_code for row in rows])
    found: list[NearestClass] = []
    step = max(1, _COMPARED // len(rows))
    for start in range(0, len(packed), step):
        distances = hamming(packed[start : start + step], codes)  # (step, C)
        near = distances == distances.min(axis=1, keepdims=True)
        best = np.where(near, on_code, -1).argmax(axis=1)  # the first of equals
        for i, mine in enumerate(best.tolist()):
            tied = tuple(rows[other].label for other in np.flatnonzero(near[i]).tolist() if other != mine)
            found.append(NearestClass(rows[mine].label, rows[mine].code or "", int(distances[i, mine]), tied))
    return tuple(found)


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
