"""Rows on their way into an index: keys that came before are known, however many came, and at once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dsh_cli.index.rows import Fresh

KEYS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 30), max_size=12)


@given(st.lists(KEYS, max_size=12))
def test_keys_are_new_once(batches: list[list[int]]) -> None:
    fresh, known = Fresh(), set[int]()
    for keys in batches:
        new = len(set(keys)) == len(keys) and not known & set(keys)
        assert fresh.take(np.array(keys, np.int64)) == new
        if new:
            known |= set(keys)
        assert sorted(known) == sorted(key for run in fresh._runs for key in run.tolist())


def test_few_are_sorted_anew() -> None:
    """Each key with as many runs as there are halves of all of them, and not with each batch that comes."""
    fresh = Fresh()
    for start in range(0, 1000 * 64, 1000):
        assert fresh.take(np.arange(start, start + 1000)[::-1])
        lengths = [len(run) for run in fresh._runs]
        assert all(
            len(run) == 1000 << run_bit for run, run_bit in zip(fresh._runs, bits_of(start // 1000 + 1), strict=True)
        )
        assert lengths == sorted(lengths, reverse=True)


def bits_of(number: int) -> list[int]:
    return [bit for bit in reversed(range(number.bit_length())) if number >> bit & 1]
