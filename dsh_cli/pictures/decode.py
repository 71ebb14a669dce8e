"""One intake for a picture: decode, orientation, colour mode, size. Free of torch.

Training and every way of hashing read pictures here, so that all see the same pixels.
"""

from __future__ import annotations

import ctypes
import io
import os
import re
import stat
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from threading import Lock

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, _imaging

from dsh_cli.errors import ImageError, reason

MAX_PIXELS = 2 * 89_478_485  # where Pillow itself refuses: a quarter gigabyte of RGB, twice over
MAX_BYTES = 1 << 30  # of a file; one of `MAX_PIXELS` uncompressed takes about half
THUMBNAIL = 48  # pixels, the longest side of a stored thumbnail
INTAKE = 1  # raised when the same file comes to give other pixels, so that caches of them are not mixed
_EXIF_ORIENTATION = 0x0112
_WHITE = (255, 255, 255, 255)
# Pillow would start another program for these (EPS), leave them to one (the others), or open any format
# inside (IPTC); a picture must not decide what runs here.
_REFUSED = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
# Pixels at most of Pillow's decoders in Python, by which a few bytes become pixels for minutes.
_SLOW = {"bmp_rle": 1 << 24, "dds_rgb": 1 << 24, "fits_gzip": 1 << 22}
_MAX_SCANS = 1 << 31  # pixels of a JPEG times its scans, some seconds; it usually has one scan or ten
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # of a JPEG: what has a length, and the end
_LARGE, _one_large = 1 << 24, Lock()  # pixels, or bytes, from which pictures are decoded one at a time
_BAND = 1024  # rows of a large picture converted at once


@dataclass(frozen=True)
class Shape:
    """What a picture's header says."""

    width: int
    height: int
    grey: bool


def read(path: str | os.PathLike[str], size: int, channels: int) -> NDArray[np.uint8]:
    """Read a picture file as the network expects it.

    The largest centred square is taken and resized to `size`. Transparency is laid over white, colour
    becomes luma where one channel is asked for, grey is repeated where three are, and 16-bit samples keep
    their high byte. Of an animation the first frame counts.

    Returns:
        (size, size, channels) uint8.

    Raises:
        ImageError: the file cannot be read, is no picture, is damaged, or has more than `MAX_PIXELS`.
    """
    return decode(read_bytes(path), size, channels)


def decode(data: bytes, size: int, channels: int) -> NDArray[np.uint8]:
    """As `read`, from the bytes of the file."""
    if data[:2] == b"\xff\xd8":
        pixels = _decode_jpeg(data, size, channels)
        if pixels is not None:
            return pixels
    with _open(data) as image, _room(image.width * image.height):
        try:
            image.load()
            orientation = _orientation(image)
            square = _resize(_convert(image, channels), size)
        except Exception as error:  # Pillow's decoders raise nearly anything on hostile bytes
            raise ImageError(f"damaged or truncated picture ({reason(error)})") from error
    return _orient(square.reshape(size, size, channels), orientation)


def probe(path: str | os.PathLike[str]) -> Shape:
    """Size and colour of a picture from its header, without decoding it.

    Raises:
        ImageError: as `read`, as far as the header shows it.
    """
    with _open(read_bytes(path)) as image:
        return Shape(*image.size, grey=image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"))


def thumbnail_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a thumbnail: no side exceeds `THUMBNAIL`, and small pictures stay as they are."""
    scale = min(1.0, THUMBNAIL / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def thumbnails(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, H, W, channels) pictures reduced to `thumbnail_size`."""
    count, height, width, channels = pictures.shape
    small = thumbnail_size(height, width)
    if small == (height, width):
        return pictures
    reduced = np.empty((count, *small, channels), np.uint8)
    for picture, target in zip(pictures, reduced, strict=True):
        image = Image.fromarray(picture[..., 0] if channels == 1 else picture)
        target[...] = np.asarray(image.resize(small[::-1], Image.Resampling.BOX)).reshape(target.shape)
    return reduced


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a picture file.

    Raises:
        ImageError: there is none.
    """
    if not os.fspath(path):
        raise ImageError("empty path")
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            os.listdir(path)  # says why, where it cannot be listed
            raise ImageError("folder without pictures")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not a regular file")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"larger than {MAX_BYTES >> 30} GiB, the limit for a picture file")
        # Without Python's layers of file objects, which for a small picture cost more than decoding it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            data = os.read(descriptor, status.st_size)
            while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
                data += more
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError(reason(error)) from error
    if not data:
        raise ImageError("empty file")
    return data


@cache
def _hush() -> None:
    """Keep libtiff from writing to stderr what Pillow raises as well; one that is linked statically goes on."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _open(data: bytes) -> Image.Image:
    _hush()
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ImageError("not a picture, or of a format Pillow does not know") from error
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large()) from error
    except Exception as error:  # as in `decode`: a damaged header can raise nearly anything
        raise ImageError(f"damaged or truncated picture ({reason(error)})") from error
    if image.format in _REFUSED:
        raise ImageError(f"{image.format} files are not read")
    limit = min([_SLOW.get(tile[0], MAX_PIXELS) for tile in getattr(image, "tile", ())], default=MAX_PIXELS)
    if image.width * image.height > limit:
        raise ImageError(_too_large(limit))
    return image


def _decode_jpeg(data: bytes, size: int, channels: int) -> NDArray[np.uint8] | None:
    """The fast way for ordinary JPEG files; None for all others, and Pillow then decides what is wrong."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        pixels = height * width
        if pixels > MAX_PIXELS:
            raise ImageError(_too_large())
        if pixels * data.count(b"\xff\xda") > _MAX_SCANS and pixels * _scans(data) > _MAX_SCANS:
            raise ImageError("too many scans for its size, as in decompression bombs")
        if colorspace not in ("YCbCr", "Gray", "RGB"):
            return None
        with _room(pixels):
            decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                data, "GRAY" if channels == 1 else "RGB", min_height=size, min_width=size
            )
    except ValueError:
        return None
    orientation = _jpeg_orientation(data)
    if decoded.shape[:2] == (size, size) and orientation == 1:
        return decoded
    # Decoded at n/8 of its size, rounded up: the last column and row may be pixels in part.
    scale = 8 * max(decoded.shape[:2]) // max(height, width) / 8
    image = Image.fromarray(decoded[..., 0] if channels == 1 else decoded)
    square = _resize(image, size, (width * scale, height * scale))
    return _orient(square.reshape(size, size, channels), orientation)


def _scans(data: bytes) -> int:
    """How many scans a JPEG has, up to its end mark: there may be other things behind it."""
    scans, at = 0, 2
    while (found := _MARKER.search(data, at)) is not None and (kind := data[found.start() + 1]) != 0xD9:
        scans += kind == 0xDA
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return scans


def _room(pixels: int) -> AbstractContextManager[object]:
    """Waits while another large picture is in memory, for many at once may be more than there is."""
    return _one_large if pixels > _LARGE else nullcontext()


def _jpeg_orientation(data: bytes) -> int:
    if b"Exif\x00\x00" not in data and b"tiff:Orientation" not in data:
        return 1
    try:
        image = _open(data)
    except ImageError:
        return 1
    with image:
        return _orientation(image)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # hostile EXIF: the pixels are sound, so the picture counts as upright
        return 1
    return value if isinstance(value, int) else 1


def _convert(image: Image.Image, channels: int) -> Image.Image:
    """Bring any Pillow mode to 8-bit grey or RGB."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode and not image.has_transparency_data:
        return image
    scale = 1.0
    if image.mode == "F":  # floats hold either 0 to 1 or 0 to 255
        scale = 255.0 if np.nan_to_num(np.asarray(image), posinf=0, neginf=0).max() <= 1 else 1.0
    converted = Image.new(mode, image.size)
    for top in range(0, image.height, _BAND):
        box = (0, top, image.width, min(top + _BAND, image.height))
        converted.paste(_to_eight_bits(image.crop(box), scale).convert(mode), box)
    return converted


def _to_eight_bits(image: Image.Image, scale: float) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit, or 32-bit holding 16: keep the high byte
        return Image.fromarray((np.clip(np.asarray(image), 0, 0xFFFF) >> 8).astype(np.uint8))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image), posinf=0, neginf=0)
        return Image.fromarray((np.clip(values, 0, 255 / scale) * scale).astype(np.uint8))
    if image.has_transparency_data:
        premultiplied = {"La": "LA", "RGBa": "RGBA"}
        image = image.convert(premultiplied.get(image.mode, image.mode)).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    if image.mode in ("P", "LAB", "HSV", "CMYK", "YCbCr"):  # no direct way to grey
        return image.convert("RGB")
    return image


def _resize(image: Image.Image, size: int, extent: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """The largest centred square, resized; `extent` is how much of the image counts, from its top left."""
    width, height = extent or image.size
    if (width, height) == (size, size):
        return np.array(image)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0))


def _orient(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn (h, w, channels) upright; the numbers are those of the EXIF standard, tag 0x0112."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _too_large(limit: int = MAX_PIXELS) -> str:
    return f"more than {limit // 1_000_000} million pixels, the limit against decompression bombs"


Picture = NDArray[np.uint8]  # (size, size, channels)
