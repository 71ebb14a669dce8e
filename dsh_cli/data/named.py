"""Named sets: MNIST, Fashion-MNIST, CIFAR-10, scikit-learn's digits."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsh_cli.config import TrainConfig
from dsh_cli.data.dataset import Dataset
from dsh_cli.data.download import CIFAR_FILES, IDX_FILES, NAMED_SETS, locate
from dsh_cli.errors import DataError, reason
from dsh_cli.files import open_regular

MEMORY = 8 << 30  # bytes of a named set, at most
_MOST = 1 << 28  # bytes of one of its files, of which the largest has 45 MiB

_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CLASSES = {"mnist": _DIGITS, "fashion-mnist": _FASHION, "cifar10": _CIFAR, "digits": _DIGITS}


def load_named(config: TrainConfig) -> tuple[Dataset, Dataset | None]:
    """The training part of a named set, and its test part where it comes with one.

    Raises:
        DataError: it cannot be had, or is damaged.
    """
    if config.data == "digits":
        return resized(_load_digits(), config.image_size), None
    folder = locate(config.data, config.data_root)
    named = NAMED_SETS[config.data]
    read = _read_cifar if named.files is CIFAR_FILES else _read_idx_pair
    parts = []
    for split, files in zip(("train", "test"), _split_files(named.files), strict=True):
        pixels, labels = read(folder, files)
        names = tuple(f"{config.data}/{split}/{i:05d}" for i in range(len(labels)))
        part = Dataset(pixels, labels, _CLASSES[config.data], names, str(folder))
        parts.append(resized(part, config.image_size))
    return parts[0], parts[1]


def _split_files(files: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (files[:2], files[2:]) if files is IDX_FILES else (files[:-1], files[-1:])


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # 17 grey levels
    names = tuple(f"digits/{i:04d}" for i in range(len(pixels)))
    return Dataset(pixels, bunch.target.astype(np.int64), _DIGITS, names, "scikit-learn")


def _read_idx_pair(folder: Path, files: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    pixels, labels = (_read_idx(folder / file) for file in files)
    if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels) or labels.max(initial=0) > 9:
        raise DataError(f"{folder / files[0]} and {files[1]} do not belong together; delete both and try again")
    return pixels[..., None], labels.astype(np.int64)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes, plain or gzipped: magic 0, 0, 8, dimensions, then their sizes."""
    data = _read_bytes(path)
    try:
        shape = np.frombuffer(data, ">u4", count=data[3], offset=4).astype(int)
        values = np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape))
        if data[:3] != b"\x00\x00\x08" or len(values) != shape.prod():
            raise ValueError("wrong length")
    except (ValueError, IndexError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and try again") from error
    return values.reshape(shape)


def _read_bytes(path: Path) -> bytes:
    """A file of a named set, plain or gzipped."""
    file = path if path.is_file() else path.with_name(f"{path.name}.gz")
    try:
        with os.fdopen(open_regular(file), "rb") as opened:
            plain = opened if file is path else gzip.GzipFile(fileobj=opened)
            data = plain.read(_MOST + 1)
        if len(data) > _MOST:
            raise OSError(f"more than {_MOST >> 20} MiB, unpacked")
        return data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is damaged ({reason(error)}); delete it and try again") from error


def _read_cifar(folder: Path, files: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Records of one label byte and 3 x 32 x 32 bytes, colour plane by colour plane."""
    parts = []
    for file in files:
        path = folder / file
        data = _read_bytes(path)
        record = 1 + 3 * 32 * 32
        if not data or len(data) % record or max(data[::record]) >= len(_CIFAR):
            raise DataError(f"{path} is damaged; delete it and try again")
        parts.append(np.frombuffer(data, np.uint8).reshape(-1, record))
    records = np.concatenate(parts)
    pixels = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return pixels, records[:, 0].astype(np.int64)


def resized(dataset: Dataset, size: int | None) -> Dataset:
    """Pictures of another size, in pixels; as they are for None."""
    if size is None or size == dataset.image_size:
        return dataset
    require_memory(len(dataset), size, dataset.channels)
    grey = dataset.channels == 1
    assert isinstance(dataset.images, np.ndarray)
    resized = [
        np.asarray(Image.fromarray(p[..., 0] if grey else p).resize((size, size), Image.Resampling.BILINEAR))
        for p in dataset.images
    ]
    return replace(dataset, images=np.stack(resized).reshape(-1, size, size, dataset.channels))


def require_memory(count: int, size: int, channels: int) -> None:
    """Refuse to hold more than `MEMORY`.

    Raises:
        DataError: so many pictures would take more.
    """
    if (needed := count * size * size * channels) > MEMORY:
        raise DataError(
            f"{count:,} pictures of {size} x {size} pixels take {needed / 2**30:.0f} GiB of memory, more than the "
            f"{MEMORY >> 30} GiB there may be; choose a smaller `image_size`"
        )
