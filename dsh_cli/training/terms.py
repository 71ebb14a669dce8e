"""The DSH loss, and the choice of a hash center.

Liu et al., *Deep Supervised Hashing for Fast Image Retrieval*, CVPR 2016, equation 3.

For relaxed codes b_i, b_j and y = 0 if they are of one class, 1 if not:

    L = 1/2 (1 - y) ||b_i - b_j||^2 + 1/2 y max(m - ||b_i - b_j||^2, 0)
        + alpha (|| |b_i| - 1 ||_1 + || |b_j| - 1 ||_1)

Norms are sums over bits; the loss is the mean over every pair i < j of the batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_SURE = 6 / 7  # probability of the own center for a picture on it, all others equally far: 2 / distance for ten classes


def dsh_loss(relaxed: Tensor, labels: Tensor, margin: float, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """The whole loss and its two terms, so that loss = pair + alpha * quantization.

    Args:
        relaxed: (B, k) outputs of the hash layer, B >= 2.
        labels: (B,) classes.
        margin: squared distance beyond which a pair of two classes costs nothing.
        alpha: weight of the quantization term.

    Returns:
        Three scalars: loss, pair term, quantization term.
    """
    pair = pair_term(relaxed, labels, margin)
    quantization = quantization_term(relaxed)
    return pair + alpha * quantization, pair, quantization


def pair_term(relaxed: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Mean over pairs i < j of the first two terms of the loss, from one matrix product."""
    squared = squared_distances(relaxed)  # (B, B)
    same = labels[:, None] == labels[None, :]  # (B, B)
    cost = torch.where(same, squared, (margin - squared).clamp_min(0)).fill_diagonal_(0)
    n = len(relaxed)
    return 0.5 * cost.sum() / (n * (n - 1))  # every pair stands twice in the square: 1/2 L over n(n-1)/2 pairs


def choice_term(
    relaxed: Tensor, labels: Tensor, centers: Tensor, offsets: Tensor, distance: int, smoothing: float
) -> Tensor:
    """Mean cross-entropy of choosing the own center among all, absent classes too, by inner products with the outputs.

    After Hoe et al., *One Loss for All: Deep Hashing with a Single Cosine Similarity based Learning Objective*, NeurIPS
    2021, but without a normalisation of the outputs, whose size the smoothing of labels holds. Inner products become
    logits by a scale with which a picture on its center is sure of it to `_SURE`.

    Args:
        relaxed: (B, k) outputs of the hash layer.
        labels: (B,) rows of the centers.
        centers: (C, k) codes of +1 and -1, one for each class.
        offsets: (k,) added to the outputs, see `codes.centers.offsets`.
        distance: Hamming distance between the closest two centers, at least 1.
        smoothing: share of the target that all centers get alike (Szegedy et al., CVPR 2016).
    """
    odds = (len(centers) - 1) * _SURE / (1 - _SURE)
    scale = math.log(odds) / (2 * distance)
    return F.cross_entropy(scale * (relaxed + offsets) @ centers.T, labels, label_smoothing=smoothing)


def quantization_term(relaxed: Tensor) -> Tensor:
    """Mean over pairs of the third term without its weight: 2 mean_i || |b_i| - 1 ||_1."""
    return 2 * (relaxed.abs() - 1).abs().sum(dim=1).mean()


def squared_distances(relaxed: Tensor) -> Tensor:
    """(B, k) -> (B, B) squared Euclidean distances, by ||a||^2 + ||b||^2 - 2 ab."""
    norms = relaxed.square().sum(dim=1)  # (B,)
    return (norms[:, None] + norms[None, :] - 2 * relaxed @ relaxed.T).clamp_min(0)
