"""Codes that are made up."""

from collections.abc import Sequence

import numpy as np

from dsh_cli.codes.bits import from_hex, pack
from dsh_cli.codes.sets import CodeSet


def code_set(
    texts: Sequence[str], labels: Sequence[int], bits: int = 8, classes: tuple[str, ...] = ("a", "b", "c")
) -> CodeSet:
    return CodeSet(bits, from_hex(texts, bits), np.array(labels, np.int64), classes, ())


def random_codes(n: int, bits: int, classes: int, seed: int) -> CodeSet:
    rng = np.random.default_rng(seed)
    packed = pack(rng.random((n, bits)) < 0.5)
    return CodeSet(bits, packed, rng.integers(0, classes, n), tuple(map(str, range(classes))), ())


def made(count: int = 120, classes: int = 4, bits: int = 16, seed: int = 0, noise: float = 0.4) -> CodeSet:
    """Codes of classes that are well apart, with pictures."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centers = np.where(rng.random((classes, bits)) < 0.5, -1, 1)
    relaxed = (centers[labels] + rng.normal(0, noise, (count, bits))).astype(np.float16)
    names = [f"{i}.png" for i in range(count)]
    thumbnails = np.broadcast_to((labels * 60).astype(np.uint8)[:, None, None, None], (count, 8, 8, 1))
    return CodeSet(bits, pack(relaxed >= 0), labels, tuple("abcdefghij"[:classes]), names, relaxed, thumbnails)
