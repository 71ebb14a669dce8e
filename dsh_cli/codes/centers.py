"""Hash centers: codewords far apart, and offsets of their bits.

A center is a fixed code that the pictures of a class are drawn to (Yuan et al., *Central Similarity Quantization*,
CVPR 2020). Free class codes end up a bit or two apart; here they have nearly all the room there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bounds import DistanceBound, class_distance_bound
from dsh_cli.errors import UsageError

Words = NDArray[np.uint8]  # (W, n) bits

_CLASSES = 3000  # that centers are found for: it takes seconds up to there, and grows with the cube
_SEARCHED_BITS, _SEARCHED_ROUNDS = 12, 6000  # length of the codes searched word by word, at most, and its rounds
_LINEAR_DIMENSION = 16  # of the linear codes searched for, at most
_SHORT = 16  # bits of the searched codes that may be pieces of longer ones, at most
_PRICE = 0.5  # of a light word against one with a bit less
_SPARE = 4  # words of a piece for each class, at most: some choice is enough
_ROUNDS, _ROUNDS_WORK = 600, 1 << 22  # of the search for linear codes, at most, and words looked at in them
_UNEVEN = 16  # words that offsets are made for, at most
_EXCHANGES, _EXCHANGES_WORK = 6000, 1 << 24  # tried for offsets, at most, and numbers sorted in all


@dataclass(frozen=True)
class Codewords:
    """W words of k bits, at least one for each class, and how far apart they are."""

    words: Words  # (W, k) of 0 and 1
    distance: int  # the smallest between two of them
    bound: DistanceBound | None  # what is proved of any such code; None for one class


def why_none(bits: int, class_count: int) -> str:
    """Why so many classes get no hash centers of so many bits; nothing where they can."""
    return (
        "there is one class" if class_count < 2
        else f"{class_count} classes cannot have different codes of {bits} bits" if class_count > 2**bits
        else f"{class_count:,} classes would take too long, {_CLASSES:,} at most" if class_count > _CLASSES
        else ""
    )  # fmt: skip


def construct(bits: int, class_count: int, seed: int = 0) -> Codewords:
    """As many words as classes, or more, with the largest minimum distance found.

    Codes put side by side add their distances: the best sum of Hadamard codes, shortened or with complements
    (Levenshtein 1961; MacWilliams and Sloane, chapter 2), and of short linear codes is compared with one linear code
    of the whole length, and, where that is short, with words found one by one.

    Raises:
        UsageError: there are more classes than codes of so many bits.
    """
    if class_count < 1 or class_count > 2**bits:
        raise UsageError(f"{class_count:,} classes cannot have different codes of {bits} bits; there are 2^{bits}")
    bound = class_distance_bound(bits, class_count)
    if bound is None:
        return Codewords(np.zeros((1, bits), np.uint8), bits, None)
    best = side_by_side(bits, class_count, seed)
    reached = minimum_distance(best)
    if reached < bound.distance:
        words = _linear(bits, class_count, seed)
        if words is not None and (found := minimum_distance(words)) > reached:
            best, reached = words, found
    if bits <= _SEARCHED_BITS:
        for distance in range(bound.distance, reached, -1):
            words = _searched(bits, class_count, distance, seed)
            if words is not None:
                best, reached = words, distance
                break
    return Codewords(best, reached, bound)


def drawn(bits: int, class_count: int, seed: int = 0) -> Words:
    """(C, k) words of `construct`, a class each, by lot.

    Where there are more words than classes, those are taken that span most dimensions as vectors of +1 and -1: outputs
    are learned only in the directions that centers span, and bits in other directions would be left to chance.
    """
    words = construct(bits, class_count, seed).words
    words = words[np.random.default_rng(seed).permutation(len(words))]
    if len(words) == class_count:
        return words
    left = 1.0 - 2.0 * words.astype(np.float64)  # what is not a sum of those chosen
    chosen: list[int] = []
    while len(chosen) < class_count:
        sizes = (left**2).sum(axis=1)
        sizes[chosen] = -1
        chosen.append(int(sizes.argmax()))
        direction = left[chosen[-1]] / max(1e-9, np.sqrt(sizes[chosen[-1]]))
        left -= np.outer(left @ direction, direction)
    return words[chosen]


def offsets(words: Words, seed: int = 0) -> NDArray[np.float64]:
    """Numbers from -1 to 1, one a bit, so that the bits in which two words differ come as evenly spread as can be.

    Outputs on their way from one center to another change all those bits at one moment. Where the bits' thresholds are
    moved by these numbers (see `training.terms.choice_term`), they change one after the other, so that the distance of
    an unsure picture tells how far it is on its way. Found by exchanging, and turning, two numbers at a time.

    Args:
        words: (W, k).
        seed: of the search.
    """
    rng, bits = np.random.default_rng(seed), words.shape[1]
    signs = 1.0 - 2.0 * words[rng.permutation(len(words))[:_UNEVEN]].astype(np.float64)  # (w, k)
    first, second = np.triu_indices(len(signs), 1)
    differ = signs[first] != signs[second]  # (pairs, k)
    toward = signs[first]
    counts = differ.sum(axis=1)
    even = np.where(np.arange(bits) < counts[:, None], (2 * np.arange(bits) + 1) / counts[:, None] - 1, 0.0)

    def unevenness(found: NDArray[np.float64]) -> float:
        moved = np.sort(np.where(differ, toward * found, np.inf), axis=1)
        return float((np.where(np.isinf(moved), 0.0, moved - even) ** 2).sum(axis=1) @ (1 / counts))

    best = np.linspace(-1, 1, bits)[rng.permutation(bits)]
    least = unevenness(best)
    for _ in range(min(_EXCHANGES, _EXCHANGES_WORK // max(1, differ.size))):
        tried, (one, other) = best.copy(), rng.integers(bits, size=2)
        tried[one], tried[other] = best[other], best[one]
        if rng.random() < 0.3:
            tried[one] *= -1
        if (found := unevenness(tried)) < least:
            best, least = tried, found
    return best


def minimum_distance(words: Words) -> int:
    """The smallest Hamming distance between two of (W, n) words, W >= 2."""
    count, n = words.shape
    signs = 1 - 2 * words.astype(np.float32)
    largest = -n  # of the inner products
    for start in range(0, count, 1024):
        products = signs[start : start + 1024] @ signs[start:].T
        products[np.diag_indices(len(products))] = -n
        largest = max(largest, int(products.max()))
    return int(n - largest) // 2


def side_by_side(bits: int, class_count: int, seed: int = 0) -> Words:
    """The best code made of shorter ones side by side: which of them is a knapsack of lengths and distances."""
    pieces = _pieces(bits, class_count, seed)
    best = [0] * (bits + 1)  # distance by length
    last = [0] * (bits + 1)  # length of the piece that ends there; 0: a bit that adds nothing
    for n in range(1, bits + 1):
        best[n] = best[n - 1]
        for length, (distance, _) in pieces.items():
            if length <= n and best[n - length] + distance > best[n]:
                best[n], last[n] = best[n - length] + distance, length
    chosen, n = [], bits
    while n:
        chosen.append(last[n])
        n -= last[n] or 1
    parts = [pieces[length][1] for length in chosen if length]
    count = min(len(part) for part in parts)
    joined = np.concatenate([part[:count] for part in parts], axis=1)
    return np.concatenate([joined, joined[:, : bits - joined.shape[1]]], axis=1)


def _pieces(bits: int, class_count: int, seed: int) -> dict[int, tuple[int, Words]]:
    """By length the distance, and a code for so many classes."""
    pieces: dict[int, tuple[int, Words]] = {}

    def offer(words: Words) -> None:
        words = words[: max(_SPARE * class_count, 2)]
        length, distance = words.shape[1], minimum_distance(words)
        for less in (0, 1):  # a bit left out takes one from the distance
            if 0 < length - less <= bits and distance - less > pieces.get(length - less, (0, words))[0]:
                pieces[length - less] = distance - less, words[:, : length - less]

    for order in range(4, bits + 4, 4):
        matrix = hadamard(order) if 2 * order >= class_count else None
        if matrix is None:
            continue
        rows = (matrix < 0).astype(np.uint8)
        if class_count <= order // 2:
            offer(rows[rows[:, 1] == 0][:, 2:])
        if class_count <= order:
            offer(rows[:, 1:])
        offer(np.concatenate([rows, 1 - rows]))
    for length in range(1, min(bits, _SHORT) + 1):
        bound = class_distance_bound(length, class_count)
        room = class_count <= 2**length and bound is not None and pieces.get(length, (0,))[0] < bound.distance
        if room and (words := _linear(length, class_count, seed)) is not None:
            offer(words)
    if not pieces:  # more classes than are searched for: all words there are
        offer(_all_words((class_count - 1).bit_length()))
    return pieces


@cache
def hadamard(order: int) -> NDArray[np.int8] | None:
    """A Hadamard matrix with first row and column 1, of the kinds of Sylvester and Paley; None where they have none.

    Paley, *On orthogonal matrices*, 1933, for fields of a prime, and of the square of one.
    """
    matrix = None
    if order <= 2:
        matrix = np.array([[1, 1], [1, -1]])[:order, :order]
    elif order % 4:
        return None
    elif (half := hadamard(order // 2)) is not None:
        matrix = np.kron([[1, 1], [1, -1]], half)
    elif (order - 1) % 4 == 3 and (residues := _residues(order - 1)) is not None:
        matrix = np.eye(order, dtype=int) + _bordered(residues, -1)
    elif (order // 2 - 1) % 4 == 1 and (residues := _residues(order // 2 - 1)) is not None:
        matrix = np.kron(_bordered(residues, 1), [[1, 1], [1, -1]])
        matrix += np.kron(np.eye(order // 2, dtype=int), [[1, -1], [-1, -1]])
    if matrix is None:
        return None
    matrix = matrix * matrix[:1]
    normalised: NDArray[np.int8] = (matrix * matrix[:, :1]).astype(np.int8)
    return normalised


def _bordered(residues: NDArray[np.int64], left: int) -> NDArray[np.int64]:
    matrix = np.pad(residues, ((1, 0), (1, 0)), constant_values=1)
    matrix[1:, 0] = left
    matrix[0, 0] = 0
    return matrix


def _residues(q: int) -> NDArray[np.int64] | None:
    """(q, q): whether the difference of two elements of GF(q) is a square (1), zero (0), or neither (-1)."""
    p = q if _is_prime(q) else round(q**0.5)
    if not _is_prime(p) or q not in (p, p * p):
        return None
    character = np.full(p, -1)
    character[np.arange(1, p) ** 2 % p] = 1
    character[0] = 0
    # In the field of p^2 elements a + b sqrt(n), with n no square, one is a square where its norm a^2 - n b^2 is one.
    nonresidue = int(np.flatnonzero(character == -1)[0])
    b, a = np.divmod(np.arange(q), p)
    a, b = a[:, None] - a, b[:, None] - b
    norm = a if q == p else a * a - nonresidue * b * b
    residues: NDArray[np.int64] = character[norm % p]
    return residues


def _is_prime(n: int) -> bool:
    return n > 2 and n % 2 == 1 and all(n % i for i in range(3, int(n**0.5) + 1, 2))


def _all_words(n: int) -> Words:
    return (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(np.uint8)


def _linear(n: int, class_count: int, seed: int) -> Words | None:
    """A linear code for so many classes, by local search over the columns of its generator matrix.

    Each column added makes the words it gives a bit heavier, of which light ones count most; then columns are taken
    out at random and chosen again, and what is no worse is kept. None where its dimension is too large for that.
    """
    dimension = (class_count - 1).bit_length()
    if dimension > min(n, _LINEAR_DIMENSION):
        return None
    bound = class_distance_bound(n, class_count)
    rng = np.random.default_rng(seed)
    messages = np.arange(2**dimension)

    def words_of(columns: list[int]) -> Words:
        return (np.bitwise_count(messages[:, None] & np.array(columns, np.int64)) & 1).astype(np.uint8)

    def filled(columns: list[int], noise: float) -> tuple[tuple[int, int], list[int]]:
        """As many columns as there shall be, and before them what they are worth: the more, the better."""
        weights = words_of(columns).sum(axis=1, dtype=float)
        while len(columns) < n:
            price = _PRICE ** (weights - weights[1:].min())
            price[0] = 0
            gain = -_walsh(price)
            column = int((gain + rng.random(len(gain)) * noise * np.ptp(gain)).argmax())
            columns = [*columns, column]
            weights += words_of([column])[:, 0]
        lightest = int(weights[1:].min())
        return (lightest, -int((weights[1:] == lightest).sum())), columns

    worth, best = filled([], noise=1e-4)
    for _ in range(min(_ROUNDS, _ROUNDS_WORK // 2**dimension)):
        if bound is not None and worth[0] >= bound.distance:
            break
        out = set(rng.permutation(n)[: rng.integers(1, 3)].tolist())
        found = filled([column for at, column in enumerate(best) if at not in out], noise=0.02)
        if found[0] >= worth:
            worth, best = found
    return words_of(best)


def _walsh(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Walsh-Hadamard transform: for each u the sum over v of (-1)^(u . v) values[v]."""
    size = len(values)
    half = 1
    while half < size:
        pairs = values.reshape(-1, 2, half)
        values = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        half *= 2
    return values.reshape(-1)


def _searched(n: int, class_count: int, distance: int, seed: int) -> Words | None:
    """Words at least so far apart, by local search: one is taken in, and the few too near to it are put out."""
    rng = np.random.default_rng(seed)
    all_words = np.arange(2**n)
    ball = all_words[(np.bitwise_count(all_words) < distance)]  # with itself
    near = np.zeros(2**n, np.int64)  # words of the code in the ball around each
    code: set[int] = set()
    age = rng.random(2**n)  # least recently moved first; ties at random
    for turn in range(_SEARCHED_ROUNDS):
        if len(code) >= class_count:
            chosen = np.array(sorted(code))
            return (chosen[:, None] >> np.arange(n)[::-1] & 1).astype(np.uint8)
        cost = near + age / (age.max() + 1)
        cost[list(code)] = np.inf
        word = int(cost.argmin())
        for other in [other for other in code if (other ^ word).bit_count() < distance]:
            code.remove(other)
            near[other ^ ball] -= 1
            age[other] = turn + 1 + rng.random()
        code.add(word)
        near[word ^ ball] += 1
    return None
