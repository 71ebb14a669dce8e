"""Labelled pictures, in memory or in their files, or features in place of these."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from dsh_cli.errors import ImageError
from dsh_cli.pictures.reading import PictureFiles

Progress = Callable[[int, int], None]  # pictures done, pictures in all


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be read, and why."""

    path: str
    error: str


@dataclass(frozen=True)
class Batch:
    """Pictures read at once: (b, H, W, channels) uint8, their (b,) rows in the dataset, and what could not be read."""

    images: NDArray[np.uint8]
    rows: NDArray[np.int64]
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Labelled pictures, in memory or in their files, or features in place of these.

    Attributes:
        images: (n, H, W, channels) uint8, or the files where that would be more than memory should hold; (n, 0, 0, 0)
            where there are features alone.
        labels: (n,) int64, index into `classes`.
        classes: class names.
        names: the path of each picture, or a name such as `mnist/test/00012`.
        source: where the pictures came from.
        skipped: pictures of the source that could not be read; those in files are not known before they are read.
        features: (n, views, d) float32 that the network goes on from in place of pictures: of each as it is, and of
            its mirror image where that counts too. None: it begins with the pictures.
        thumbnails: (n, h, w, channels) uint8 of the pictures, where features stand for them.
    """

    images: NDArray[np.uint8] | PictureFiles
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    names: tuple[str, ...]
    source: str
    skipped: tuple[Skipped, ...] = ()
    features: NDArray[np.float32] | None = None
    thumbnails: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def width(self) -> int:
        """Numbers in a vector, where the data are such; 0 for pictures."""
        return self.features.shape[2] if self.features is not None and not self.image_size else 0

    @property
    def image_size(self) -> int:
        """Side of the pictures in pixels."""
        return int(self.images.shape[1])

    @property
    def channels(self) -> int:
        """1 for grey pictures, 3 for RGB, 0 where there are none."""
        return int(self.images.shape[3])

    def take(self, chosen: NDArray[np.bool_]) -> Dataset:
        """The pictures where `chosen` (n,) is true."""
        names = tuple(name for name, keep in zip(self.names, chosen, strict=True) if keep)
        return replace(
            self,
            images=self.images[chosen],
            labels=self.labels[chosen],
            names=names,
            skipped=(),
            features=None if self.features is None else self.features[chosen],
            thumbnails=None if self.thumbnails is None else self.thumbnails[chosen],
        )

    def read(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[Batch]:
        """The pictures of each batch of rows; those in files are read ahead, while the caller is busy."""
        if not isinstance(self.images, PictureFiles):
            for rows in batches:
                yield Batch(self.images[rows], rows)
            return
        files = self.images
        waiting: deque[NDArray[np.int64]] = deque()  # batches whose paths were handed out, for those to come

        def paths() -> Iterator[str]:
            for rows in batches:
                waiting.append(rows)
                yield from (files.paths[row] for row in rows)

        results = files.intake.read(paths())
        for path, first in results:
            rows = waiting.popleft()
            read = [(path, first), *islice(results, len(rows) - 1)]
            pictures = [picture for _, picture in read if not isinstance(picture, ImageError)]
            failed = tuple(Skipped(path, str(error)) for path, error in read if isinstance(error, ImageError))
            fine = np.array([not isinstance(picture, ImageError) for _, picture in read])
            stacked = np.stack(pictures) if pictures else np.zeros((0, *files.shape[1:]), np.uint8)
            yield Batch(stacked, rows[fine], failed)


def in_order(count: int, size: int) -> Iterator[NDArray[np.int64]]:
    """The rows of a dataset of `count`, `size` at a time."""
    return (np.arange(start, min(start + size, count)) for start in range(0, count, size))
