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


def choice_term(relaxed: Tensor, targets: Tensor, centers: Tensor, offsets: Tensor, scale: float) -> Tensor:
    """Mean cross-entropy of choosing among all centers, absent classes too, as one does who is on the own center.

    Logits are scaled inner products of outputs and centers, after Hoe et al., *One Loss for All: Deep Hashing with a
    Single Cosine Similarity based Learning Objective*, NeurIPS 2021, but without a normalisation of the outputs. The
    target is what the own center itself would choose: smoothed labels (Szegedy et al., *Rethinking the Inception
    Architecture*, CVPR 2016), of which nearer centers get more. So outputs are drawn to their center in every bit;
    equal shares would weaken bits of centers that have others at unequal distances.

    Args:
        relaxed: (B, k) outputs of the hash layer.
        targets: (B, C) what the own centers would choose, see `choices`.
        centers: (C, k) codes of +1 and -1, one for each class.
        offsets: (k,) added to the outputs, see `codes.centers.offsets`.
        scale: of inner products, see `choice_scale`.
    """
    return F.cross_entropy(scale * (relaxed + offsets) @ centers.T, targets)


def choices(centers: Tensor, scale: float) -> Tensor:
    """(C, k) centers of +1 and -1 -> (C, C) with which probability one who is on each would choose each."""
    return torch.softmax(scale * centers @ centers.T, dim=1)


def choice_scale(class_count: int, distance: int, smoothing: float) -> float:
    """The scale of inner products with which a picture on its center chooses others with probability `smoothing`.

    Args:
        class_count: C, 2 or more.
        distance: Hamming distance between the closest two centers, at least 1; all are taken to be that far apart.
        smoothing: above 0 and below 1.
    """
    return math.log((class_count - 1) * (1 - smoothing) / smoothing) / (2 * distance)


def quantization_term(relaxed: Tensor) -> Tensor:
    """Mean over pairs of the third term without its weight: 2 mean_i || |b_i| - 1 ||_1."""
    return 2 * (relaxed.abs() - 1).abs().sum(dim=1).mean()


def squared_distances(relaxed: Tensor) -> Tensor:
    """(B, k) -> (B, B) squared Euclidean distances, by ||a||^2 + ||b||^2 - 2 ab."""
    norms = relaxed.square().sum(dim=1)  # (B,)
    return (norms[:, None] + norms[None, :] - 2 * relaxed @ relaxed.T).clamp_min(0)
