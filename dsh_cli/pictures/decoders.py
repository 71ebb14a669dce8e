"""Bytes to pixels, by libjpeg-turbo and Pillow. What that may cost is bounded by whoever calls. Free of torch."""

from __future__ import annotations

import ctypes
import io
import re
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError, _imaging

from dsh_cli.bounded import TOO_MUCH_MEMORY
from dsh_cli.config import Fit, Interpolation
from dsh_cli.errors import ImageError, reason
from dsh_cli.pictures import depth, formats
from dsh_cli.pictures.formats import looks_like_picture as looks_like_picture

Picture = NDArray[np.uint8]  # (form.size, form.size, form.channels)
Room = Callable[[int], AbstractContextManager[object]]  # held while a picture of so many pixels is in memory

MAX_PIXELS = 2 * 89_478_485  # where Pillow itself refuses: a quarter gigabyte of RGB, twice over
LARGE = 1 << 24  # pixels from which pictures are decoded one at a time
JPEG = b"\xff\xd8"  # how one begins
_EXIF_ORIENTATION = 0x0112
_WHITE = (255, 255, 255, 255)
_FILTERS: dict[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# Pixels at most of Pillow's decoders in Python, by which a few bytes become pixels for minutes.
_SLOW = {"bmp_rle": 1 << 24, "dds_rgb": 1 << 24, "fits_gzip": 1 << 22}
_MAX_WEBP = 1 << 26  # pixels: more take more than 1 GiB, which libwebp calls "could not create decoder object"
_MAX_SCANS = 1 << 31  # pixels of a JPEG times its scans, some seconds; it usually has one scan or ten
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # of a JPEG: what has a length, and the end
# Bytes, and pixels, of what is ordinary: decoding costs at most 4 s and 768 MiB, seen for the worst of each format.
_ORDINARY = 1 << 26
_LFS = b"version https://git-lfs.github.com/spec/"
_DNG_VERSION = 50706  # a tag of TIFF
_SEGMENTS = 256  # of an ordinary JPEG, before its pixels
_PNG, _CHUNK = b"\x89PNG\r\n\x1a\n", struct.Struct(">I4s")
_PLAIN_CHUNKS = frozenset(  # small ones, beside the pixels
    (b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs", b"tIME", b"tEXt", b"IEND")
)
# Uncompressed, behind one of the headers there are.
_PLAIN_BMP = re.compile(rb"BM.{12}(\x0c|[\x28\x34\x38\x40\x6c\x7c]\0\0\0.{12}[\0\3]\0\0\0)", re.DOTALL)
_GAP = rb"(\s|#[^\r\n]{0,200}[\r\n]){1,9}"
# Binary, of one or eight bits, with short comments at most.
_PLAIN_PPM = re.compile(rb"P(4%b\d{1,9}%b\d{1,9}|[56]%b\d{1,9}%b\d{1,9}%b255)\s" % ((_GAP,) * 5))


@dataclass(frozen=True)
class Form:
    """What pictures are made to be.

    Attributes:
        size: pixels across, square.
        channels: 1 for grey, 3 for RGB.
        fit: the largest centred square of a picture; or all of it, with white at two sides; or all of it, stretched.
        interpolation: between pixels.
    """

    size: int
    channels: int
    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"


@dataclass(frozen=True)
class Shape:
    """What a picture's header says."""

    width: int
    height: int
    grey: bool


def pixels(data: bytes, form: Form, room: Room) -> Picture:
    """A picture of any format, whatever it costs; see `decode.read`."""
    found = jpeg(data, form, room, MAX_PIXELS) if data.startswith(JPEG) else None
    if found is None:
        found = by_pillow(data, form, room)
    assert found is not None  # none has more than MAX_PIXELS
    return found


def ordinary(data: bytes, form: Form, room: Room) -> Picture | None:
    """As `pixels`, for JPEG, PNG, BMP and PPM files that are known to take 4 s and 768 MiB at most; None for others."""
    if len(data) > _ORDINARY:
        return None
    if data.startswith(JPEG):
        return jpeg(data, form, room, _ORDINARY)
    allowed = _ordinary_formats(data)
    return by_pillow(data, form, room, allowed, _ORDINARY) if allowed else None


def shape(data: bytes) -> Shape:
    """Size and colour of a picture from its header, whatever that costs."""
    return _shape(_open(data))


def ordinary_shape(data: bytes) -> Shape | None:
    """As `shape`, where `ordinary` would decode it."""
    if len(data) > _ORDINARY:
        return None
    if data.startswith(JPEG):
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return None
        return Shape(width, height, grey=colorspace == "Gray") if height * width <= MAX_PIXELS else None
    allowed = _ordinary_formats(data)
    return _shape(_open(data, allowed)) if allowed else None


def _shape(opened: Image.Image) -> Shape:
    with opened as image:
        return Shape(*image.size, grey=image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"))


def _ordinary_formats(data: bytes) -> tuple[str, ...]:
    """The format, where Pillow reads it in C, and nothing in the header unfolds to more than it says."""
    if data.startswith(_PNG):
        return ("PNG",) if _plain_png(data) else ()
    if data.startswith(b"BM"):
        return ("BMP",) if _PLAIN_BMP.match(data) else ()
    return ("PPM",) if _PLAIN_PPM.match(data) else ()


def _plain_png(data: bytes) -> bool:
    """Whether a PNG has none but usual chunks, which are no text to unpack and no animation, and not very many.

    Colour of 16 bits is left to others: where it is dark, it is decoded twice.
    """
    if data[24:25] == b"\x10" and data[25:26] != b"\0":
        return False
    at, last = len(_PNG), len(data) - _CHUNK.size
    for _ in range(64 + len(data) // 256):
        if at > last:  # cut short: Pillow says so
            return True
        length, kind = _CHUNK.unpack_from(data, at)
        if kind != b"IDAT" and (length > 4096 or kind not in _PLAIN_CHUNKS):
            return False
        at += 12 + length
    return False


def _plain_jpeg(data: bytes) -> bool:
    """Whether what Pillow reads of a JPEG, up to its pixels, is no more than a camera writes."""
    at, exif = 2, 0
    for _ in range(_SEGMENTS):
        marker, length = data[at : at + 2], int.from_bytes(data[at + 2 : at + 4], "big")
        if not _MARKER.fullmatch(marker) or length < 2:
            return False
        if marker == b"\xff\xda":
            return True
        exif += marker == b"\xff\xe1" and data.startswith(b"Exif", at + 4)
        if exif > 1:  # Pillow joins them, and reads one entry over and over
            return False
        at += 2 + length
    return False


def by_pillow(
    data: bytes,
    form: Form,
    room: Room,
    allowed: tuple[str, ...] | None = None,
    most: int = MAX_PIXELS,
) -> Picture | None:
    """A picture of one of the formats allowed, or of any; None if it has more than `most` pixels."""
    with _open(data, allowed) as image:
        if image.width * image.height > most:
            return None
        with room(image.width * image.height):
            try:
                loaded = depth.load(image, data, lambda: _open(data, allowed))
                orientation = _orientation(image)
                square = _square(_convert(loaded, form.channels), form)
            except MemoryError as error:
                raise ImageError(TOO_MUCH_MEMORY) from error
            except Exception as error:  # Pillow's decoders raise nearly anything on hostile bytes
                raise ImageError(f"damaged or truncated picture ({reason(error)})") from error
    return _orient(square, orientation)


def _open(data: bytes, allowed: tuple[str, ...] | None = None) -> ImageFile.ImageFile:
    _hush()
    if _webp_pixels(data) > _MAX_WEBP:
        raise ImageError(_too_large(_MAX_WEBP))
    head = data[: formats.HEAD]
    if head[4:8] == b"ftyp":
        _read_heif()
    elif head[:2] in (b"II", b"MM"):
        depth.more_of_tiff()
    if formats.is_raw("", head):
        raise ImageError(formats.RAW_NOT_READ)
    try:
        image = Image.open(io.BytesIO(data), formats=allowed)
    except UnidentifiedImageError as error:
        kind = looks_like_picture(head)
        if data.startswith(_LFS):
            raise ImageError("a pointer of Git LFS in place of the picture; fetch it with: git lfs pull") from error
        message = f"a {kind} file that is damaged, or of a kind that is not read; save it anew, as JPEG or PNG"
        raise ImageError(message if kind else "not a picture, or of a format Pillow does not know") from error
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large()) from error
    except MemoryError as error:
        raise ImageError(TOO_MUCH_MEMORY) from error
    except Exception as error:  # as in `by_pillow`: a damaged header can raise nearly anything
        raise ImageError(f"damaged or truncated picture ({reason(error)})") from error
    if image.format in formats.REFUSED:
        raise ImageError(f"{image.format} files are not read")
    if _DNG_VERSION in depth.tags_of(image):  # what is opened is the small preview
        raise ImageError(formats.RAW_NOT_READ)
    limit = min([_SLOW.get(tile[0], MAX_PIXELS) for tile in getattr(image, "tile", ())], default=MAX_PIXELS)
    if image.width * image.height > limit:
        raise ImageError(_too_large(limit))
    return image


def _webp_pixels(data: bytes) -> int:
    """The pixels that the header of a WebP says it has; 0 of what is none."""
    head = data[:30]
    if len(head) < 30 or not head.startswith(b"RIFF") or head[8:15] != b"WEBPVP8":
        return 0
    match head[15:16]:
        case b"X":  # a canvas, for all that is more than one picture: sizes less one
            return (1 + int.from_bytes(head[24:27], "little")) * (1 + int.from_bytes(head[27:30], "little"))
        case b"L":  # without loss: sizes less one, of 14 bits each
            sizes = int.from_bytes(head[21:25], "little")
            return (1 + (sizes & 0x3FFF)) * (1 + (sizes >> 14 & 0x3FFF))
        case b" ":  # with two bits of scale above each size
            return (int.from_bytes(head[26:28], "little") & 0x3FFF) * (int.from_bytes(head[28:30], "little") & 0x3FFF)
    return 0


@cache
def _read_heif() -> None:
    """Let Pillow open HEIC and HEIF: one thread, for each has its memory, and only the picture itself."""
    import pillow_heif

    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


@cache
def _hush() -> None:
    """Keep libtiff from writing to stderr what Pillow raises as well; one that is linked statically goes on."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def jpeg(data: bytes, form: Form, room: Room, most: int) -> Picture | None:
    """The fast way for JPEG files of up to `most` pixels; None for all others, and Pillow decides what is wrong."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        count = height * width
        if count > most or colorspace not in ("YCbCr", "Gray", "RGB"):
            return None
        if count * data.count(b"\xff\xda") > _MAX_SCANS:
            if most < MAX_PIXELS:
                return None
            if count * _scans(data) > _MAX_SCANS:
                raise ImageError("too many scans for its size, as in decompression bombs")
        turned = b"Exif\x00\x00" in data or b"tiff:Orientation" in data
        if turned and most < MAX_PIXELS and not _plain_jpeg(data):
            return None
        with room(count):
            least_width, least_height = _within(form, width, height)
            decoded: Picture = simplejpeg.decode_jpeg(
                data, "GRAY" if form.channels == 1 else "RGB", min_height=least_height, min_width=least_width
            )
    except ValueError:
        return None
    orientation = _jpeg_orientation(data) if turned else 1
    if decoded.shape[:2] == (form.size, form.size) and orientation == 1:
        return decoded
    # Decoded at n/8 of its size, rounded up: the last column and row may be pixels in part.
    scale = 8 * max(decoded.shape[:2]) // max(height, width) / 8
    image = Image.fromarray(decoded[..., 0] if form.channels == 1 else decoded)
    return _orient(_square(image, form, (width * scale, height * scale)), orientation)


def _scans(data: bytes) -> int:
    """How many scans a JPEG has, up to its end mark: there may be other things behind it."""
    scans, at = 0, 2
    while (found := _MARKER.search(data, at)) is not None and (kind := data[found.start() + 1]) != 0xD9:
        scans += kind == 0xDA
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return scans


def _jpeg_orientation(data: bytes) -> int:
    try:
        image = _open(data, ("JPEG",))
    except ImageError:
        return 1
    with image:
        return _orientation(image)


def _orientation(image: Image.Image) -> int:
    if image.format == "HEIF":  # turned by the properties of its file, besides which EXIF counts for nothing
        return 1
    try:
        value = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # hostile EXIF: the pixels are sound, so the picture counts as upright
        return 1
    return value if isinstance(value, int) else 1


def _convert(image: Image.Image, channels: int) -> Image.Image:
    """Bring any Pillow mode of eight bits to grey or RGB."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode and not image.has_transparency_data:
        return image
    converted = Image.new(mode, image.size)
    for box in depth.boxes(image):
        converted.paste(_on_white(image.crop(box)).convert(mode), box)
    return converted


def _on_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        premultiplied = {"La": "LA", "RGBa": "RGBA"}
        image = image.convert(premultiplied.get(image.mode, image.mode)).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    if image.mode in ("P", "LAB", "HSV", "CMYK", "YCbCr"):  # no direct way to grey
        return image.convert("RGB")
    return image


def _square(image: Image.Image, form: Form, extent: tuple[float, float] | None = None) -> Picture:
    """A picture in its form; `extent` is how much of the image counts, from its top left."""
    width, height = extent or image.size
    shape = (form.size, form.size, form.channels)
    if (width, height) == (form.size, form.size):
        return np.array(image).reshape(shape)
    across, down = (min(width, height),) * 2 if form.fit == "crop" else (width, height)
    left, top = (width - across) / 2, (height - down) / 2
    box = (left, top, left + across, top + down)
    within = _within(form, width, height)
    resized = image.resize(within, _FILTERS[form.interpolation], box=box, reducing_gap=2.0)
    if within == (form.size, form.size):
        return np.array(resized).reshape(shape)
    square = np.full(shape, _WHITE[0], np.uint8)
    at_left, at_top = (form.size - within[0]) // 2, (form.size - within[1]) // 2
    square[at_top : at_top + within[1], at_left : at_left + within[0]] = np.array(resized).reshape(
        within[1], within[0], form.channels
    )
    return square


def _within(form: Form, width: float, height: float) -> tuple[int, int]:
    """Width and height of a picture within its square: all of that, or with equal margins at two sides.

    Margins are equal so that a picture which is turned by its EXIF comes to the same as one that was saved upright.
    """
    if form.fit != "pad":
        return form.size, form.size
    longest, most = max(width, height), (form.size - 1) // 2

    def length(side: float) -> int:
        return form.size - 2 * min(most, round(form.size * (1 - side / longest) / 2))

    return length(width), length(height)


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
