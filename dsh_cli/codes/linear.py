"""Codes without labels: signs of a linear map of features, learned from the features alone.

Gong and Lazebnik, *Iterative Quantization: A Procrustean Approach to Learning Binary Codes*, CVPR 2011.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from dsh_cli.errors import DataError, UsageError
from dsh_cli.words import counted

_ROUNDS = 50  # of ITQ, as in section 2.2; later ones change little
_ROWS = 4096  # vectors whose products are summed at once, in double precision
_FLAT = 1e-9  # a direction with less of the largest variance has none

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LinearCodes:
    """Outputs `(x - mean) @ matrix`, whose signs are the code.

    Attributes:
        mean: (d,) of the vectors.
        matrix: (d, k).
    """

    mean: Array
    matrix: Array

    def __call__(self, vectors: NDArray[np.floating]) -> Array:
        """(n, d) vectors -> (n, k) outputs."""
        outputs = np.empty((len(vectors), self.matrix.shape[1]))
        for start in range(0, len(vectors), _ROWS):
            outputs[start : start + _ROWS] = (vectors[start : start + _ROWS] - self.mean) @ self.matrix
        return outputs


def pca(vectors: NDArray[np.floating], bits: int) -> LinearCodes:
    """The principal directions of (n, d) vectors, those of most variance first: a bit each.

    Raises:
        UsageError: the vectors have fewer dimensions than there are to be bits.
        DataError: they vary in fewer directions than that.
    """
    count, width = vectors.shape
    if bits > width:
        raise UsageError(f"`bits` {bits}: a bit is a direction of the features, which have {width}; {width} at most")
    mean = vectors.mean(axis=0, dtype=np.float64)
    variances, directions = (_of_products if count > width else _of_few)(vectors, mean, bits)
    varied = int((variances > _FLAT * max(variances[-1], np.finfo(float).tiny)).sum())
    if varied < bits:
        fewer = f", or at most {varied:,} `bits`" if varied else ""
        raise DataError(
            f"{counted(count, 'feature vector')} vary in {counted(varied, 'direction')}, too few for "
            f"{counted(bits, 'bit')}; give more pictures{fewer}"
        )
    matrix = directions[:, ::-1][:, :bits]
    # A direction and its opposite are as good; one is taken, lest codes hang on the machine.
    largest = matrix[np.abs(matrix).argmax(axis=0), np.arange(bits)]
    return LinearCodes(mean, matrix * np.sign(largest))


def _of_products(vectors: NDArray[np.floating], mean: Array, bits: int) -> tuple[Array, Array]:
    """(k,) largest variances, the largest last, and (d, k) their directions, by the (d, d) products of dimensions."""
    count, width = vectors.shape
    products = np.zeros((width, width))
    for start in range(0, count, _ROWS):
        centred = vectors[start : start + _ROWS] - mean
        products += centred.T @ centred
    found: tuple[Array, Array] = eigh(products / count, subset_by_index=[width - bits, width - 1])
    return found


def _of_few(vectors: NDArray[np.floating], mean: Array, bits: int) -> tuple[Array, Array]:
    """The same by the (n, n) products of vectors, of which there are fewer: min(n, k) of them."""
    centred = vectors - mean
    count = len(centred)
    variances, weights = eigh(centred @ centred.T / count, subset_by_index=[max(0, count - bits), count - 1])
    directions = centred.T @ weights
    lengths = np.linalg.norm(directions, axis=0)
    return variances, directions / np.where(lengths > 0, lengths, 1)


def rotation(vectors: NDArray[np.floating], bits: int, seed: int) -> LinearCodes:
    """`pca`, turned by a rotation at random, so that no bit has more of the variance than others.

    PCA-RR in Gong and Lazebnik. Raises as `pca`.
    """
    directions = pca(vectors, bits)
    return LinearCodes(directions.mean, directions.matrix @ random_rotation(bits, seed))


def itq(
    vectors: NDArray[np.floating], bits: int, seed: int, told: Callable[[float], None] | None = None
) -> LinearCodes:
    """`pca`, turned by the rotation that brings outputs nearest to their signs, found from one at random.

    PCA-ITQ in Gong and Lazebnik, equation 2: by turns the signs that fit a rotation, and the rotation that fits signs
    (orthogonal Procrustes), neither of which can raise the quantization error.

    Args:
        vectors: (n, d).
        bits: k.
        seed: of the rotation to begin with.
        told: called with the quantization error, mean over vectors and bits, of the first rotation and each later one.

    Raises:
        UsageError: as `pca`.
        DataError: as `pca`.
    """
    directions = pca(vectors, bits)
    projected = directions(vectors)  # (n, k)
    turned = random_rotation(bits, seed)
    for _ in range(_ROUNDS):
        outputs = projected @ turned
        signs = np.where(outputs >= 0, 1.0, -1.0)
        if told:
            told(quantization_error(outputs))
        left, _, right = np.linalg.svd(signs.T @ projected)
        turned = (left @ right).T
    if told:
        told(quantization_error(projected @ turned))
    return LinearCodes(directions.mean, directions.matrix @ turned)


def quantization_error(outputs: Array) -> float:
    """Mean squared distance of (n, k) outputs to their signs (Gong and Lazebnik, equation 2, per vector and bit)."""
    return float(np.mean((np.abs(outputs) - 1) ** 2))


def random_rotation(bits: int, seed: int) -> Array:
    """A (k, k) orthogonal matrix, each as likely (Haar measure: Mezzadri, 2007)."""
    factor, triangle = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))
    rotation: Array = factor * np.sign(np.diag(triangle))
    return rotation
