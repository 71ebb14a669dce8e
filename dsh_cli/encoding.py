"""Network and pictures -> codes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dsh_cli import images
from dsh_cli.batches import to_float
from dsh_cli.codes import CodeSet, Packed, binarize, pack
from dsh_cli.data import Dataset, in_order
from dsh_cli.errors import ImageError
from dsh_cli.model import HashNet
from dsh_cli.pictures import Intake, Picture, PictureFiles, default_workers

_Item = TypeVar("_Item")

_BATCH = 256  # pictures through the network at once, at most
_PIXELS = 256 * 128 * 128  # of the pictures of one batch, at most


@dataclass(frozen=True)
class Encoded:
    """One picture file's code, or why it has none."""

    path: str
    bits: int
    packed: Packed | None  # (ceil(k / 8),) uint8
    error: str | None = None


def relaxed_codes(net: HashNet, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, H, W, channels) uint8 pictures -> (n, k) outputs of the network in evaluation mode."""
    training = net.training
    net.eval()
    device, step = net.mean.device, _batch_size(net)
    with torch.inference_mode():
        parts = [
            net(to_float(torch.tensor(pictures[start : start + step], device=device))).float().cpu()
            for start in range(0, len(pictures), step)
        ]
    net.train(training)
    return torch.cat(parts).numpy() if parts else np.zeros((0, net.config.bits), np.float32)


def encode_dataset(net: HashNet, dataset: Dataset) -> CodeSet:
    """Codes of a dataset, with all that a run keeps of it; pictures that cannot be read are left out.

    Thumbnails of pictures in files are kept in a file of their own while they are needed, so that memory does not
    grow with them.
    """
    rows, relaxed = [np.zeros(0, np.int64)], [np.zeros((0, net.config.bits), np.float32)]
    size = images.thumbnail_size(dataset.images.shape[1], dataset.images.shape[2])
    thumbnails = _room((len(dataset), *size, dataset.images.shape[3]), isinstance(dataset.images, PictureFiles))
    done = 0
    for batch in dataset.read(in_order(len(dataset), _batch_size(net))):
        rows.append(batch.rows)
        relaxed.append(relaxed_codes(net, batch.images))
        thumbnails[done : done + len(batch.rows)] = images.thumbnails(batch.images)
        done += len(batch.rows)
    encoded, outputs = np.concatenate(rows), np.concatenate(relaxed)
    return CodeSet(
        bits=net.config.bits,
        packed=pack(binarize(outputs)),
        labels=dataset.labels[encoded],
        classes=dataset.classes,
        names=[dataset.names[row] for row in encoded],
        relaxed=outputs.astype(np.float16),
        thumbnails=thumbnails[:done],
    )


def _room(shape: tuple[int, ...], on_disk: bool) -> NDArray[np.uint8]:
    if not on_disk or not shape[0]:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:  # which lives as long as it is mapped
        return np.memmap(file, np.uint8, "w+", shape=shape)


def encode_files(net: HashNet, paths: Iterable[str], workers: int | None = None) -> Iterator[Encoded]:
    """Codes of picture files, in their order, decoding in `workers` threads while the network works.

    Pictures that cannot be read come as `Encoded` with an error. Memory does not grow with their number.
    """
    results = Intake(net.config.image_size, net.config.channels, workers or default_workers()).read(paths)
    readable = ((item, None if isinstance(item[1], ImageError) else item[1]) for item in results)
    for (path, picture), packed in encode_pictures(net, readable):
        yield Encoded(path, net.config.bits, packed, str(picture) if isinstance(picture, ImageError) else None)


def encode_pictures(
    net: HashNet, pictures: Iterable[tuple[_Item, Picture | None]]
) -> Iterator[tuple[_Item, Packed | None]]:
    """The code of each picture as they come, in order; where there is no picture there is no code."""
    source = iter(pictures)
    while batch := list(islice(source, _batch_size(net))):
        there = [picture for _, picture in batch if picture is not None]
        packed = iter(pack(binarize(relaxed_codes(net, np.stack(there)))) if there else ())
        for item, picture in batch:
            yield item, None if picture is None else next(packed)


def _batch_size(net: HashNet) -> int:
    """Pictures through the network at once: fewer of large ones, whose maps take more memory."""
    return max(1, min(_BATCH, _PIXELS // net.config.image_size**2))


def encode(net: HashNet, paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> CodeSet:
    """Codes of picture files, and of the pictures below folders, as a `CodeSet` in their order.

    Raises:
        ImageError: one of them cannot be read; `encode_files` goes on instead.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    found = list(encode_files(net, images.expand(os.fspath(path) for path in given)))
    for item in found:
        if item.error is not None:
            raise ImageError(f"{item.path}: {item.error}")
    width = -(-net.config.bits // 8)
    packed = [item.packed for item in found if item.packed is not None]
    return CodeSet(
        bits=net.config.bits,
        packed=np.stack(packed) if packed else np.zeros((0, width), np.uint8),
        labels=np.full(len(found), -1, np.int64),
        classes=(),
        names=tuple(item.path for item in found),
    )
