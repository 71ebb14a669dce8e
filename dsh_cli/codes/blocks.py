"""Search of codes that come a block after another, from memory or from a disk: exact, whatever the blocks.

Of codes equally near the one that was added first comes first, wherever it lies. Each block is searched alone, several
at once by threads, and what is found is merged; so memory does not grow with the codes, but with the blocks that are
there at once and with what is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import Packed
from dsh_cli.codes.nearest import each_within, nearest
from dsh_cli.threads import ahead

Numbers = NDArray[np.int64]

_LEAST, _MOST = 1 << 14, 1 << 20  # codes of a block in memory, where there are so many

T = TypeVar("T")


@dataclass(frozen=True)
class Block:
    """Some of the codes of a database, in the order of adding."""

    packed: Packed  # (b, ceil(k / 8)) uint8
    order: Numbers | int  # (b,), ascending: the lower was added first, in all blocks; a number: that and those after it
    places: Numbers | int  # (b,) by which whoever has the codes knows them; a number: likewise

    def __len__(self) -> int:
        return len(self.packed)


@dataclass(frozen=True)
class Near:
    """Codes found, nearest first, and of those equally near the first added first; of one query, or (q, m) of many."""

    places: Numbers  # (m,) as in blocks
    order: Numbers  # (m,)
    distances: NDArray[np.int32]  # (m,) in bits
    packed: Packed  # (m, ceil(k / 8)) uint8

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, some: Any) -> Near:
        return Near(self.places[some], self.order[some], self.distances[some], self.packed[some])


class Codes(Protocol):
    """Codes to look among."""

    def __len__(self) -> int: ...

    def each(self, work: Callable[[Block], T], threads: int) -> Iterator[T]:
        """What `work` makes of each block, in order; done by so many threads.

        All blocks are as they were written only when the last has been yielded without an error.
        """


@dataclass(frozen=True)
class Held:
    """Codes in memory."""

    blocks: Sequence[Block]

    @classmethod
    def of(cls, packed: Packed, places: Numbers, threads: int) -> Held:
        """(n, ceil(k / 8)) codes in the order of adding, in blocks enough for so many threads; none is copied."""
        size = min(_MOST, max(_LEAST, -(-len(packed) // threads)))
        starts = range(0, len(packed), size)
        return cls([Block(packed[start : start + size], start, places[start : start + size]) for start in starts])

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def each(self, work: Callable[[Block], T], threads: int) -> Iterator[T]:
        """As `Codes` says."""
        if len(self.blocks) == 1:
            return iter([work(self.blocks[0])])
        made = ahead(self.blocks, lambda some: [work(block) for block in some], threads, 1, 0)
        return (found for _, found in made)


def nearest_in(
    codes: Codes, queries: Packed, bits: int, k: int, radius: int | None = None, threads: int = 1
) -> list[Near]:
    """For each query the k nearest codes at most `radius` bits away, or all where there are fewer.

    Args:
        codes: read once.
        queries: (q, ceil(bits / 8)) packed codes.
        bits: of a code.
        k: at least 1.
        radius: in bits; None: any.
        threads: that search.

    Raises:
        UsageError: the codes are not of so many bits, or k is none.
    """
    most = bits if radius is None else radius
    limit = np.full(len(queries), most)  # what is farther is not among the nearest

    def look(block: Block) -> Near:
        with _one_thread():
            rows, distances = nearest(block.packed, queries, bits, k)
        kept = (distances <= limit[:, None]).sum(axis=1).max(initial=0)
        rows = rows[:, :kept]
        return Near(_at(block.places, rows), _at(block.order, rows), distances[:, :kept], block.packed[rows])

    best = look(Block(np.zeros((0, queries.shape[1]), np.uint8), 0, 0))
    for part in codes.each(look, threads):
        if part.distances.size:
            best = _nearest_first([best, part], k)
        if best.distances.shape[1] == k:
            limit = np.minimum(limit, best.distances[:, -1])
    return [best[i, : (best.distances[i] <= most).sum()] for i in range(len(queries))]


def within_in(codes: Codes, queries: Packed, bits: int, radius: int, most: int, threads: int = 1) -> list[Near]:
    """All codes at most `radius` bits away from each of the first queries: as many as have `most` together, or one.

    Args:
        codes: read once.
        queries: (q, ceil(bits / 8)) packed codes, one at least.
        bits: of a code.
        radius: in bits.
        most: codes found, but of the first query, of which all are.
        threads: that search.

    Raises:
        UsageError: the codes are not of so many bits.
    """
    wanted = len(queries)  # of which it is not known yet that they have too many

    def look(block: Block) -> list[Near]:
        parts: list[Near] = []
        found = 0
        with _one_thread():
            for rows, distances in each_within(block.packed, queries[:wanted], bits, radius):
                found += len(rows)
                if parts and found > most:
                    break
                parts.append(Near(_at(block.places, rows), _at(block.order, rows), distances, block.packed[rows]))
        return parts

    def has_too_many() -> bool:
        return wanted > 1 and sum(map(len, (part for parts in found[:wanted] for part in parts))) > most

    none = np.zeros(0, np.int64)
    nothing = Near(none, none, np.zeros(0, np.int32), np.zeros((0, queries.shape[1]), np.uint8))
    found = [[nothing] for _ in queries]
    for parts in codes.each(look, threads):
        wanted = min(wanted, len(parts))
        for of_query, part in zip(found, parts, strict=False):
            of_query.append(part)
        while has_too_many():
            wanted -= 1
        del found[wanted:]
    return [_nearest_first(parts) for parts in found]


def _nearest_first(parts: Sequence[Near], k: int | None = None) -> Near:
    """Of each query what all parts have, or the first k of it."""
    axis = parts[0].distances.ndim - 1
    places, order, distances, packed = (
        np.concatenate([getattr(part, name) for part in parts], axis)
        for name in ("places", "order", "distances", "packed")
    )
    first = np.lexsort((order, distances), axis)[..., :k]
    places, order, distances = (np.take_along_axis(values, first, axis) for values in (places, order, distances))
    return Near(places, order, distances, np.take_along_axis(packed, first[..., None], axis))


def _at(numbers: Numbers | int, rows: Numbers) -> Numbers:
    """Some of the numbers of a block."""
    return rows + numbers if isinstance(numbers, int) else numbers[rows]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let faiss compute in the thread that calls it, of which there are as many as there are to be."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
