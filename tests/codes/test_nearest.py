"""Exact search against a slow reference: ties in the order of the database, codes of any length."""

import itertools
import os
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsh_cli.codes import nearest as module
from dsh_cli.codes.bits import Packed, pack, unpack
from dsh_cli.codes.nearest import _WIDTHS, _padded, closest, nearest, within
from dsh_cli.errors import UsageError

LENGTHS = [1, 7, 8, 9, 12, 24, 31, 32, 33, 48, 63, 64, 65, 100, 128, 129, 160, 200, 256, 300, 512, 700, 1024]


def codes(count: int, bits: int, rng: np.random.Generator, distinct: int | None = None) -> Packed:
    """(count, bytes) packed codes, with many ties where only a few are distinct."""
    packed = pack(rng.integers(0, 2, (distinct or count, bits)))
    return packed if distinct is None else packed[rng.integers(0, distinct, count)]


def reference(database: Packed, query: Packed, bits: int) -> tuple[list[int], list[int]]:
    """Rows and distances in order, bit by bit."""
    distances: list[int] = (unpack(database, bits) != unpack(query[None], bits)).sum(axis=1).tolist()
    rows = sorted(range(len(distances)), key=lambda row: (distances[row], row))
    return rows, [distances[row] for row in rows]


@pytest.mark.parametrize("bits", LENGTHS)
def test_both_are_the_slow_reference_for_any_length(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for distinct in (None, 5):
        database = codes(300, bits, rng, distinct)
        queries = np.concatenate([codes(3, bits, rng), database[:2]])
        expected = [reference(database, query, bits) for query in queries]
        for k in (1, 10, 299, 300, 1000):
            rows, distances = nearest(database, queries, bits, k)
            assert rows.dtype == np.int64 and distances.dtype == np.int32 and rows.shape == (5, min(k, 300))
            assert rows.tolist() == [r[:k] for r, _ in expected]
            assert distances.tolist() == [d[:k] for _, d in expected]
        for radius in (0, 1, bits // 2, bits, bits + 5):
            for (rows, distances), (all_rows, all_distances) in zip(
                within(database, queries, bits, radius), expected, strict=True
            ):
                inside = sum(distance <= radius for distance in all_distances)
                assert rows.dtype == np.int64 and distances.dtype == np.int32
                assert rows.tolist() == all_rows[:inside] and distances.tolist() == all_distances[:inside]


@cache
def tied(bits: int) -> tuple[Packed, Packed, NDArray[np.int64]]:
    """A database of few different codes, queries, and for each of these all rows in order."""
    rng = np.random.default_rng(bits)
    database, queries = codes(20_000, bits, rng, 7), codes(40, bits, rng)
    between = (unpack(database, bits)[None] != unpack(queries, bits)[:, None]).sum(2)
    return database, queries, np.argsort(between, axis=1, kind="stable")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("room", [0, 100_000, 1 << 26])
def test_ties_keep_their_order_in_every_way_of_searching(
    threads: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    monkeypatch.setattr("dsh_cli.codes.nearest._COUNTED", room)
    try:
        for bits in (1, 8, 48, 64):
            database, queries, order = tied(bits)
            for k in (1, 17, 5000):
                assert (nearest(database, queries, bits, k)[0] == order[:, :k]).all()
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize(
    ("room", "batches"),
    [
        (33 * 50 * 8 - 1, [("hc", 40)]),
        (33 * 50 * 8, [("mc", 1)] * 40),
        (33 * 50 * 8 * 15 + 99, [("mc", 15)] * 2 + [("mc", 10)]),
    ],
)
def test_lists_for_each_distance_take_no_more_than_they_may(
    room: int, batches: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """faiss keeps k rows for each of 8 x 4 + 1 distances of a query, 8 bytes each; else a heap, all queries at once."""
    import faiss

    asked = []

    def knn_hamming(queries: Packed, database: Packed, k: int, variant: str) -> Any:
        asked.append((variant, len(queries)))
        return found(queries, database, k, variant)

    found = faiss.knn_hamming
    monkeypatch.setattr(faiss, "knn_hamming", knn_hamming)
    monkeypatch.setattr("dsh_cli.codes.nearest._COUNTED", room)
    rng = np.random.default_rng(0)
    nearest(codes(50, 24, rng), codes(40, 24, rng), 24, 60)
    assert asked == batches


def test_codes_are_padded_with_zeros_to_a_width_that_faiss_is_fast_with() -> None:
    assert _WIDTHS == (4, 8, 16, 20, 32, 64)
    for width, padded in {
        1: 4,
        4: 4,
        5: 8,
        8: 8,
        9: 16,
        17: 20,
        20: 20,
        21: 32,
        33: 64,
        64: 64,
        65: 65,
        128: 128,
    }.items():
        rows = np.random.default_rng(width).integers(1, 256, (6, width), np.uint8)
        found = _padded(rows[::2])
        assert found.shape == (3, padded) and found.flags.c_contiguous
        assert (found[:, :width] == rows[::2]).all() and not found[:, width:].any()


@given(st.integers(1, 1024), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_padding_changes_no_distance(bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    database, query = codes(20, bits, rng), codes(1, bits, rng)
    rows, distances = nearest(database, query, bits, 20)
    differing = unpack(database, bits) != unpack(query, bits)
    assert (distances[0] == differing.sum(1)[rows[0]]).all()


@pytest.mark.parametrize(
    "room", [1, 50, 1 << 20]
)  # of pairs: a row at a time, groups that agree in a byte, all at once
def test_the_closest_pairs_are_those_of_all_pairs(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsh_cli.codes.nearest._PAIRS", room)
    for bits, distinct in itertools.product((1, 3, 8, 9, 16, 24, 64, 70), (None, 4)):
        packed = codes(40, bits, np.random.default_rng(bits), distinct)
        rows = unpack(packed, bits)
        pairs = sorted((int((rows[i] != rows[j]).sum()), i, j) for i, j in itertools.combinations(range(40), 2))
        for count in (1, 3, 20, 2000):
            found, distances = closest(packed, count)
            assert [(d, i, j) for (i, j), d in zip(found.tolist(), distances.tolist(), strict=True)] == pairs[:count]


def compared(packed: Packed, count: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the groups of codes of which all pairs are compared."""
    sizes = []

    def spied(words: Any, group: NDArray[np.int64], best: Any, count: int) -> Any:
        sizes.append(len(group))
        return compare(words, group, best, count)

    compare = module._closest
    with monkeypatch.context() as patched:
        patched.setattr(module, "_closest", spied)
        closest(packed, count)
    return sizes


def test_all_pairs_are_compared_only_where_groups_hold_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = np.array([[i, i] for i in range(8)] * 2 + [[3, 7], [5, 6]], np.uint8)
    of_bytes = [2, 2, 2, 3, 2, 3, 2, 2] + [2, 2, 2, 2, 2, 2, 3, 3]  # rows that agree in the first, and in the second
    monkeypatch.setattr("dsh_cli.codes.nearest._PAIRS", 80)
    assert compared(packed, 8, monkeypatch) == of_bytes  # so many pairs are equal
    assert compared(packed, 12, monkeypatch) == of_bytes  # and four a bit apart, which agree in a byte
    assert compared(packed, 13, monkeypatch) == [*of_bytes, 18]  # two bits apart, in which no byte need agree
    monkeypatch.setattr("dsh_cli.codes.nearest._PAIRS", 81)  # 18^2 / 2^2: groups are worth it from there
    assert compared(packed, 8, monkeypatch) == [18]


def test_one_code_has_no_pair() -> None:
    for few in (0, 1):
        rows, distances = closest(np.zeros((few, 2), np.uint8), 3)
        assert rows.shape == (0, 2) and distances.shape == (0,)


def test_nothing_to_find() -> None:
    empty, query = np.zeros((0, 2), np.uint8), np.zeros((3, 2), np.uint8)
    rows, distances = nearest(empty, query, 16, 5)
    assert rows.shape == distances.shape == (3, 0)
    assert [len(rows) for rows, _ in within(empty, query, 16, 5)] == [0, 0, 0]
    assert nearest(query, empty, 16, 5)[0].shape == (0, 3)
    assert within(query, empty, 16, 5) == []
    assert [len(rows) for rows, _ in within(query, query, 16, -1)] == [0, 0, 0]


def test_codes_of_another_length_and_no_neighbours() -> None:
    codes_of_16 = np.zeros((3, 2), np.uint8)
    for bits in (8, 17):
        with pytest.raises(UsageError, match=f"codes of {bits} bits"):
            nearest(codes_of_16, codes_of_16, bits, 1)
        with pytest.raises(UsageError, match=f"codes of {bits} bits"):
            within(codes_of_16, codes_of_16, bits, 1)
    with pytest.raises(UsageError, match="at least one"):
        nearest(codes_of_16, codes_of_16, 16, 0)


def test_importing_it_does_not_import_faiss() -> None:
    script = "import sys, dsh_cli.codes.nearest; sys.exit('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=os.environ).returncode == 0
