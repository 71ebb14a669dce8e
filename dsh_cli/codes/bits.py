"""Outputs -> bits -> packed bytes -> hex, and back; Hamming distance. The only place where bits are packed.

A code's first bit is the first output of the network and the most significant bit of its number.
Its text form is that number in lowercase hex of ceil(k / 4) digits; its packed form is
`numpy.packbits(..., bitorder="big")`, so that the spare bits of the last byte are zero.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsh_cli.errors import UsageError

Packed = NDArray[np.uint8]

_BLOCK_BYTES = 1 << 24  # of XORed codes held at once by `hamming`


def binarize(relaxed: ArrayLike) -> NDArray[np.bool_]:
    """Bits of relaxed codes: 1 where the output is >= 0 (exactly zero is 1). Any shape."""
    return np.asarray(relaxed) >= 0


def pack(bits: ArrayLike) -> Packed:
    """Pack (n, k) bits into (n, ceil(k / 8)) bytes, most significant bit first."""
    return np.packbits(np.asarray(bits, dtype=bool), axis=-1, bitorder="big")


def is_packed(packed: Packed, bits: int) -> bool:
    """Whether `pack` gives such bytes for codes of so many bits: those left over in the last one are 0."""
    return not (packed[:, -1:] & ((1 << -bits % 8) - 1)).any()


def unpack(packed: Packed, bits: int) -> NDArray[np.bool_]:
    """Undo `pack`: (n, ceil(k / 8)) bytes into (n, k) bits."""
    return np.unpackbits(packed, axis=-1, count=bits, bitorder="big").astype(bool)


def to_words(packed: Packed) -> NDArray[np.uint64]:
    """(n, bytes) packed codes as (n, ceil(bytes / 8)) 64-bit words, in which distances are soonest counted."""
    padded = np.zeros((len(packed), -(-packed.shape[1] // 8) * 8), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view(np.uint64)


def to_hex(packed: Packed, bits: int) -> list[str]:
    """Text form of (n, ceil(k / 8)) packed codes: the k-bit number in ceil(k / 4) lowercase hex digits."""
    spare, digits = -bits % 8, -(-bits // 4)
    return [f"{int.from_bytes(row.tobytes(), 'big') >> spare:0{digits}x}" for row in packed]


def from_hex(texts: Sequence[str], bits: int) -> Packed:
    """Undo `to_hex`; a `0x` prefix is allowed.

    Raises:
        UsageError: a text is not a hex number of exactly ceil(k / 4) digits that fits k bits.
    """
    spare, digits, width = -bits % 8, -(-bits // 4), -(-bits // 8)
    rows = bytearray()
    for text in texts:
        body = text.removeprefix("0x")
        # int() alone would also take signs, blanks and underscores
        if len(body) != digits or not all(c in "0123456789abcdefABCDEF" for c in body):
            raise UsageError(f"code {text!r}: a code of {bits} bits has {digits} hex digits, such as {'f' * digits!r}")
        number = int(body, 16)
        if number >> bits:
            raise UsageError(f"code {text!r} does not fit {bits} bits; its first digit is too large")
        rows += (number << spare).to_bytes(width, "big")
    return np.frombuffer(bytes(rows), dtype=np.uint8).reshape(len(texts), width)


def looks_like_code(text: str) -> bool:
    """Whether a text is meant as a code, be it well formed or not: it starts with 0x or 0b, and has no dot or slash."""
    return re.fullmatch(r"0[xb]\w*", text, re.ASCII | re.IGNORECASE) is not None


def parse(text: str, bits: int) -> Packed:
    """A code as people write it, `0xf7` or `0b1111_0111`, in packed form: (ceil(k / 8),) uint8.

    All digits are given, leading zeros too; single underscores may stand before digits.

    Raises:
        UsageError: it is no code of k bits.
    """
    kind, body = text[:2].lower(), text[2:]
    digits = body.replace("_", "")
    lengths = {"0x": -(-bits // 4), "0b": bits}
    alphabet = "[0-9a-fA-F]" if kind == "0x" else "[01]"
    if kind not in lengths or len(digits) != lengths[kind] or not re.fullmatch(f"(_?{alphabet})+", body):
        shown = text if len(text) <= 40 else text[:37] + "..."
        given = f" of {len(digits)} digits" if kind in lengths and re.fullmatch(f"(_?{alphabet})+", body) else ""
        raise UsageError(
            f"code {shown!r}{given}: a code of {bits} bits is written 0x and {lengths['0x']} hex digits, "
            f"or 0b and {bits} binary digits"
        )
    packed: Packed = (from_hex([digits], bits) if kind == "0x" else pack([[digit == "1" for digit in digits]]))[0]
    return packed


def to_binary(packed: Packed, bits: int) -> list[str]:
    """(n, ceil(k / 8)) packed codes as strings of k characters 0 and 1."""
    return ["".join("01"[bit] for bit in row) for row in unpack(packed, bits).astype(int)]


def hamming(a: Packed, b: Packed) -> NDArray[np.int64]:
    """Hamming distance of every code of `a` to every code of `b`.

    Args:
        a: (n, bytes) or (bytes,) packed codes.
        b: (m, bytes) or (bytes,) packed codes of the same length.

    Returns:
        (n, m) distances in bits; a single code drops its axis.

    Raises:
        UsageError: the two have codes of different length.
    """
    left, right = np.atleast_2d(a), np.atleast_2d(b)
    if left.shape[1] != right.shape[1]:
        raise UsageError(f"codes of {left.shape[1]} and {right.shape[1]} bytes have no Hamming distance")
    distances = np.empty((len(left), len(right)), dtype=np.int64)
    step = max(1, _BLOCK_BYTES // max(1, right.size))
    for start in range(0, len(left), step):
        differing = left[start : start + step, None, :] ^ right[None, :, :]  # (step, m, bytes)
        distances[start : start + step] = np.bitwise_count(differing).sum(axis=2, dtype=np.int64)
    return distances.reshape(np.shape(a)[:-1] + np.shape(b)[:-1])
