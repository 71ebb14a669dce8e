"""Codes of an index to look among: in memory where they fit, else read from the disk in blocks for each search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from dsh_cli.codes.blocks import Block, Codes, Held

if TYPE_CHECKING:
    from dsh_cli.index.index import Index

_BESIDE = 16  # bytes of order and place of a row, at most: none of rows that lie as they were added

T = TypeVar("T")


@dataclass(frozen=True)
class OnDisk:
    """Codes that stay in an index; each search reads them once."""

    index: Index  # pinned
    labels: frozenset[str | None] | None  # of the rows that are looked among; None: all
    count: int

    def __len__(self) -> int:
        return self.count

    def each(self, work: Callable[[Block], T], threads: int) -> Iterator[T]:
        """As `Codes` says.

        Raises:
            VersionGone: the version of the index is no longer there.
        """
        return self.index.blocks(work, self.labels, threads)


def codes_of(index: Index, labels: frozenset[str | None] | None, count: int, memory: float, threads: int) -> Codes:
    """Codes of rows with one of these labels, or of all.

    Args:
        index: pinned, and not empty.
        labels: None for rows without; None: all rows.
        count: of these rows.
        memory: GiB that may be held; where codes, with order and places at their largest, take more, they stay on disk.
        threads: that read them, and for which they are in blocks enough.

    Raises:
        IndexStateError: those that are held are not what was written.
        VersionGone: as in `OnDisk.each`.
    """
    found = OnDisk(index, labels, count)
    if count * (-(-(index.bits or 0) // 8) + _BESIDE) > memory * 2**30:
        return found
    # copied, or a block would keep all that was read beside its codes
    blocks = found.each(lambda block: replace(block, packed=block.packed.copy()), threads)
    return Held([block for block in blocks if len(block)])
