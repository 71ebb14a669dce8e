"""Codes without labels: against slow references and what holds of every rotation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes

from dsh_cli.codes.linear import (
    LinearCodes,
    _of_few,
    _of_products,
    itq,
    pca,
    quantization_error,
    random_rotation,
    rotation,
)
from dsh_cli.errors import DataError, UsageError


def features(count: int, width: int, seed: int) -> NDArray[np.float32]:
    """Vectors that vary more in some directions than in others, and are not centred."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((width, width)) * np.linspace(0.2, 2, width)
    found: NDArray[np.float32] = (rng.standard_normal((count, width)) @ mixing + rng.uniform(-3, 3, width)).astype("f4")
    return found


def slow_pca(vectors: NDArray[np.float32], bits: int) -> NDArray[np.float64]:
    """Squared outputs by the singular values of the centred vectors."""
    centred = vectors.astype(float) - vectors.mean(axis=0, dtype=float)
    _, _, right = np.linalg.svd(centred, full_matrices=False)
    outputs: NDArray[np.float64] = centred @ right[:bits].T
    return outputs**2


def slow_itq(vectors: NDArray[np.float32], bits: int, seed: int, rounds: int) -> NDArray[np.float64]:
    """Outputs by the paper's two steps, element by element; its rotation from SciPy's orthogonal Procrustes."""
    projected = pca(vectors, bits)(vectors)
    turned = random_rotation(bits, seed)
    for _ in range(rounds):
        signs = np.array([[1.0 if value >= 0 else -1.0 for value in row] for row in projected @ turned])
        turned, _ = orthogonal_procrustes(projected, signs)
    outputs: NDArray[np.float64] = projected @ turned
    return outputs


@pytest.mark.parametrize(
    ("count", "width", "bits"), [(50, 8, 8), (300, 20, 5), (9000, 6, 3), (12, 40, 11), (30, 300, 8), (20, 20, 19)]
)
def test_pca_is_that_of_the_singular_value_decomposition(count: int, width: int, bits: int) -> None:
    vectors = features(count, width, seed=width)
    assert np.allclose(pca(vectors, bits)(vectors) ** 2, slow_pca(vectors, bits), rtol=1e-6, atol=1e-8)


def test_pca_has_the_direction_of_most_variance_first_and_one_way_round() -> None:
    vectors = features(200, 10, seed=0)
    found = pca(vectors, 6)
    assert (np.diff(found(vectors).var(axis=0)) < 0).all()
    assert np.allclose(found.matrix.T @ found.matrix, np.eye(6))
    other = pca(vectors[::-1].copy(), 6)
    assert np.allclose(other.matrix, found.matrix, atol=1e-6)


@given(bits=st.integers(1, 40), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_a_rotation_at_random_is_orthogonal(bits: int, seed: int) -> None:
    turned = random_rotation(bits, seed)
    assert np.allclose(turned @ turned.T, np.eye(bits))
    assert np.array_equal(turned, random_rotation(bits, seed))


def test_a_rotation_keeps_lengths_and_evens_out_variance() -> None:
    vectors = features(500, 16, seed=1)
    straight, turned = pca(vectors, 12)(vectors), rotation(vectors, 12, seed=0)(vectors)
    assert np.allclose((straight**2).sum(axis=1), (turned**2).sum(axis=1))
    assert np.ptp(turned.var(axis=0)) < np.ptp(straight.var(axis=0))


@given(seed=st.integers(0, 1000), bits=st.integers(1, 8), count=st.integers(20, 60))
@settings(max_examples=25, deadline=None)
def test_itq_is_a_rotation_of_pca_and_its_error_never_rises(seed: int, bits: int, count: int) -> None:
    vectors = features(count, 8, seed)
    errors: list[float] = []
    found = itq(vectors, bits, seed, errors.append)
    assert np.allclose(found.matrix.T @ found.matrix, np.eye(bits))
    span = pca(vectors, bits).matrix
    assert np.allclose(span @ span.T @ found.matrix, found.matrix)
    assert len(errors) == 51 and (np.diff(errors) <= 1e-12).all()
    assert np.isclose(errors[-1], quantization_error(found(vectors)))


@pytest.mark.parametrize("seed", range(3))
def test_itq_is_that_of_the_paper_step_by_step(seed: int) -> None:
    vectors = features(120, 9, seed)
    assert np.allclose(itq(vectors, 5, seed)(vectors), slow_itq(vectors, 5, seed, 50), atol=1e-6)


def test_itq_finds_the_corners_that_vectors_lie_at() -> None:
    """Turned corners of a cube, with some noise, are told apart by their bits, which those of a PCA need not do."""
    rng = np.random.default_rng(0)
    corners = rng.choice([-1.0, 1.0], (400, 6))
    vectors = (corners + rng.normal(0, 0.1, corners.shape)) @ random_rotation(6, 9) + 5
    bits = itq(vectors, 6, seed=0)(vectors) >= 0
    together = (corners[:, None] == corners).all(axis=2)
    same = (bits[:, None] == bits).all(axis=2)
    assert np.array_equal(together, same)


def test_outputs_are_of_the_centred_vectors() -> None:
    found = LinearCodes(np.array([1.0, 2.0]), np.array([[1.0], [10.0]]))
    assert found(np.array([[1.0, 2.0], [2.0, 3.0]])).tolist() == [[0.0], [11.0]]


def test_there_are_no_more_bits_than_directions() -> None:
    with pytest.raises(UsageError, match="`bits` 9: a bit is a direction of the features, which have 8; 8 at most"):
        pca(features(50, 8, seed=0), 9)
    few = features(5, 8, seed=0)
    with pytest.raises(DataError, match="5 feature vectors vary in 4 directions, too few for 6 bits"):
        itq(few, 6, seed=0)
    with pytest.raises(DataError, match="5 feature vectors vary in 4 directions, too few for 5 bits"):
        pca(few, 5)
    for count in (20, 2, 1):
        with pytest.raises(DataError, match="vary in 0 directions"):
            pca(np.ones((count, 3), np.float32), 1)


def test_directions_are_the_same_by_products_of_dimensions_and_of_vectors() -> None:
    vectors = features(60, 200, seed=3)
    mean = vectors.mean(axis=0, dtype=float)
    (largest, directions), (fewest, others) = _of_products(vectors, mean, 12), _of_few(vectors, mean, 12)
    assert np.allclose(largest, fewest)
    assert np.allclose(np.abs((directions * others).sum(axis=0)), 1)


def test_few_vectors_of_which_many_are_alike_have_as_many_directions_as_there_are() -> None:
    vectors = np.repeat(features(3, 50, seed=1), [1, 2, 4], axis=0)
    assert np.allclose(pca(vectors, 2)(vectors) ** 2, slow_pca(vectors, 2), atol=1e-6)
    with pytest.raises(
        DataError, match="7 feature vectors vary in 2 directions, too few for 3 bits; .* at most 2 `bits`"
    ):
        pca(vectors, 3)


def test_few_vectors_of_very_many_dimensions_are_soon_done() -> None:
    vectors = np.random.default_rng(0).standard_normal(
        (200, 40_000), np.float32
    )  # of whose dimensions the products take 13 GB
    found = pca(vectors, 32)
    assert np.allclose(found.matrix.T @ found.matrix, np.eye(32))
