"""Digests of rows, by which it shows that one is not what was written.

A row has three, and a fourth where the index keeps outputs, so that what is read alone is checked alone. Each is a sum
of 32 bits over the words of some columns times odd numbers, begun with what the index says of itself: one word
changed always shows, and other changes but for one in four thousand million. They tell of damage, not of someone who
means to deceive.

The sum of all `code_check` modulo 2^64 goes with each commit, so that rows lost, doubled or come back show as well.
"""

from __future__ import annotations

import hashlib
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = {
    "code_check": ("number", "code"),
    "label_check": ("number", "label"),
    "file_check": ("number", "path", "hash", "size", "mtime_ns"),
}
OUTPUTS = {"outputs_check": ("number", "outputs")}  # only where these are kept

_ROWS = 1 << 14  # digested at once, so that what is needed stays in the processor's cache
_FACTOR = 0x9E3779B1  # odd, as the next; of Knuth's multiplicative hash, and of xxHash
_INVERSE = pow(_FACTOR, -1, 1 << 32)
_SPREAD = 0x85EBCA77

Sums = NDArray[np.uint32]


def names(outputs: bool) -> list[str]:
    """The checks of rows that have outputs, or have none."""
    return [*COLUMNS, *(OUTPUTS if outputs else ())]


def sums(table: pa.Table, name: str, about: str) -> Sums:
    """(n,) values of a check for rows as they are.

    Args:
        table: the rows, with the columns that the check covers.
        name: the check.
        about: what the index says of itself.
    """
    parts = [np.zeros(0, np.uint32)]
    for batch in table.select(list((COLUMNS | OUTPUTS)[name])).to_batches(max_chunksize=_ROWS):
        if not len(batch):
            continue
        part = np.full(len(batch), _start(about), np.uint32)
        for column in batch.columns:
            part *= np.uint32(_SPREAD)
            part += _of_column(column)
        parts.append(part)
    return np.concatenate(parts)


def total(stored: NDArray[np.uint32]) -> int:
    """The sum of checks."""
    return int(stored.sum(dtype=np.uint64))


def _of_column(column: pa.Array) -> Sums:
    """(n,) sums of the values, 0 for those that are null."""
    import pyarrow as pa

    sums = _of_texts(column) if pa.types.is_binary(column.type) else _of_words(column)
    sums += np.uint32(_SPREAD)  # so that nothing at all is not 0
    if column.null_count:
        sums[column.is_null().to_numpy(zero_copy_only=False)] = 0
    return sums


def _of_words(column: pa.Array) -> Sums:
    """(n,) sums of values of one width: of words times powers told by their place."""
    width = column.type.bit_width // 8
    begin, end = column.offset * width, (column.offset + len(column)) * width
    values = np.frombuffer(column.buffers()[1], np.uint8)[begin:end].reshape(-1, width)
    if width % 4:
        padded = np.zeros((len(column), -(-width // 4) * 4), np.uint8)
        padded[:, :width] = values
        values = padded
    words = values.view("<u4")
    sums = words[:, 0].astype(np.uint32)
    for place, power in enumerate(_powers(_FACTOR, words.shape[1])[1:], 1):
        sums += words[:, place] * power
    return sums


def _of_texts(column: pa.Array) -> Sums:
    """(n,) sums of values of any width: of each byte and 1, times powers told by its place.

    Powers are told by the place in all texts, and divided by that of the place where a text begins.
    """
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    begin, ends = ends[0], ends - ends[0]
    count = int(ends[-1])
    sums = np.zeros(count + 1, np.uint32)
    if count:
        terms = np.frombuffer(data, np.uint8)[begin : begin + count].astype(np.uint32)
        terms += np.uint32(1)
        terms *= _powers(_FACTOR, count)
        np.cumsum(terms, dtype=np.uint32, out=sums[1:])
    found: Sums = (sums[ends[1:]] - sums[ends[:-1]]) * _powers(_INVERSE, count + 1)[ends[:-1]]
    return found


@cache
def _start(about: str) -> int:
    return int.from_bytes(hashlib.blake2b(about.encode(), digest_size=4).digest(), "little")


def _powers(base: int, count: int) -> Sums:
    """The first powers of a number, from 1."""
    return _some_powers(base, 1 << count.bit_length())[:count]


@lru_cache(4)
def _some_powers(base: int, count: int) -> Sums:
    powers = np.full(count, base, np.uint32)
    powers[0] = 1
    np.cumprod(powers, dtype=np.uint32, out=powers)
    return powers
