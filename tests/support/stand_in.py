"""An index that is in memory alone."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import Packed
from dsh_cli.errors import DshError


class StandIn:
    """As much of an index as neighbours need, in memory."""

    def __init__(self, codes: Packed, rows: list[SimpleNamespace], bits: int = 8) -> None:
        self.bits, self._codes, self._rows, self.refuses = bits, codes, rows, False
        self.note: str | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def codes(self) -> Packed:
        return self._codes

    def labels(self) -> tuple[NDArray[np.int64], list[str]]:
        names = sorted({row.label for row in self._rows} - {None})
        return np.array([names.index(row.label) if row.label else -1 for row in self._rows]), names

    def rows(self, numbers: Iterable[int]) -> list[SimpleNamespace]:
        return [self._rows[number] for number in numbers]

    def require_rows(self) -> None:
        pass

    def require(self, run: object) -> None:
        if self.refuses:
            raise DshError("the index is of model aa, the run of model bb")
