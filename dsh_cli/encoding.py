"""Network and pictures -> codes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dsh_cli import images
from dsh_cli.batches import to_float
from dsh_cli.codes import CodeSet, Packed, binarize, pack
from dsh_cli.data import Dataset
from dsh_cli.errors import ImageError
from dsh_cli.model import HashNet

_BATCH = 256  # pictures through the network at once
_AHEAD = 4 * _BATCH  # pictures decoded before the network asks for them


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
    device = net.mean.device
    with torch.inference_mode():
        parts = [
            net(to_float(torch.tensor(pictures[start : start + _BATCH], device=device))).float().cpu()
            for start in range(0, len(pictures), _BATCH)
        ]
    net.train(training)
    return torch.cat(parts).numpy() if parts else np.zeros((0, net.config.bits), np.float32)


def encode_dataset(net: HashNet, dataset: Dataset) -> CodeSet:
    """Codes of a dataset, with all that a run keeps of it."""
    relaxed = relaxed_codes(net, dataset.images)
    return CodeSet(
        bits=net.config.bits,
        packed=pack(binarize(relaxed)),
        labels=dataset.labels,
        classes=dataset.classes,
        names=dataset.names,
        relaxed=relaxed.astype(np.float16),
        thumbnails=images.thumbnails(dataset.images),
    )


def encode_files(net: HashNet, paths: Iterable[str]) -> Iterator[Encoded]:
    """Codes of picture files, in their order, decoding while the network works.

    Pictures that cannot be read come as `Encoded` with an error. Memory does not grow with their number.
    """
    size, channels = net.config.image_size, net.config.channels

    def read(path: str) -> NDArray[np.uint8] | ImageError:
        try:
            return images.read(path, size, channels)
        except ImageError as error:
            return error

    pending: deque[tuple[str, Future[NDArray[np.uint8] | ImageError]]] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for path in paths:
                pending.append((path, pool.submit(read, path)))
                if len(pending) >= _AHEAD:
                    yield from _encode_batch(net, [pending.popleft() for _ in range(_BATCH)])
            while pending:
                yield from _encode_batch(net, [pending.popleft() for _ in range(min(_BATCH, len(pending)))])
        finally:
            for _, future in pending:
                future.cancel()


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


def _encode_batch(net: HashNet, batch: list[tuple[str, Future[NDArray[np.uint8] | ImageError]]]) -> Iterator[Encoded]:
    results = [future.result() for _, future in batch]
    pictures = [result for result in results if not isinstance(result, ImageError)]
    packed = iter(pack(binarize(relaxed_codes(net, np.stack(pictures))))) if pictures else iter(())
    for (path, _), result in zip(batch, results, strict=True):
        if isinstance(result, ImageError):
            yield Encoded(path, net.config.bits, None, str(result))
        else:
            yield Encoded(path, net.config.bits, next(packed))
