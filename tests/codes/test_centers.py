"""Hash centers against what is known of such codes, and against exhaustive search where that ends."""

import itertools
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from dsh_cli.codes.bounds import class_distance_bound
from dsh_cli.codes.centers import (
    _linear,
    _pieces,
    _residues,
    _searched,
    _walsh,
    construct,
    drawn,
    hadamard,
    minimum_distance,
    offsets,
    side_by_side,
    why_none,
)
from dsh_cli.errors import UsageError
from tests.support.values import there


def slow_minimum(words: NDArray[np.uint8]) -> int:
    return min(int((a != b).sum()) for a, b in itertools.combinations(words, 2))


@pytest.mark.parametrize(
    ("bits", "classes", "distance"),
    # A(n, d) of MacWilliams and Sloane, appendix A; the Plotkin bound beyond; [24, 12, 8] is Golay's code
    [(8, 10, 4), (12, 10, 6), (16, 10, 8), (48, 10, 26), (64, 10, 35), (8, 16, 4), (8, 20, 3), (9, 20, 4), (24, 48, 12)]
    + [(5, 4, 3), (6, 4, 4), (10, 6, 6), (20, 40, 10), (64, 100, 32), (128, 256, 64), (2, 4, 1), (1, 2, 1), (3, 8, 1)],
)
def test_known_answers(bits: int, classes: int, distance: int) -> None:
    found = construct(bits, classes)
    assert found.words.shape[0] >= classes and found.words.shape[1] == bits
    assert found.distance == slow_minimum(found.words) == distance
    assert found.distance <= there(found.bound).distance


# largest minimum distance of a linear code of `dimension`, from that length to 16 (Brouwer's table)
LINEAR = {
    1: range(1, 17),
    2: (1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8, 9, 10, 10),
    3: (1, 2, 2, 3, 4, 4, 4, 5, 6, 6, 7, 8, 8, 8),
    4: (1, 2, 2, 3, 4, 4, 4, 5, 6, 6, 7, 8, 8),
    5: (1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 7, 8),
    6: (1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6),
    7: (1, 2, 2, 2, 3, 4, 4, 4, 5, 6),
}


@pytest.mark.parametrize("dimension", LINEAR)
def test_short_linear_codes_are_the_best_there_are(dimension: int) -> None:
    for n, distance in enumerate(LINEAR[dimension], dimension):
        words = there(_linear(n, 2**dimension, 0))
        assert words.shape == (2**dimension, n) and slow_minimum(words) == distance, n
        assert not words[0].any() and {*map(bytes, words[1] ^ words)} == {*map(bytes, words)}  # a sum is a word


def test_a_linear_code_has_room_for_all_classes_or_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert there(_linear(6, 5, 0)).shape == (8, 6) and there(_linear(6, 9, 0)).shape == (16, 6)
    assert _linear(4, 17, 0) is None
    monkeypatch.setattr("dsh_cli.codes.centers._LINEAR_DIMENSION", 5)
    assert there(_linear(12, 32, 0)).shape == (32, 12) and _linear(12, 33, 0) is None


@pytest.mark.parametrize(("bits", "classes"), [(10, 2), (20, 10), (15, 16), (24, 24), (9, 40), (32, 20)])
def test_codes_side_by_side_are_the_best_sum_of_pieces(bits: int, classes: int) -> None:
    pieces = _pieces(bits, classes, 0)
    for length, (distance, words) in pieces.items():
        assert 0 < length <= bits and words.shape[1] == length and len(words) >= classes
        assert 0 < distance <= slow_minimum(words)

    @cache
    def best(room: int) -> int:
        return max((best(room - n) + d for n, (d, _) in pieces.items() if n <= room), default=0)

    words = side_by_side(bits, classes)
    assert words.shape[1] == bits and len(words) >= classes and minimum_distance(words) >= best(bits)


def test_short_pieces_are_the_best_linear_codes() -> None:
    assert {n: distance for n, (distance, _) in _pieces(16, 16, 0).items()} == dict(enumerate(LINEAR[4], 4))


def test_more_classes_than_are_searched_for_have_all_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsh_cli.codes.centers._LINEAR_DIMENSION", 3)
    assert sorted(map(tuple, side_by_side(6, 50).tolist())) == list(itertools.product((0, 1), repeat=6))


@pytest.mark.parametrize(("order", "classes", "length"), [(12, 24, 12), (12, 12, 11), (12, 6, 10), (20, 10, 18)])
def test_hadamard_codes_are_shortened_for_fewer_classes(order: int, classes: int, length: int) -> None:
    """(n, 2n), (n - 1, n) and (n - 2, n / 2) words, all with distance n / 2 (MacWilliams and Sloane, chapter 2)."""
    distance, words = _pieces(order, classes, 0)[length]
    assert distance == order // 2 and len(words) == classes


@pytest.mark.parametrize("q", [3, 5, 7, 9, 13, 25, 49])
def test_residues_are_those_of_a_conference_matrix(q: int) -> None:
    """Q Q' = q I - J and Q J = 0, symmetric where -1 is a square (Paley 1933)."""
    residues = there(_residues(q))
    assert (residues @ residues.T == q * np.eye(q) - 1).all() and not residues.sum(axis=1).any()
    assert (residues == (1 if q % 4 == 1 else -1) * residues.T).all()


@pytest.mark.parametrize("q", [1, 2, 4, 8, 15, 21, 27, 33, 81])
def test_there_are_no_residues_of_other_orders(q: int) -> None:
    assert _residues(q) is None


def test_the_transform_is_its_definition() -> None:
    values = np.random.default_rng(0).normal(size=32)
    u = np.arange(32)
    signs = 1 - 2.0 * (np.bitwise_count(u[:, None] & u) & 1)
    assert _walsh(values) == pytest.approx(signs @ values)


@pytest.mark.parametrize(("bits", "classes", "distance"), [(5, 4, 3), (8, 20, 3), (9, 20, 4), (10, 6, 6), (6, 64, 1)])
def test_words_are_found_one_by_one(bits: int, classes: int, distance: int) -> None:
    words = there(_searched(bits, classes, distance, 0))
    assert words.shape == (classes, bits) and slow_minimum(words) >= distance


def test_no_words_are_found_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsh_cli.codes.centers._SEARCHED_ROUNDS", 200)
    assert _searched(5, 5, 3, 0) is None


def test_the_smallest_distance_is_found_in_any_block() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2, (2500, 64), np.uint8)
    words[[3, 2400]] = words[[3, 3]]
    words[2400, 5] ^= 1
    assert minimum_distance(words) == 1
    assert minimum_distance(np.array([[0, 1, 1], [1, 0, 0]], np.uint8)) == 3


@pytest.mark.parametrize("classes", [2, 3, 5, 7, 10, 16])
def test_few_classes_have_all_the_room_there_is(classes: int) -> None:
    for bits in range((classes - 1).bit_length(), 65):
        found = construct(bits, classes)
        assert found.distance == minimum_distance(found.words)
        assert found.distance == there(found.bound).distance, bits


@pytest.mark.parametrize(
    ("bits", "classes", "least"), [(32, 100, 14), (48, 100, 22), (64, 1000, 26), (128, 1000, 56), (24, 1000, 8)]
)
def test_many_classes_come_near_it(bits: int, classes: int, least: int) -> None:
    """`least` is what the search has reached; tables of linear codes (Grassl) have 0 to 2 more."""
    found = construct(bits, classes)
    assert least <= found.distance <= there(class_distance_bound(bits, classes)).distance
    assert len(np.unique(found.words, axis=0)) == len(found.words) >= classes


@pytest.mark.parametrize(("bits", "classes"), [(1024, 10), (1024, 1024), (7, 128), (10, 1024), (13, 2**13)])
def test_the_ends_of_the_range(bits: int, classes: int) -> None:
    found = construct(bits, classes)
    assert len(found.words) >= classes
    assert len(np.unique(np.packbits(found.words, axis=1), axis=0)) == len(found.words)


def test_one_class_and_too_many() -> None:
    assert construct(8, 1).words.shape == (1, 8)
    with pytest.raises(UsageError, match=r"257 classes cannot have different codes of 8 bits"):
        construct(8, 257)


def test_one_seed_gives_one_code() -> None:
    first, again = construct(24, 50, seed=3), construct(24, 50, seed=3)
    assert (first.words == again.words).all()


@pytest.mark.parametrize("order", [1, 2, *range(4, 133, 4)])
def test_hadamard_matrices(order: int) -> None:
    matrix = hadamard(order)
    if matrix is None:
        assert order in (92, 116)  # Williamson's, not Sylvester's or Paley's
        return
    wide = matrix.astype(int)
    assert (wide @ wide.T == order * np.eye(order)).all()
    assert (matrix[0] == 1).all() and (matrix[:, 0] == 1).all()
    assert hadamard(order + 1) is None or order < 2


@pytest.mark.parametrize(
    ("bits", "count", "why"),
    [
        (14, 1, "there is one class"),
        (14, 2, ""),
        (14, 3000, ""),
        (14, 3001, "3,001 classes would take too long, 3,000 at most"),
        (14, 2**14, "16,384 classes would take too long, 3,000 at most"),
        (14, 2**14 + 1, "16385 classes cannot have different codes of 14 bits"),
        (1, 2, ""),
        (1, 3, "3 classes cannot have different codes of 1 bits"),
        (1024, 3000, ""),
    ],
)
def test_how_many_classes_have_centers(bits: int, count: int, why: str) -> None:
    assert why_none(bits, count) == why


@pytest.mark.parametrize(("bits", "classes", "rank"), [(8, 10, 8), (12, 10, 10), (16, 12, 12), (12, 100, 12)])
def test_centers_differ_in_as_many_ways_as_they_can(bits: int, classes: int, rank: int) -> None:
    """Of the sixteen best words of 8 bits, five and their complements differ in five: three bits would be by lot."""
    for seed in range(5):
        words = drawn(bits, classes, seed)
        assert np.linalg.matrix_rank(1 - 2 * words.astype(float)) == rank
        assert len(np.unique(words, axis=0)) == classes
        assert minimum_distance(words) == construct(bits, classes, seed).distance
    assert (drawn(bits, classes, 1) != drawn(bits, classes, 2)).any()


def unevenness(words: NDArray[np.uint8], found: NDArray[np.float64]) -> float:
    """How far the moments at which bits change, from a center to another, are from evenly spread: mean over pairs."""
    total = []
    for one, other in itertools.combinations(words, 2):
        differ = np.flatnonzero(one != other)
        moments = sorted((1.0 - 2 * one[bit]) * found[bit] for bit in differ)
        even = [(2 * number + 1) / len(differ) - 1 for number in range(len(differ))]
        total.append(np.mean((np.array(moments) - even) ** 2))
    return float(np.mean(total))


@pytest.mark.parametrize(("bits", "classes"), [(1, 2), (2, 4), (8, 10), (12, 10), (48, 10), (64, 100), (300, 16)])
def test_offsets_are_one_of_each_size_and_every_bit_has_one(bits: int, classes: int) -> None:
    words = drawn(bits, classes)
    found = offsets(words)
    assert found.shape == (bits,) and found.dtype == np.float64 and np.abs(found).max() <= 1
    assert np.sort(np.abs(found)) == pytest.approx(np.sort(np.abs(np.linspace(-1, 1, bits))), abs=1e-12)
    assert (found == offsets(words)).all()


@pytest.mark.parametrize(("bits", "classes"), [(8, 10), (12, 10), (48, 10), (32, 16)])
def test_bits_change_one_after_the_other_more_evenly_than_by_lot(bits: int, classes: int) -> None:
    words, rng = drawn(bits, classes), np.random.default_rng(1)
    found = unevenness(words, offsets(words))
    by_lot = [unevenness(words, np.linspace(-1, 1, bits)[rng.permutation(bits)]) for _ in range(20)]
    assert found < 0.75 * min(by_lot) and unevenness(words, np.zeros(bits)) > 1.5 * found


def test_of_two_classes_the_bits_change_as_evenly_as_can_be() -> None:
    words = np.array([[0] * 8, [1] * 8], np.uint8)
    assert unevenness(words, offsets(words)) < 0.01
    assert np.sort(offsets(words)) == pytest.approx(np.linspace(-1, 1, 8))


def test_offsets_of_many_centers_are_made_for_some_of_them_and_take_no_time() -> None:
    words = np.random.default_rng(0).integers(0, 2, (3000, 1024), np.uint8)
    assert np.unique(np.abs(offsets(words)).round(12)).size == 512  # each size both ways round, or twice one way
