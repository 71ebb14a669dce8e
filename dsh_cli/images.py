"""One intake for a picture: decode, orientation, colour mode, size. Free of torch.

Training and every way of hashing read pictures here, so that all see the same pixels.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dsh_cli.errors import ImageError

MAX_PIXELS = 2 * 89_478_485  # where Pillow itself refuses: a quarter gigabyte of RGB, twice over
THUMBNAIL = 48  # pixels, the longest side of a stored thumbnail
INTAKE = 1  # raised when the same file comes to give other pixels, so that caches of them are not mixed

_EXIF_ORIENTATION = 0x0112
_WHITE = (255, 255, 255, 255)

# Pillow warns at half the size at which it refuses; here one limit holds, and it is an error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


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
    with _open(data) as image:
        try:
            image.load()
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
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


@cache
def suffixes() -> frozenset[str]:
    """Suffixes of the formats Pillow can open, in lower case with their dot."""
    return frozenset(ext for ext, name in Image.registered_extensions().items() if name in Image.OPEN)


def find(root: str | os.PathLike[str]) -> Iterator[str]:
    """Picture files below a folder, by suffix, in sorted order; what is hidden is skipped.

    A folder that cannot be listed is given itself, so that reading it says why.
    """
    try:
        with os.scandir(root) as entries:
            found = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError:
        yield os.fspath(root)
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from find(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in suffixes():
            yield entry.path


def expand(paths: Iterable[str]) -> Iterator[str]:
    """Each file as given, each folder as the pictures below it, or itself if it has none."""
    for path in paths:
        below = find(path) if os.path.isdir(path) else iter(())
        first = next(below, path)
        yield first
        yield from below


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a picture file.

    Raises:
        ImageError: there is none.
    """
    if not os.fspath(path):
        raise ImageError("empty path")
    file = Path(path)
    try:
        if file.is_dir():
            os.listdir(file)  # says why, where it cannot be listed
            raise ImageError("folder without pictures")
        if file.exists() and not file.is_file():
            raise ImageError("not a regular file")
        data = file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError(reason(error)) from error
    if not data:
        raise ImageError("empty file")
    return data


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ImageError("not a picture, or of a format Pillow does not know") from error
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large()) from error
    except Exception as error:  # as in `decode`: a damaged header can raise nearly anything
        raise ImageError(f"damaged or truncated picture ({reason(error)})") from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(_too_large())
    return image


def _decode_jpeg(data: bytes, size: int, channels: int) -> NDArray[np.uint8] | None:
    """The fast way for ordinary JPEG files; None for all others, and Pillow then decides what is wrong."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray", "RGB") or int(height) * int(width) > MAX_PIXELS:
            return None
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if channels == 1 else "RGB", min_height=size, min_width=size)
    except ValueError:
        return None
    square = _resize(Image.fromarray(pixels[..., 0] if channels == 1 else pixels), size)
    return _orient(square.reshape(size, size, channels), _jpeg_orientation(data))


def _jpeg_orientation(data: bytes) -> int:
    if b"Exif\x00\x00" not in data:
        return 1
    try:
        with _open(data) as image:
            return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # hostile EXIF: the pixels are sound, so the picture counts as upright
        return 1


def _convert(image: Image.Image, channels: int) -> Image.Image:
    """Bring any Pillow mode to 8-bit grey or RGB."""
    if image.mode.startswith("I"):  # 16-bit, or 32-bit holding 16: keep the high byte
        image = Image.fromarray((np.clip(np.asarray(image), 0, 0xFFFF) >> 8).astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image), posinf=0, neginf=0)
        scale = 255.0 if values.max() <= 1 else 1.0  # floats hold either 0 to 1 or 0 to 255
        image = Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        premultiplied = {"La": "LA", "RGBa": "RGBA"}
        image = image.convert(premultiplied.get(image.mode, image.mode)).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    elif image.mode in ("P", "LAB", "HSV", "CMYK", "YCbCr"):  # no direct way to grey
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _resize(image: Image.Image, size: int) -> NDArray[np.uint8]:
    width, height = image.size
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


def _too_large() -> str:
    return f"more than {MAX_PIXELS // 1_000_000} million pixels, the limit against decompression bombs"


def reason(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return " ".join(str(error).split()) or type(error).__name__
