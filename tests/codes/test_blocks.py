"""Search in blocks: what a slow search of all codes finds, however they are cut, lie and are searched."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsh_cli.codes import blocks
from dsh_cli.codes.bits import Packed, pack, unpack
from dsh_cli.codes.blocks import Block, Held, Near, nearest_in, within_in
from dsh_cli.errors import UsageError

T = TypeVar("T")


def made(count: int, bits: int, rng: np.random.Generator, distinct: int) -> Packed:
    """Codes with many ties."""
    return pack(rng.integers(0, 2, (distinct, bits)))[rng.integers(0, distinct, count)]


def cut(packed: Packed, rng: np.random.Generator, in_order: bool) -> Held:
    """Codes in blocks of any size, none too; `order` is a place in `packed`, and `places` are that and 1000."""
    count = len(packed)
    lies = np.arange(count) if in_order else rng.permutation(count)
    ends = np.sort(rng.integers(0, count + 1, rng.integers(0, 6)))
    found = []
    for part in np.split(lies, ends):
        order = np.sort(part)
        if len(order) and order[-1] - order[0] == len(order) - 1 and rng.random() < 0.7:
            found.append(Block(packed[order], int(order[0]), int(order[0]) + 1000))
        else:
            found.append(Block(packed[order], order, order + 1000))
    return Held(found)


def reference(packed: Packed, query: Packed, bits: int, radius: int | None) -> list[tuple[int, int]]:
    """(distance, row), bit by bit."""
    distances: list[int] = (unpack(packed, bits) != unpack(query[None], bits)).sum(axis=1).tolist()
    return sorted((d, row) for row, d in enumerate(distances) if radius is None or d <= radius)


def told(near: Near, packed: Packed) -> list[tuple[int, int]]:
    assert (near.places == near.order + 1000).all() and (near.packed == packed[near.order]).all()
    assert near.places.dtype == near.order.dtype == np.int64 and near.distances.dtype == np.int32
    return list(zip(near.distances.tolist(), near.order.tolist(), strict=True))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([1, 7, 8, 24, 64, 100]), st.integers(0, 60), st.integers(1, 70), st.integers(0, 2**32),
    st.none() | st.integers(0, 30), st.integers(1, 3), st.booleans(),
)  # fmt: skip
def test_the_nearest_of_blocks_are_those_of_a_slow_search(
    bits: int, count: int, k: int, seed: int, radius: int | None, threads: int, in_order: bool
) -> None:
    rng = np.random.default_rng(seed)
    packed, queries = made(count, bits, rng, 5), made(3, bits, rng, 3)
    for near, query in zip(
        nearest_in(cut(packed, rng, in_order), queries, bits, k, radius, threads), queries, strict=True
    ):
        assert told(near, packed) == reference(packed, query, bits, radius)[:k]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([1, 7, 8, 24, 64, 100]), st.integers(0, 60), st.integers(0, 2**32), st.integers(0, 60),
    st.integers(1, 150), st.integers(1, 3), st.booleans(),
)  # fmt: skip
def test_all_within_a_radius_are_found_for_as_many_queries_as_have_room(
    bits: int, count: int, seed: int, radius: int, most: int, threads: int, in_order: bool
) -> None:
    rng = np.random.default_rng(seed)
    packed, queries = made(count, bits, rng, 5), made(5, bits, rng, 5)
    expected = [reference(packed, query, bits, radius) for query in queries]
    found = within_in(cut(packed, rng, in_order), queries, bits, radius, most, threads)
    fit = sum(total <= most for total in np.cumsum([len(one) for one in expected]).tolist())
    assert [told(near, packed) for near in found] == expected[: max(1, fit)]


def test_of_a_later_block_only_what_may_be_among_the_nearest_is_kept() -> None:
    """Else each block would give k codes to each query, though nearly all are farther than those there are."""
    rng = np.random.default_rng(0)
    packed, queries = pack(rng.integers(0, 2, (40_000, 64))), pack(rng.integers(0, 2, (4, 64)))

    @dataclass(frozen=True)
    class Watched:
        held: Held

        def __len__(self) -> int:
            return len(self.held)

        def each(self, work: Callable[[Block], T], threads: int) -> Iterator[T]:
            for block in self.held.blocks:
                part = work(block)
                assert isinstance(part, Near)
                kept.append(part.distances.shape[1])
                yield part

    kept: list[int] = []
    starts = range(0, 40_000, 2000)
    held = Held([Block(packed[start : start + 2000], start, start) for start in starts])
    nearest_in(Watched(held), queries, 64, 100)
    assert kept[0] == 100 and all(few < 60 for few in kept[5:])
    kept.clear()
    nearest_in(Watched(held), queries, 64, 100, 12)
    assert max(kept) < 20


def test_codes_in_memory_are_in_blocks_enough_for_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_LEAST", 10)
    monkeypatch.setattr(blocks, "_MOST", 40)
    packed = np.zeros((100, 1), np.uint8)
    sizes = {
        (count, threads): [len(block) for block in Held.of(packed[:count], np.arange(count), threads).blocks]
        for count, threads in ((9, 4), (40, 1), (60, 3), (100, 2))
    }
    assert sizes == {(9, 4): [9], (40, 1): [40], (60, 3): [20] * 3, (100, 2): [40, 40, 20]}
    assert Held.of(packed, np.arange(100), 2).blocks[0].packed.base is packed  # none is copied


def test_faiss_has_its_threads_again_after_a_search() -> None:
    import faiss

    packed, before = np.zeros((9, 1), np.uint8), faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        nearest_in(Held.of(packed, np.arange(9), 1), packed, 8, 2)
        assert faiss.omp_get_max_threads() == 3
        with pytest.raises(UsageError, match="at least one"):
            nearest_in(Held.of(packed, np.arange(9), 1), packed, 8, 0)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)
