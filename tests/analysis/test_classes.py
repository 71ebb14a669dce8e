import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from dsh_cli.analysis.classes import HardestPairs, NearestClass, Pair, class_table, hardest_pairs, nearest_classes
from dsh_cli.codes.bits import from_hex, pack
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
