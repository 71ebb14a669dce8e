"""Samples of codes: each class in proportion, and what is known of a picture goes with it."""

import numpy as np
import pytest

from dsh_cli.codes.sets import sample, taken
from tests.support.codes import made, random_codes


@pytest.mark.parametrize("most", [1, 7, 50, 400, 999])
def test_each_class_has_its_share_to_a_picture(most: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([-1, 0, 1, 2], [400, 300, 299, 1]))
    rows = sample(labels, most, 3)
    assert len(rows) == most and (np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < 1000
    for label in (-1, 0, 1, 2):
        assert abs((labels[rows] == label).sum() - (labels == label).sum() * most / 1000) < 1
    assert (2 in labels[rows]) == (most > 500)  # of one picture


def test_a_sample_is_drawn_by_its_seed_and_not_from_the_front() -> None:
    labels = np.zeros(1000, np.int64)
    rows = sample(labels, 100, 3)
    assert (rows == sample(labels, 100, 3)).all() and (rows != sample(labels, 100, 4)).any()
    assert 350 < rows.mean() < 650


def test_where_there_are_no_more_all_are_taken_in_their_order() -> None:
    labels = np.arange(10) % 3
    assert sample(labels, 10, 0).tolist() == sample(labels, 11, 0).tolist() == list(range(10))
    assert len(sample(labels, 9, 0)) == 9


def test_all_that_is_known_of_a_picture_goes_with_it() -> None:
    codes, rows = made(), np.array([7, 3, 3, 100])
    some = taken(codes, rows)
    assert len(some) == 4 and some.bits == codes.bits and some.classes == codes.classes
    assert some.hex == [codes.hex[row] for row in rows]
    assert some.labels.tolist() == (rows % 4).tolist() and some.names == ["7.png", "3.png", "3.png", "100.png"]
    assert some.relaxed is not None and codes.relaxed is not None
    assert (some.relaxed == codes.relaxed[rows]).all() and some.relaxed.dtype == np.float16
    assert some.thumbnails is not None and codes.thumbnails is not None
    assert (some.thumbnails == codes.thumbnails[rows]).all()


def test_what_is_not_known_stays_so() -> None:
    some = taken(random_codes(9, 12, 2, 0), np.array([4]))
    assert (some.relaxed, some.thumbnails, some.names) == (None, None, ())
