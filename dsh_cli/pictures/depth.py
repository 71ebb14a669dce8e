"""Pictures of samples that are not 0 to 255, brought to eight bits."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from dsh_cli.pictures import guesses, ranges
from dsh_cli.pictures.ranges import Range, Samples

BAND = 1024  # rows of a large picture converted at once

# Formats of which Pillow scales deep samples to 16 bits by what the file says.
_SCALED = ("AVIF", "HEIF", "JPEG2000", "PPM")
# Of 16-bit colour Pillow gives the high bytes; read in this way, the low ones.
_LOW_BYTES = {
    f"{bands};16{order}": f"{bands};16{other}"
    for bands in ("RGB", "RGBX", "RGBA")
    for order, other in ("BL", "LB", "NB" if sys.byteorder == "little" else "NL")
} | {"LA;16B": "RGBA"}
_ALL, _OF_GREY = slice(None), [1, 1, 1, 3]  # where the bands lie then
_OF_AN_ORDER = re.compile(r"([IF];(?:16|32|64))B?([SF]?)$")
_UNSIGNED_FITS, _FITS_HEAD = re.compile(rb"BZERO   = *(32768|2147483648)\b"), 1 << 15
# Tags of TIFF
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_LOWEST, _HIGHEST = (340, 280), (341, 281)
_NO_DATA = 42113  # GDAL's, as text
_MOST = 1 << 52  # that a tag may say: above is no brightness, but the highest of all numbers


def tags_of(image: ImageFile.ImageFile) -> Mapping[int, Any]:
    """The tags of a TIFF, none of other formats."""
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def load(image: ImageFile.ImageFile, data: bytes, reopen: Callable[[], ImageFile.ImageFile]) -> Image.Image:
    """Load a picture that was opened, and bring deep and signed samples to eight bits; see `ranges.of`.

    Args:
        image: the picture.
        data: its file.
        reopen: opens it once more.
    """
    tags, raw = tags_of(image), _raw_mode(image)
    said = _said(image, data, tags)
    if tags and image.tile and image.tile[0].codec_name == "libtiff":  # it gives samples in the order of this machine
        _read_as(image, _OF_AN_ORDER.sub(r"\1N\2", raw))
    image.load()
    if raw in _LOW_BYTES:
        return _colour(image, raw, said, reopen)
    kind = _type(image, data, tags)
    if kind is None:
        return image
    bits = None if kind.kind == "f" else 8 * kind.itemsize - (kind.kind == "i")
    shifted = 1 << 8 * kind.itemsize - 1 if image.format == "FITS" and kind.kind == "u" else 0

    def bands() -> Iterator[Samples]:
        for box in boxes(image):
            band = np.asarray(image.crop(box)).astype(kind, copy=False)
            yield band ^ shifted if shifted else band

    inverted = bool(tags) and tags.get(_PHOTOMETRIC, 0) == 0
    return _mapped(Image.new("L", image.size), bands, ranges.of(bands, bits, said, _missing(tags)), inverted)


def _type(image: ImageFile.ImageFile, data: bytes, tags: Mapping[int, Any]) -> np.dtype[Any] | None:
    """The type of grey samples as it is in the file; None for 0 to 255, and for colour."""
    signed, wide = tags.get(_SAMPLE_FORMAT) == (2,), tags.get(_BITS, (32,)) == (32,)
    if image.mode == "F":
        return np.dtype(np.float32)
    if image.mode == "L" and signed:
        return np.dtype(np.int8)
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return None
    if image.format == "FITS":  # signed, or so many more than they are
        form = "u" if _UNSIGNED_FITS.search(data, 0, _FITS_HEAD) else "i"
        return np.dtype(f"{form}{4 if image.mode == 'I' else 2}")
    if image.mode == "I":
        return np.dtype(np.uint32 if tags and not signed else np.int32 if wide else np.int16)
    return np.dtype(np.uint16)


def _colour(
    image: ImageFile.ImageFile, raw: str, said: Range | None, reopen: Callable[[], ImageFile.ImageFile]
) -> Image.Image:
    """16-bit colour, of which Pillow has given the high bytes."""
    if said.white == 0xFFFF if said is not None else _is_bright(image):
        return image
    low = reopen()
    _read_as(low, _LOW_BYTES[raw])
    low.load()
    lying = _OF_GREY if raw == "LA;16B" else _ALL

    def bands() -> Iterator[Samples]:
        for box in boxes(image):
            yield np.asarray(image.crop(box)).astype(np.uint16) << 8 | np.asarray(low.crop(box))[..., lying]

    if said is None:  # joined, a pixel has as many bits as its brightest band
        joined = [band[..., 0] | band[..., 1] | band[..., 2] for band in bands()]
        return _mapped(image, bands, ranges.of(lambda: iter(joined), 16))
    return _mapped(image, bands, ranges.of(lambda: (band[..., :3] for band in bands()), 16, said))


def _is_bright(image: Image.Image) -> bool:
    """Whether more than a few pixels have more than 14 bits, seen from the high bytes of one band or another."""
    counts = np.array(image.histogram()).reshape(-1, 256)[:3, 64:].sum(axis=1)
    return bool(counts.max() > ranges.few(image.width * image.height, ranges.ABOVE))


def _mapped(image: Image.Image, bands: ranges.Bands, found: Range, inverted: bool = False) -> Image.Image:
    """The samples of all bands in a picture, which may be the one that they come from."""
    if found.guessed:
        guesses.note(f"{found.black:,.10g} to {found.white:,.10g}")
    for box, band in zip(boxes(image), bands(), strict=True):
        image.paste(Image.fromarray(found.eight_bits(band, inverted)), box)
    return image


def boxes(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """A picture in bands of rows."""
    for top in range(0, image.height, BAND):
        yield 0, top, image.width, min(top + BAND, image.height)


def _said(image: ImageFile.ImageFile, data: bytes, tags: Mapping[int, Any]) -> Range | None:
    """The range that a file says its samples have."""
    if image.mode != "F" and (
        image.format in _SCALED or (image.format == "PNG" and b"sBIT" in data[: data.find(b"IDAT")])
    ):
        return Range(0, 0xFFFF)
    white = _number(tags, _HIGHEST, max)
    if white is not None:
        return Range(_number(tags, _LOWEST, min) or 0, white)
    return Range(0, 0xFFF) if tags.get(_BITS) == (12,) else None


def _missing(tags: Mapping[int, Any]) -> float | None:
    """The sample that a TIFF says stands for no data."""
    try:
        number = float(tags[_NO_DATA])
    except (KeyError, TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _number(tags: Mapping[int, Any], names: tuple[int, ...], choose: Callable[[Any], Any]) -> float | None:
    """The first of the tags that has a number, chosen from those of all bands."""
    for name in names:
        value = tags.get(name)
        try:
            number = float(choose(value if isinstance(value, tuple) else (value,)))
        except (TypeError, ValueError, ZeroDivisionError):
            continue
        if abs(number) <= _MOST:
            return number
    return None


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How the samples lie in the file, in Pillow's words."""
    args = image.tile[0].args if getattr(image, "tile", None) else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _read_as(image: ImageFile.ImageFile, raw: str) -> None:
    """Let the samples be read as if they lay otherwise in the file."""
    image.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile
    ]


@cache
def more_of_tiff() -> None:
    """Let Pillow open grey TIFFs of depths that it knows in the other byte order or polarity alone."""
    from PIL import TiffImagePlugin

    for photometric, (end, order) in itertools.product((0, 1), ((b"II", ""), (b"MM", "B"))):
        for form, bits, mode, raw in (
            (2, 8, "L", "L"),
            (1, 16, f"I;16{order}", f"I;16{order}"),
            (2, 16, "I", f"I;16{order}S"),
            (1, 32, "I", f"I;32{order}"),
            (2, 32, "I", f"I;32{order}S"),
            (3, 32, "F", f"F;32{order}F"),
            (3, 64, "F", f"F;64{order}F"),
        ):
            TiffImagePlugin.OPEN_INFO.setdefault((end, photometric, (form,), 1, (bits,), ()), (mode, raw))
