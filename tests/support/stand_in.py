"""An index that is in memory alone."""

from __future__ import annotations

import numpy as np

from dsh_cli.errors import DshError


class StandIn:
    """As much of an index as neighbours need, in memory."""

    def __init__(self, codes, rows, bits=8):
        self.bits, self._codes, self._rows, self.refuses = bits, codes, rows, False

    def __len__(self):
        return len(self._rows)

    def codes(self):
        return self._codes

    def labels(self):
        names = sorted({row.label for row in self._rows} - {None})
        return np.array([names.index(row.label) if row.label else -1 for row in self._rows]), names

    def rows(self, numbers):
        return [self._rows[number] for number in numbers]

    def require_rows(self):
        pass

    def require(self, run):
        if self.refuses:
            raise DshError("the index is of model aa, the run of model bb")
