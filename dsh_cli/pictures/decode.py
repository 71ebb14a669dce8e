"""One intake for a picture: decode, orientation, colour mode, size. Free of torch.

Training and every way of hashing read pictures here, so that all see the same pixels.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsh_cli.errors import ImageError, reason
from dsh_cli.files import open_regular
from dsh_cli.pictures import decoders, formats, worker
from dsh_cli.pictures.decoders import Form as Form
from dsh_cli.pictures.decoders import Picture as Picture
from dsh_cli.pictures.decoders import Shape as Shape

MAX_BYTES = 1 << 28  # of a file: as much again is taken by its pixels, four times over
THUMBNAIL = 48  # pixels, the longest side of a stored thumbnail
INTAKE = 3  # raised when the same file comes to give other pixels, so that caches of them are not mixed
_one_large = Lock()  # held while one is in memory


def read(path: str | os.PathLike[str], form: Form) -> Picture:
    """Read a picture file as the network expects it.

    What `form` says of it is resized. Transparency is laid over white, colour
    becomes luma where one channel is asked for, and grey is repeated where three are. Samples of more than eight
    bits, signed ones and floats are brought to eight by the range that the file says they have, or else by their
    own (see `ranges.of`); full 16 bits keep their high byte. Of an animation the first frame counts, of HEIF the
    primary picture.

    Ordinary files are decoded here; all others, and what is damaged, in a process of its own, with bounds on its
    time and memory (see `worker`).

    Returns:
        (form.size, form.size, form.channels) uint8.

    Raises:
        ImageError: the file cannot be read, is no picture, is damaged, or takes more than a picture may.
    """
    return decode(read_bytes(path), form)


def decode(data: bytes, form: Form) -> Picture:
    """As `read`, from the bytes of the file."""
    found = decoders.ordinary(data, form, _room)
    return worker.pixels(data, form, _one_large) if found is None else found


def probe(path: str | os.PathLike[str]) -> Shape:
    """Size and colour of a picture from its header, without decoding it.

    Raises:
        ImageError: as `read`, as far as the header shows it.
    """
    data = read_bytes(path)
    return decoders.ordinary_shape(data) or worker.shape(data, _one_large)


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
        # Without Python's layers of file objects, which for a small picture cost more than decoding it.
        descriptor = open_regular(path)
        try:
            size = os.fstat(descriptor).st_size
            if size > MAX_BYTES:
                raise ImageError(f"larger than {MAX_BYTES >> 20} MiB, the limit for a picture file")
            data = os.read(descriptor, size)
            while len(data) < size and (more := os.read(descriptor, size - len(data))):
                data += more
        finally:
            os.close(descriptor)
    except IsADirectoryError as error:
        raise ImageError(_folder(path)) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError(reason(error)) from error
    if not data:
        raise ImageError("empty file")
    if formats.is_raw(path, data[: formats.HEAD]):
        raise ImageError(formats.RAW_NOT_READ)
    return data


def _folder(path: str | os.PathLike[str]) -> str:
    """What is wrong with a folder in place of a picture."""
    try:
        os.listdir(path)
    except OSError as error:
        return reason(error)
    return "folder without pictures"


def _room(pixels: int) -> AbstractContextManager[object]:
    """Waits while another large picture is in memory, for many at once may be more than there is."""
    return _one_large if pixels > decoders.LARGE else nullcontext()
