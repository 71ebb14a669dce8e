"""Many picture files read in order, ahead of whoever asks, through a cache or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dsh_cli.errors import ImageError
from dsh_cli.pictures import decode
from dsh_cli.pictures.cache import PictureCache
from dsh_cli.pictures.decode import Form, Picture
from dsh_cli.threads import ahead, default_workers

# Pictures a worker takes at a time, at most, and their bytes: handing over costs as much as decoding a small one.
_CHUNK, _CHUNK_BYTES = 64, 256 << 10
_AHEAD, _AHEAD_BYTES = 1024, 64 << 20  # pictures read before they are asked for, at most, and their bytes


@dataclass(frozen=True)
class Intake:
    """How files become pictures of one form, by so many workers, through a cache or not.

    Workers are threads, since the decoders release the interpreter's lock: nothing is pickled or left behind.
    """

    form: Form
    workers: int = field(default_factory=default_workers)
    cache: PictureCache | None = None

    def read(self, paths: Iterable[str]) -> Iterator[tuple[str, Picture | ImageError]]:
        """Each path with its picture, or with why there is none, in order; see `ahead`."""
        each = self.form.size**2 * self.form.channels  # bytes
        chunk = max(1, min(_CHUNK, _CHUNK_BYTES // each))
        return ahead(paths, self._read_chunk, self.workers, chunk, min(_AHEAD, _AHEAD_BYTES // each))

    def _read_chunk(self, paths: Sequence[str]) -> list[Picture | ImageError]:
        if self.cache is not None:
            return self.cache.read(paths)
        return [_or_error(path, self.form) for path in paths]


@dataclass(frozen=True)
class PictureFiles:
    """Pictures that stay in their files, in place of an array: for sets larger than memory should hold."""

    paths: tuple[str, ...]
    intake: Intake

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """That of the array these pictures would make: (n, size, size, channels)."""
        form = self.intake.form
        return len(self.paths), form.size, form.size, form.channels

    def __getitem__(self, chosen: NDArray[np.bool_]) -> PictureFiles:
        """The pictures where `chosen` (n,) is true."""
        return replace(self, paths=tuple(path for path, keep in zip(self.paths, chosen, strict=True) if keep))


def _or_error(path: str, form: Form) -> Picture | ImageError:
    try:
        return decode.read(path, form)
    except ImageError as error:
        return error
