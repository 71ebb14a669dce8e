"""Room for arrays that may be larger than memory should hold."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsh_cli.errors import DshError, reason
from dsh_cli.pictures import decode
from dsh_cli.pictures.reading import PictureFiles


def room_for(pictures: PictureFiles) -> NDArray[np.uint8]:
    """Room for the thumbnails of pictures, as `room` gives it."""
    count, height, width, channels = pictures.shape
    return room((count, *decode.thumbnail_size(height, width), channels))


def room(shape: tuple[int, ...], dtype: Any = np.uint8) -> NDArray[Any]:
    """An array in a file that lives as long as it is mapped.

    Raises:
        DshError: there is no room for such a file.
    """
    if not shape[0]:
        return np.empty(shape, dtype)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        with tempfile.TemporaryFile() as file:
            _reserve(file.fileno(), size)  # where a full disk has no block for a mapped page, writing to it is SIGBUS
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise
        raise DshError(_no_room(size, error)) from error


def _reserve(file: int, size: int) -> None:
    """Give an empty file so many bytes."""
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # of file systems that have no such call
                raise
    zeros = bytes(1 << 20)
    while size:
        size -= os.write(file, zeros[:size])


def _no_room(size: int, error: OSError) -> str:
    """What to say of a file for thumbnails that cannot be had."""
    try:
        folder = tempfile.gettempdir()
        free = f", where {shutil.disk_usage(folder).free / 1e6:,.1f} MB are free"
    except OSError:  # there is none to be written to
        folder, free = "the folder for temporary files", ""
    return (
        f"cannot keep {size / 1e6:,.1f} MB of scratch data in {folder}{free} ({reason(error)}); "
        "free space there, or name another folder in the environment variable TMPDIR"
    )
