"""Pictures of deep, signed and floating samples, as Pillow does not write them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

PHOTOMETRIC, SAMPLE_FORMAT = 262, 339
_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 12: "d"}
_OFFSET = -1  # stands for where the samples lie


def tiff(
    samples: NDArray[Any],
    order: str = "<",
    white_is_zero: bool = False,
    compressed: bool = False,
    tags: Mapping[int, tuple[int, list[float]]] | None = None,
) -> bytes:
    """(h, w) or (h, w, 3) samples of any type as a TIFF of that type, in either order of bytes.

    `tags` has more of them: the type of the values, and the values.
    """
    height, width = samples.shape[:2]
    bands = samples.size // (height * width)
    body = samples.astype(samples.dtype.newbyteorder(order)).tobytes()  # type: ignore[arg-type]
    body = zlib.compress(body) if compressed else body
    form = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    fields: dict[int, tuple[int, list[float]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8 * samples.dtype.itemsize] * bands),
        259: (3, [8 if compressed else 1]),
        PHOTOMETRIC: (3, [2 if bands == 3 else int(not white_is_zero)]),
        273: (4, [_OFFSET]),
        277: (3, [bands]),
        278: (4, [height]),
        279: (4, [len(body)]),
        SAMPLE_FORMAT: (3, [form] * bands),
        **(tags or {}),
    }
    directory, values = b"", b""
    begin = 8 + 2 + 12 * len(fields) + 4
    sizes = [struct.calcsize(order + _TYPES[kind]) * len(numbers) for kind, numbers in fields.values()]
    offset = begin + sum(size for size in sizes if size > 4)
    for tag, (kind, numbers) in sorted(fields.items()):
        numbers = [offset if number == _OFFSET else number for number in numbers]
        packed = struct.pack(order + _TYPES[kind] * len(numbers), *numbers)
        if len(packed) > 4:
            packed, values = struct.pack(order + "I", begin + len(values)), values + packed
        directory += struct.pack(order + "HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(fields))
    return head + directory + bytes(4) + values + body


def twin(height: int = 24, width: int = 24, bands: int = 1, seed: int = 0) -> NDArray[np.uint8]:
    """A picture of eight bits that has black and white in it, from which deep ones are made."""
    shape = (height, width) if bands == 1 else (height, width, bands)
    samples = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    samples[0, 0], samples[0, 1] = 0, 255
    return samples


def deepened(samples: NDArray[np.uint8], bits: int) -> NDArray[np.int64]:
    """Samples of eight bits in more: 255 is the highest that they hold."""
    deep: NDArray[np.int64] = np.rint(samples * ((2.0**bits - 1) / 255)).astype(np.int64)
    return deep


def fits(samples: NDArray[Any]) -> bytes:
    """(h, w) samples as FITS: signed or floats, or unsigned, which it has as signed ones and a number to add."""
    size = samples.dtype.itemsize
    zero = 1 << (8 * size - 1) if samples.dtype.kind == "u" else 0
    stored = samples if samples.dtype.kind == "f" else (samples.astype(np.int64) - zero).astype(f"i{size}")
    cards = {
        "SIMPLE": "T",
        "BITPIX": 8 * size * (-1 if samples.dtype.kind == "f" else 1),
        "NAXIS": 2,
        "NAXIS1": samples.shape[1],
        "NAXIS2": samples.shape[0],
        **({"BZERO": zero} if zero else {}),
    }
    head = "".join(f"{name:<8}= {value:>20}".ljust(80) for name, value in cards.items()) + "END"
    body = stored[::-1].astype(stored.dtype.newbyteorder(">")).tobytes()  # from below
    return head.encode().ljust(2880) + body.ljust(2880 * -(-len(body) // 2880), b"\0")
