"""The bound against what the module does not use: Delsarte's linear program, and codes found by search."""

import itertools
from math import comb

import numpy as np
import pytest
from scipy.optimize import linprog

from dsh_cli.codes.bounds import _TABLE, _largest_code, _sphere_packing, class_distance_bound
from tests.support.values import there


@pytest.mark.parametrize(
    ("bits", "classes", "distance"),
    [(8, 10, 4), (12, 10, 6), (16, 10, 8), (48, 10, 26), (8, 2, 8), (8, 16, 4), (8, 17, 3), (8, 20, 3), (8, 21, 2)]
    + [(8, 128, 2), (8, 129, 1), (8, 256, 1), (8, 257, 0), (1, 2, 1), (1, 3, 0), (24, 4096, 8), (23, 4096, 7)],
)
def test_known_answers(bits: int, classes: int, distance: int) -> None:
    assert there(class_distance_bound(bits, classes)).distance == distance


def test_fewer_than_two_classes_have_no_distance() -> None:
    assert class_distance_bound(8, 1) is None


def test_the_source_is_named() -> None:
    assert there(class_distance_bound(8, 10)).source == "table of A(n,d)"
    assert there(class_distance_bound(48, 10)).source == "Plotkin bound"


def test_more_classes_never_raise_it_and_more_bits_never_lower_it() -> None:
    values = np.array([[there(class_distance_bound(k, c)).distance for c in range(2, 70)] for k in range(1, 33)])
    assert (np.diff(values, axis=1) <= 0).all()
    assert (np.diff(values, axis=0) >= 0).all()


@pytest.mark.parametrize(("n", "d"), sorted(_TABLE))
def test_no_table_entry_exceeds_delsartes_linear_program(n: int, d: int) -> None:
    """An entry above a proved upper bound would be wrong (Delsarte 1973; even weights, for d is even)."""
    weights = range(d, n + 1, 2)
    krawtchouk = [
        [sum((-1) ** j * comb(i, j) * comb(n - i, k - j) for j in range(k + 1)) for i in weights]
        for k in range(n // 2 + 1)
    ]
    # maximise 1 + sum A_i with sum A_i K_k(i) >= -K_k(0), each row scaled by K_k(0) = C(n, k)
    rows = -np.array(krawtchouk, float) / np.array([[comb(n, k)] for k in range(n // 2 + 1)])
    answer = linprog(-np.ones(len(rows[0])), A_ub=rows, b_ub=np.ones(len(rows)), method="highs")
    assert _TABLE[n, d] <= 1 - answer.fun + 1e-6


@pytest.mark.parametrize(("n", "d"), [(n, d) for n, d in sorted(_TABLE) if n <= 12])
def test_no_code_that_a_greedy_search_finds_is_larger_than_the_table_says(n: int, d: int) -> None:
    words: list[int] = []
    for word in range(2**n):  # a lexicode
        if all((word ^ other).bit_count() >= d for other in words):
            words.append(word)
    assert len(words) <= _TABLE[n, d]


def test_small_cases_equal_exhaustive_search() -> None:
    for n in range(1, 5):
        for classes in range(2, 2**n + 1):
            best = max(
                min((a ^ b).bit_count() for a, b in itertools.combinations((0, *rest), 2))
                for rest in itertools.combinations(range(1, 2**n), classes - 1)
            )
            assert there(class_distance_bound(n, classes)).distance == best, (n, classes)


def test_the_table_is_that_of_its_source_read_by_length() -> None:
    by_length = {
        6: {4: 4}, 7: {4: 8}, 8: {4: 16}, 9: {4: 20, 6: 4}, 10: {4: 40, 6: 6}, 11: {4: 72, 6: 12},
        12: {4: 144, 6: 24, 8: 4}, 13: {4: 256, 6: 32, 8: 4}, 14: {4: 512, 6: 64, 8: 8},
        15: {4: 1024, 6: 128, 8: 16, 10: 4}, 16: {4: 2048, 6: 256, 8: 32, 10: 4}, 17: {8: 36, 10: 6},
        18: {8: 64, 10: 10}, 19: {8: 128, 10: 20}, 20: {8: 256, 10: 40}, 21: {8: 512}, 22: {8: 1024},
        23: {8: 2048}, 24: {8: 4096},
    }  # fmt: skip
    assert {(n, d): size for n, row in by_length.items() for d, size in row.items()} == _TABLE


def test_hammings_bound_counts_the_words_of_a_ball() -> None:
    for n in range(2, 40):
        for d in range(2, n + 1, 2):
            assert _sphere_packing(n, d) == 2 ** (n - 1) // sum(comb(n - 1, i) for i in range(d // 2))


def test_classes_that_need_all_words_are_named_so() -> None:
    assert there(class_distance_bound(3, 9)).source == "more classes than codes"
    assert there(class_distance_bound(3, 2)).source == "length of the code"


def test_short_codes_have_the_sizes_that_are_known_of_them() -> None:
    """A(n, 1) to A(n, n) of MacWilliams and Sloane, appendix A; and one word where none is so far."""
    known = [
        (2,), (4, 2), (8, 4, 2), (16, 8, 2, 2), (32, 16, 4, 2, 2), (64, 32, 8, 4, 2, 2), (128, 64, 16, 8, 2, 2, 2),
        (256, 128, 20, 16, 4, 2, 2, 2), (512, 256, 40, 20, 6, 4, 2, 2, 2),
    ]  # fmt: skip
    for n, sizes in enumerate(known, 1):
        assert tuple(_largest_code(n, d)[0] for d in range(1, n + 1)) == sizes
        assert [_largest_code(n, d)[0] for d in range(n + 1, n + 5)] == [1] * 4


@pytest.mark.parametrize(
    ("n", "d", "size", "source"),
    [(31, 3, 2**26, "Hamming bound"), (127, 3, 2**120, "Hamming bound"), (25, 8, 7216, "Hamming bound")]  # by hand
    + [(21, 10, 2 * 40, "table of A(n,d)"), (17, 10, 6, "table of A(n,d)"), (3, 7, 1, "length of the code")]
    + [(25, 12, 2 * 48, "Plotkin bound"), (24, 12, 48, "Plotkin bound"), (20, 12, 6, "Plotkin bound")]
    + [(21, 11, 12, "Plotkin bound"), (22, 12, 12, "Plotkin bound")],
)
def test_what_bounds_longer_codes(n: int, d: int, size: int, source: str) -> None:
    assert _largest_code(n, d) == (size, source)
