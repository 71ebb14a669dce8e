"""Pictures decoded in a process of its own, for those whose cost is not known beforehand."""

from __future__ import annotations

import dataclasses
import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from dsh_cli import bounded
from dsh_cli.errors import ImageError
from dsh_cli.pictures import decoders, guesses
from dsh_cli.pictures.decoders import Form, Picture, Shape

_SLACK = 1 << 25  # bytes for all but the file and its pixels


def pixels(data: bytes, form: Form, room: AbstractContextManager[object]) -> Picture:
    """A picture of any format; see `decode.read`. A large one is in memory only while `room` is held.

    Raises:
        ImageError: it cannot be decoded, or not within the bounds.
    """
    found = _asked(data, dataclasses.astuple(form), room)
    count = form.size**2 * form.channels
    for guess in json.loads(found[count:]):
        guesses.note(guess)
    return np.frombuffer(found, np.uint8, count).reshape(form.size, form.size, form.channels).copy()


def shape(data: bytes, room: AbstractContextManager[object]) -> Shape:
    """Size and colour of a picture, from its header.

    Raises:
        ImageError: as `pixels`.
    """
    return Shape(*json.loads(_asked(data, None, room)))


def _asked(data: bytes, wanted: tuple[Any, ...] | None, room: AbstractContextManager[object]) -> bytes:
    memory = bounded.MEMORY - _SLACK - 2 * len(data)  # both sides hold the file
    try:
        return bounded.ask(__name__, wanted, data, memory, bounded.SECONDS, room)
    except bounded.Failed as error:
        raise ImageError(str(error)) from None


def serve() -> None:
    """The other side: decode what is asked for."""
    from PIL import AvifImagePlugin, Image

    Image.init()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each has a stack, which counts as memory
    bounded.serve(_decoded)


def _decoded(wanted: Any, data: bytes, wait: bounded.Wait) -> bytes:
    """Pixels and, as JSON, what was guessed; or the shape as JSON where no form is wanted."""
    if wanted is None:
        return json.dumps(dataclasses.astuple(decoders.shape(data))).encode()

    def room(count: int) -> AbstractContextManager[object]:
        if count > decoders.LARGE:
            wait()
        return nullcontext()

    found = decoders.pixels(data, Form(*wanted), room)
    return found.tobytes() + json.dumps(guesses.take()).encode()
