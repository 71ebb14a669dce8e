"""Exact search against a slow reference: ties in the order of the database, codes of any length."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsh_cli.codes.bits import Packed, pack, unpack
from dsh_cli.codes.nearest import closest, nearest, within
from dsh_cli.errors import UsageError

LENGTHS = [1, 7, 8, 9, 12, 24, 31, 32, 33, 48, 63, 64, 65, 100, 128, 129, 160, 200, 256, 300, 512, 700, 1024]


def codes(count: int, bits: int, rng: np.random.Generator, distinct: int | None = None) -> Packed:
    """(count, bytes) packed codes, with many ties where only a few are distinct."""
    packed = pack(rng.integers(0, 2, (distinct or count, bits)))
    return packed if distinct is None else packed[rng.integers(0, distinct, count)]


def reference(database: Packed, query: Packed, bits: int) -> tuple[list[int], list[int]]:
    """Rows and distances in order, bit by bit."""
    differing = unpack(database, bits) != unpack(query[None], bits)
    distances = [sum(map(int, row)) for row in differing]
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
        rng = np.random.default_rng(0)
        for bits in (1, 8, 48, 64):
            database, queries = codes(20_000, bits, rng, 7), codes(40, bits, rng)
            between = (unpack(database, bits)[None] != unpack(queries, bits)[:, None]).sum(2)
            for k in (1, 17, 5000):
                rows, _ = nearest(database, queries, bits, k)
                assert (rows == np.argsort(between, axis=1, kind="stable")[:, :k]).all()
    finally:
        faiss.omp_set_num_threads(before)


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
