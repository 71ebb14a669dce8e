import itertools
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dsh_cli.analysis.classes import (
    ClassPair,
    HardestPairs,
    NearestClass,
    Pair,
    class_table,
    hardest_pairs,
    nearest_classes,
    nearest_labels,
)
from dsh_cli.codes.bits import from_hex, pack
from dsh_cli.codes.bounds import class_distance_bound
from dsh_cli.codes.sets import CodeSet
from dsh_cli.errors import DataError
from tests.support.codes import code_set, random_codes
from tests.support.values import there


def test_class_table() -> None:
    codes = code_set(["f0", "f0", "f1", "0f", "0e", "0c"], [0, 0, 0, 1, 1, 1])
    table = class_table(codes, "test")
    first, second, third = table.classes
    assert (first.code, first.binary, first.count) == ("f0", "11110000", 3) and first.exact == pytest.approx(2 / 3)
    assert [vars(v) for v in first.variants] == [{"code": "f1", "count": 1, "distance": 1}]
    assert second.code == "0c"  # the smallest of equals
    assert [(v.code, v.distance) for v in second.variants] == [("0e", 1), ("0f", 2)]
    assert (third.code, third.count, third.variants) == (None, 0, ())
    assert table.class_distances.tolist() == [[0, 6, -1], [6, 0, -1], [-1, -1, -1]]
    assert (table.min_class_distance, there(table.bound).distance) == (6, 8)
    assert table.bit_balance[0] == pytest.approx(0.5)


def test_class_table_of_nothing() -> None:
    table = class_table(code_set([], []), "test")
    assert table.min_class_distance is None and table.bound is None


def slow_nearest(code: str, codes: CodeSet) -> NearestClass:
    """Every class looked at, picture by picture."""
    known: list[tuple[int, int, int, NearestClass]] = []
    for number, label in enumerate(codes.classes):
        pictures = [text for text, other in zip(codes.hex, codes.labels, strict=True) if other == number]
        if pictures:
            most = max(Counter(pictures).values())
            own = min(text for text, count in Counter(pictures).items() if count == most)
            away = (int(code, 16) ^ int(own, 16)).bit_count()
            known.append((away, -most, number, NearestClass(label, own, away, ())))
    least, _, taken, best = min(known, key=lambda one: one[:3])
    tied = tuple(other.label for away, _, number, other in known if away == least and number != taken)
    return replace(best, tied=tied)


@pytest.mark.parametrize(("bits", "seed"), [(3, 0), (4, 1), (5, 2), (6, 3), (8, 4), (12, 5), (70, 6)])
@pytest.mark.parametrize("room", [1 << 22, 20])
def test_the_nearest_classes_are_those_of_a_slow_search(
    bits: int, seed: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsh_cli.analysis.classes._COMPARED", room)
    known = random_codes(60, bits, 9, seed)
    known = replace(known, labels=np.where(known.labels == 4, -1, known.labels))  # a class without pictures
    asked = random_codes(80, bits, 9, 100 + seed)
    found = nearest_classes(asked.packed, class_table(known, "train"))
    assert found == tuple(slow_nearest(code, known) for code in asked.hex)
    if bits < 12:
        assert any(near.tied for near in found) and not all(near.tied for near in found)


def test_of_classes_equally_near_the_one_with_most_pictures_on_its_code_is_taken_and_of_equals_the_first() -> None:
    codes = code_set(["00", "03", "03", "0c", "0c", "30"], [0, 1, 1, 2, 2, 0], classes=("a", "b", "c"))
    table = class_table(codes, "train")
    assert [row.on_code for row in table.classes] == [1, 2, 2]
    asked = from_hex(["01", "05", "0f", "40", "00"], 8)
    assert nearest_classes(asked, table) == (
        NearestClass("b", "03", 1, ("a",)),
        NearestClass("b", "03", 2, ("a", "c")),
        NearestClass("b", "03", 2, ("c",)),
        NearestClass("a", "00", 1, ()),
        NearestClass("a", "00", 0, ()),
    )
    assert nearest_classes(asked[:0], table) == ()
    with pytest.raises(DataError, match="no class has a code"):
        nearest_classes(asked, class_table(code_set(["00"], [-1]), "train"))


def slow_hardest(codes: CodeSet, count: int, same: bool) -> tuple[Pair, ...]:
    """All pairs sorted one by one; a picture serves once."""
    outputs = there(codes.relaxed).astype(np.float64)
    pairs = [
        Pair(i, j, round(float(((outputs[i] - outputs[j]) ** 2).sum()), 6))
        for i, j in itertools.combinations(range(len(codes)), 2)
        if (codes.labels[i] == codes.labels[j]) == same
    ]
    taken: list[Pair] = []
    used: set[int] = set()
    for pair in sorted(pairs, key=lambda pair: -pair.distance if same else pair.distance):
        if len(taken) < count and not {pair.first, pair.second} & used:
            taken.append(pair)
            used |= {pair.first, pair.second}
    return tuple(taken)


@pytest.mark.parametrize("seed", range(8))
def test_the_hardest_pairs_are_those_of_all_pairs_sorted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = random_codes(40, 12, 5, seed)
    relaxed = rng.normal(size=(40, 12)).astype(np.float16)
    if seed % 2:
        relaxed = np.round(relaxed)  # many ties, which go to the first in order
    codes = replace(codes, relaxed=relaxed)
    for count in (0, 3, 100):
        pairs = hardest_pairs(codes, count)
        for found, same in ((pairs.same, True), (pairs.different, False)):
            expected = slow_hardest(codes, count, same)
            assert [(p.first, p.second) for p in found] == [(p.first, p.second) for p in expected]
            assert [p.distance for p in found] == pytest.approx([p.distance for p in expected], abs=2e-6)


def test_hardest_pairs_of_few_pictures_and_of_equal_codes() -> None:
    def pairs(labels: list[int], value: float = 0.1) -> HardestPairs:
        relaxed = np.full((len(labels), 8), value, np.float16)
        codes = CodeSet(8, pack(relaxed >= 0), np.array(labels, np.int64), ("a", "b"), (), relaxed)
        return hardest_pairs(codes, 8)

    assert pairs([]) == pairs([0])
    assert not pairs([]).same and not pairs([]).different
    assert pairs([0, 1]).different == (Pair(0, 1, 0.0),) and not pairs([0, 1]).same
    assert pairs([0, 0, 1, 1, 0]).same == (Pair(0, 1, 0.0), Pair(2, 3, 0.0))
    assert pairs([0, 0, 1], np.inf).same == (Pair(0, 1, 0.0),)


def slow_table(codes: CodeSet) -> list[tuple[str | None, int, float, list[tuple[str, int, int]]]]:
    """Code, pictures, share and variants of each class, picture by picture."""
    rows: list[tuple[str | None, int, float, list[tuple[str, int, int]]]] = []
    for number in range(len(codes.classes)):
        mine = [text for text, label in zip(codes.hex, codes.labels, strict=True) if label == number]
        ranked = sorted(Counter(mine).items(), key=lambda one: (-one[1], int(one[0], 16)))
        own = ranked[0] if ranked else (None, 0)
        rows.append(
            (
                own[0],
                len(mine),
                own[1] / max(1, len(mine)),
                [(text, n, (int(text, 16) ^ int(str(own[0]), 16)).bit_count()) for text, n in ranked[1:]],
            )
        )
    return rows


@pytest.mark.parametrize(("bits", "seed"), [(2, 0), (5, 1), (8, 2), (9, 3), (64, 4), (70, 5), (130, 6)])
def test_the_class_table_is_that_of_a_slow_count(bits: int, seed: int) -> None:
    codes = random_codes(90, bits, 7, seed)
    few = codes.packed[np.random.default_rng(seed).integers(0, 9, 90)]  # codes that many pictures have
    codes = replace(codes, packed=few, labels=np.where(codes.labels == 3, -1, codes.labels))
    table = class_table(codes, "test")
    found = [
        (row.code, row.count, row.exact, [(v.code, v.count, v.distance) for v in row.variants]) for row in table.classes
    ]
    assert found == slow_table(codes)
    assert [row.binary for row in table.classes] == [
        row.code and f"{int(row.code, 16):0{bits}b}" for row in table.classes
    ]
    bits_of = [f"{int(text, 16):0{bits}b}" for text in codes.hex]
    assert table.bit_balance == pytest.approx([np.mean([text[k] == "1" for text in bits_of]) for k in range(bits)])


@pytest.mark.parametrize("seed", range(4))
def test_distances_between_classes_are_those_of_all_pairs(seed: int) -> None:
    codes = random_codes(60, 8, 12, seed)
    table = class_table(replace(codes, labels=np.where(codes.labels == 5, -1, codes.labels)), "test")
    own = {number: int(row.code, 16) for number, row in enumerate(table.classes) if row.code is not None}
    pairs = [((own[a] ^ own[b]).bit_count(), a, b) for a, b in itertools.combinations(own, 2)]
    assert table.present.tolist() == list(own) and 5 not in own
    assert table.min_class_distance == min(pairs)[0]
    for count in (1, 7, 1000):
        assert [(p.distance, p.first, p.second) for p in table.closest(count)] == sorted(pairs)[:count]
    matrix = table.class_distances
    assert all(matrix[a, b] == matrix[b, a] == distance for distance, a, b in pairs)
    assert (matrix[5] == -1).all() and (matrix[:, 5] == -1).all() and matrix[0, 0] == 0
    assert there(table.bound).distance == there(class_distance_bound(8, len(own))).distance


def peak(work: Callable[[], object]) -> float:
    """MiB held at once while something is done, of Python and NumPy."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def test_many_classes_take_no_more_memory_than_their_pictures() -> None:
    """A matrix of 5,000 by 5,000 would be 24 MiB of bytes, and 191 of the numbers or lists that it was made of."""
    count = 5000
    names = tuple(map(str, range(count)))
    packed = np.random.default_rng(0).integers(0, 256, (2 * count, 3), np.uint8)
    codes = CodeSet(24, packed, np.arange(2 * count) % count, names, ())

    def work() -> None:
        table = class_table(codes, "test")
        assert table.min_class_distance == 0 or len(table.closest(10)) == 10

    assert peak(work) < 60


def test_names_without_pictures_take_little() -> None:
    """As in a run of a stranger's whose list of classes is long."""
    names = tuple(map(str, range(50_000)))
    codes = CodeSet(8, np.array([[1], [3]], np.uint8), np.array([7, 49_999]), names, ())
    assert peak(lambda: class_table(codes, "test").min_class_distance) < 60
    assert class_table(codes, "test").closest(3) == (ClassPair(7, 49_999, 1),)


def test_the_names_of_the_nearest_classes_are_found_without_those_that_tie() -> None:
    """Where codes have collapsed, each of 3,000 codes ties with 3,000 classes: 69 MiB of references to names."""
    count = 3000
    codes = CodeSet(16, np.zeros((count, 2), np.uint8), np.arange(count), tuple(map(str, range(count))), ())
    table = class_table(codes, "train")
    assert nearest_labels(codes.packed, table) == ("0",) * count
    assert peak(lambda: nearest_labels(codes.packed, table)) < 150  # blocks of distances
    few = random_codes(40, 5, 9, 0)
    known = class_table(random_codes(60, 5, 9, 1), "train")
    assert nearest_labels(few.packed, known) == tuple(near.label for near in nearest_classes(few.packed, known))
    with pytest.raises(DataError, match="no class has a code"):
        nearest_labels(few.packed, class_table(code_set(["00"], [-1]), "train"))
