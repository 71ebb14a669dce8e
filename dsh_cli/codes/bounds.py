"""How far apart class codes can be: proved upper bounds on the minimum distance of a binary code.

A(n, d) is the largest number of words of n bits with pairwise Hamming distance at least d.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

# Exact values A(n, d) for even d and the n that start at the key's second number.
# Source: MacWilliams and Sloane, The Theory of Error-Correcting Codes, appendix A, table I; A(17, 8) = 36 from
# Gijswijt, Mittelmann and Schrijver, IEEE Trans. Inf. Theory 58 (2012); A(18, 8) = 64 from Östergård, 2019.
_EXACT = {
    (4, 6): (4, 8, 16, 20, 40, 72, 144, 256, 512, 1024, 2048),
    (6, 9): (4, 6, 12, 24, 32, 64, 128, 256),
    (8, 12): (4, 4, 8, 16, 32, 36, 64, 128, 256, 512, 1024, 2048, 4096),
    (10, 15): (4, 4, 6, 10, 20, 40),
}
_TABLE = {(n0 + i, d): size for (d, n0), sizes in _EXACT.items() for i, size in enumerate(sizes)}


@dataclass(frozen=True)
class DistanceBound:
    """No code has a larger minimum distance than `distance`; `source` names what proves it."""

    distance: int
    source: str


def class_distance_bound(bits: int, class_count: int) -> DistanceBound | None:
    """Largest minimum Hamming distance that `classes` codes of `bits` bits could have.

    It is the largest d for which no theorem here shows A(bits, d) < classes, so it is never too small;
    where the table covers (bits, d) it is exact.

    Returns:
        None for fewer than two classes, which have no distance.
    """
    if class_count < 2:
        return None
    if class_count > 2**bits:
        return DistanceBound(0, "more classes than codes")
    excluded_by = "length of the code"
    for distance in range(bits, 0, -1):
        size, source = _largest_code(bits, distance)
        if size >= class_count:
            return DistanceBound(distance, excluded_by)
        excluded_by = source
    raise AssertionError("A(n, 1) = 2^n admits every remaining case")


@cache
def _largest_code(n: int, d: int) -> tuple[int, str]:
    """An upper bound on A(n, d), and its source."""
    if d == 1:
        return 2**n, "all words"
    if d % 2:  # a parity bit turns an odd distance into the next even one
        return _largest_code(n + 1, d + 1)
    if (n, d) in _TABLE:
        return _TABLE[n, d], "table of A(n,d)"
    if n < d:
        return 1, "length of the code"
    if n < 2 * d:  # Plotkin, IRE Trans. Inf. Theory 6 (1960)
        return 2 * (d // (2 * d - n)), "Plotkin bound"
    if n == 2 * d:  # Levenshtein's case of the same theorem
        return 4 * d, "Plotkin bound"
    # Fixing one bit leaves a code of at least half the words: A(n, d) <= 2 A(n - 1, d).
    size, source = _largest_code(n - 1, d)
    hamming = _sphere_packing(n, d)
    return min((2 * size, source), (hamming, "Hamming bound"))


def _sphere_packing(n: int, d: int) -> int:
    """Hamming's bound for even d: balls of radius (d - 2) / 2 around the words punctured by one bit are disjoint."""
    length, ball, term = n - 1, 0, 1
    for i in range((d - 2) // 2 + 1):
        ball += term
        term = term * (length - i) // (i + 1)
    return int(2**length // ball)
