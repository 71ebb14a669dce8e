"""Outputs in steps, scores that are whole numbers, and the order they give."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsh_cli.codes import rescoring
from dsh_cli.codes.bits import hamming, pack

SHAPES = st.tuples(st.integers(1, 30), st.integers(1, 70), st.integers(0, 2**32))


def outputs(count: int, bits: int, seed: int) -> NDArray[np.float32]:
    """Outputs about 1 and -1, as a network gives them, and a few far beyond."""
    rng = np.random.default_rng(seed)
    values = rng.choice([-1, 1], (count, bits)) + rng.normal(0, 0.3, (count, bits))
    values *= rng.choice([1, 1, 1, 9], (count, 1))
    return np.asarray(values, np.float32)


@given(SHAPES)
@example((0, 8, 0))
def test_a_kept_output_is_half_a_step_off_at_most_or_beyond_the_last_step(shape: tuple[int, int, int]) -> None:
    relaxed = outputs(*shape)
    scale = rescoring.scale_of(relaxed)
    kept = rescoring.quantised(relaxed, scale)
    assert kept.dtype == np.int8 and kept.shape == relaxed.shape and scale > 0
    far = np.abs(relaxed) > 127 * scale
    assert far.mean() <= 0.5 if relaxed.size else not far.any()
    assert (np.abs(kept * scale - relaxed)[~far] <= scale * 0.5001).all()
    assert (np.abs(kept[far]) == 127).all() and (np.sign(kept[far]) == np.sign(relaxed[far])).all()


def test_later_outputs_beyond_the_scale_count_as_the_last_step() -> None:
    scale = rescoring.scale_of(np.array([[-1.0, 0.5, 7.0]]))
    assert scale == 1 / 127
    assert rescoring.quantised(np.array([[70000.0, -3.0, 0.0, 0.0039]]), scale).tolist() == [[127, -127, 0, 0]]


@pytest.mark.parametrize("relaxed", [np.zeros((3, 4), np.float16), np.zeros((0, 4), np.float16)])
def test_outputs_that_are_all_zero_or_none_have_a_scale(relaxed: NDArray[np.float16]) -> None:
    assert rescoring.scale_of(relaxed) == 1 / 127


def test_one_output_far_off_does_not_make_the_steps_coarse() -> None:
    relaxed = np.ones((10_000, 8), np.float16)
    relaxed[17, 3] = 60_000
    assert rescoring.scale_of(relaxed) == 1 / 127


def test_the_scale_of_very_many_is_told_from_some_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescoring, "_CELLS", 64)
    relaxed = np.repeat(np.linspace(0, 1, 1000), 8).reshape(1000, 8)
    assert 0.4 < rescoring.scale_of(relaxed) * 127 < 0.6
    assert rescoring.quantised(relaxed, 1 / 127).tolist() == np.rint(relaxed * 127).tolist()


@given(SHAPES)
@example((40, 8, 1))
def test_nothing_is_nearer_to_outputs_than_they_are_themselves(shape: tuple[int, int, int]) -> None:
    relaxed = outputs(*shape)
    scale = rescoring.scale_of(relaxed)
    kept = rescoring.quantised(relaxed, scale)
    for row, values in enumerate(relaxed[:10]):
        found = rescoring.cosines(rescoring.scores(rescoring.steps_of(values, scale), kept))
        assert found[row] > 0.999 and found[row] >= found.max() - 1e-3


def slow(steps: NDArray[np.float64], row: NDArray[np.int8]) -> int:
    """A score by whole numbers alone, but for the root and the quotient."""
    a, b = [int(x) for x in steps], [int(x) for x in row]
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return round(sum(x * y for x, y in zip(a, b, strict=True)) / (lengths or 1) * 2**30)


@given(SHAPES)
def test_scores_are_cosines_in_whole_steps(shape: tuple[int, int, int]) -> None:
    relaxed = outputs(*shape)
    kept = rescoring.quantised(relaxed, rescoring.scale_of(relaxed))
    steps = rescoring.steps_of(relaxed[0])
    largest = np.abs(relaxed[0]).max()
    assert np.abs(steps).max() == 32767 and (np.abs(steps * largest / 32767 - relaxed[0]) <= largest / 60000).all()
    found = rescoring.scores(steps, kept)
    assert found.tolist() == [slow(steps, row) for row in kept]
    assert (np.abs(rescoring.cosines(found)) <= 1 + 1e-9).all()


def test_scores_of_1024_bits_are_the_same_wherever_equals_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescoring, "_CELLS", 1 << 14)
    kept = np.repeat(np.random.default_rng(0).integers(-127, 128, (1, 1024), np.int8), 999, axis=0)
    steps = rescoring.steps_of(outputs(1, 1024, 1)[0])
    assert set(rescoring.scores(steps, kept).tolist()) == {slow(steps, kept[0])}


@given(SHAPES)
def test_against_codes_a_code_has_the_hamming_distance_again(shape: tuple[int, int, int]) -> None:
    count, bits, _ = shape
    packed = pack(outputs(*shape) >= 0)
    signs = rescoring.signs(packed, bits)
    assert signs.dtype == np.int8 and set(np.unique(signs)) <= {-1, 1} and (pack(signs > 0) == packed).all()
    found = rescoring.cosines(rescoring.scores(rescoring.steps_of(signs[0]), signs))
    assert np.allclose(found, 1 - 2 * hamming(packed[0], packed) / bits) and len(found) == count


def test_outputs_of_twice_the_size_are_no_better() -> None:
    steps = rescoring.steps_of(np.array([1.0, 0.5], np.float32))
    assert len(set(rescoring.scores(steps, np.array([[20, 10], [40, 20], [120, 60]], np.int8)).tolist())) == 1


def test_what_has_no_output_is_as_near_to_all() -> None:
    steps = rescoring.steps_of(np.zeros(4, np.float32))
    assert steps.tolist() == [0, 0, 0, 0]
    assert rescoring.best_first(rescoring.scores(steps, np.ones((5, 4), np.int8))).tolist() == [0, 1, 2, 3, 4]
    assert rescoring.scores(rescoring.steps_of(np.ones(4, np.float32)), np.zeros((2, 4), np.int8)).tolist() == [0, 0]


@given(st.lists(st.integers(-3, 3)))
def test_the_best_come_first_and_equals_stay_as_they_were(scores: list[int]) -> None:
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    assert rescoring.best_first(np.array(scores, np.float64)).tolist() == expected
