"""HEIC files, made as phones make them, without telling Pillow of the format."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
LOSSLESS = {"quality": -1, "chroma": 444}


def heic(pixels: NDArray[Any], bits: int = 8, orientation: int = 1, **options: Any) -> bytes:
    """(h, w) or (h, w, bands) pixels of 8, or of 16 to be kept as 10 or 12 bits."""
    height, width, bands = (*pixels.shape, 1)[:3]
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    deep = pixels.dtype.itemsize == 2
    pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
    pillow_heif.encode(
        _MODES[bands] + ";16" * deep,
        (width, height),
        np.ascontiguousarray(pixels).tobytes(),
        buffer,
        exif=exif.tobytes(),
        **(LOSSLESS | options),
    )
    return buffer.getvalue()


def several(pictures: list[NDArray[np.uint8]], primary: int) -> bytes:
    """A file of several grey pictures, one of them the primary one."""
    file = pillow_heif.from_pillow(Image.fromarray(pictures[0]))
    for pixels in pictures[1:]:
        file.add_from_pillow(Image.fromarray(pixels))
    buffer = io.BytesIO()
    file.save(buffer, primary_index=primary, **LOSSLESS)
    return buffer.getvalue()
