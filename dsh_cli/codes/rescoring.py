"""Rankings by what the network knew: the nearest by Hamming distance, ordered anew by inner products of outputs.

A code keeps the sign of each output, and not how sure the network was of it. So thousands of pictures are equally far
from a query, and their outputs tell them apart.

The score of a picture is the inner product of its outputs and the query's, both brought to length 1: their cosine. By
lengths as they are, the pictures of which a network is surest come first for every query; one trained for an epoch then
ranks far worse than its codes alone, by .1 of mAP, and by cosine better (benchmarks/LOG.md).

Kept are outputs as int8, k bytes a picture, in steps that are one for a whole database (its scale). 127 steps are the
median size of the outputs from which the scale is told, and what lies beyond counts as 127: a bit that is as sure as
half of them are needs to be no surer, and without that bound rescored codes of classes trained on may rank worse than
the codes alone (benchmarks/LOG.md). A query's own outputs have the same bound, in 32,767 steps. Products and sums of
such whole numbers are exact in float64, roots and quotients are rounded once, and a score is a whole number of 2**-30:
so equal outputs have equal scores, on every machine and in every order of summing.

The pool is what is ordered anew: so many pictures nearest by Hamming distance, of equally near ones those added first.
The highest score comes first; of equal scores the nearest by Hamming distance, and of these the first added. All others
stay behind the pool as they were.

Asymmetric is the same without kept outputs (Gordo, Perronnin, Gong and Lazebnik, *Asymmetric Distances for Binary
Embeddings*, TPAMI 2014): the query's outputs against the codes of the others, whose bits count as 1 and -1. It orders
codes, and leaves pictures of one code as they were. A query that is but a code has outputs 1 and -1 too: against kept
outputs these tell which pictures agree with it most clearly, against codes they give the Hamming distance again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import Packed, unpack

Outputs = NDArray[np.int8]  # (n, k) in steps of a scale
Steps = NDArray[np.float64]  # whole numbers

_STEPS = 127  # of an output that is kept, either side of 0
_QUERY_STEPS = 32767  # of an output of a query; with _STEPS and 1024 bits an inner product stays below 2**33
_ONE = 1 << 30  # steps of a score of 1
_CELLS = 1 << 22  # outputs held at once in more than a byte


def scale_of(relaxed: NDArray[np.floating]) -> float:
    """The step in which (n, k) outputs, and others of their network, are kept; of very many, by some, evenly."""
    count, bits = relaxed.shape
    most = max(1, _CELLS // bits)
    some = relaxed if count <= most else relaxed[np.arange(most) * count // most]
    if not some.size:
        return 1 / _STEPS
    return (float(np.median(np.abs(some).astype(np.float32))) or 1.0) / _STEPS


def quantised(relaxed: NDArray[np.floating], scale: float) -> Outputs:
    """(n, k) outputs in steps of a scale, those beyond 127 of them as 127."""
    steps = np.empty(relaxed.shape, np.int8)
    some = max(1, _CELLS // max(1, relaxed.shape[1]))
    for start in range(0, len(relaxed), some):
        part = relaxed[start : start + some].astype(np.float64)
        steps[start : start + some] = np.clip(np.rint(part / scale), -_STEPS, _STEPS)
    return steps


def signs(packed: Packed, bits: int) -> Outputs:
    """(n, ceil(k / 8)) packed codes as (n, k) outputs 1 and -1."""
    return np.where(unpack(packed, bits), np.int8(1), np.int8(-1))


def steps_of(query: NDArray[np.floating] | Outputs, scale: float | None = None) -> Steps:
    """(k,) outputs of a query in whole steps of its own; of a scale, bounded as those kept are."""
    outputs = query.astype(np.float64)
    if scale is not None:
        outputs = np.clip(outputs, -_STEPS * scale, _STEPS * scale)
    largest = float(np.abs(outputs).max(initial=0.0)) or 1.0
    return np.rint(outputs / largest * _QUERY_STEPS)


def scores(query: Steps, outputs: Outputs) -> Steps:
    """(n,) cosines of (k,) steps of a query and (n, k) outputs, in whole steps; 0 where either is all zero."""
    found = np.empty(len(outputs))
    length = np.sqrt(query @ query)
    some = max(1, _CELLS // max(1, outputs.shape[1]))
    for start in range(0, len(outputs), some):
        part = outputs[start : start + some].astype(np.float64)
        lengths = length * np.sqrt(np.einsum("ij,ij->i", part, part))
        found[start : start + some] = np.rint(part @ query / np.where(lengths > 0, lengths, 1) * _ONE)
    return found


def cosines(scores: Steps) -> NDArray[np.float64]:
    """Scores from -1 to 1."""
    return scores / _ONE


def best_first(scores: Steps) -> NDArray[np.int64]:
    """(n,) places of a pool, which is in the order of Hamming distance and of adding, by score; equals stay in it."""
    return np.argsort(-scores, kind="stable")
