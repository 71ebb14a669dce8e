"""An index that is in memory alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import Packed
from dsh_cli.codes.blocks import Block
from dsh_cli.errors import DshError

T = TypeVar("T")


class StandIn:
    """As much of an index as neighbours need, in memory."""

    def __init__(self, codes: Packed, rows: list[SimpleNamespace], bits: int = 8) -> None:
        self.bits, self._codes, self._rows, self.refuses = bits, codes, rows, False
        self.note: str | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def pin(self) -> None:
        pass

    def label_counts(self) -> Counter[str | None]:
        return Counter(row.label for row in self._rows)

    def blocks(
        self, work: Callable[[Block], T], labels: Collection[str | None] | None = None, threads: int = 1
    ) -> Iterator[T]:
        rows = np.flatnonzero([labels is None or row.label in labels for row in self._rows])
        yield work(Block(self._codes[rows], rows, rows))

    def numbers(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return places

    def rows_at(self, places: Iterable[int]) -> list[SimpleNamespace]:
        return [self._rows[place] for place in places]

    def require_rows(self) -> None:
        pass

    def require(self, run: object) -> None:
        if self.refuses:
            raise DshError("the index is of model aa, the run of model bb")
