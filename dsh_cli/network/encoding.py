"""Network and pictures -> codes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsh_cli.codes.bits import Packed, binarize, pack
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import ModelConfig
from dsh_cli.errors import DivergedError, ImageError
from dsh_cli.network.model import HashNet
from dsh_cli.pictures import decode, find
from dsh_cli.pictures.decode import Form, Picture
from dsh_cli.threads import ahead, default_workers

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_BATCH = 256  # pictures through the network at once, at most
_PIXELS = 256 * 128 * 128  # of the pictures of one batch, at most
_VECTORS = 4096  # features through the last layers at once
_AHEAD = 1024  # codes made before they are asked for, about
_LARGEST = np.finfo(np.float16).max  # of an output; those of a sound network are about 1
_SETTING = threading.Lock()  # while the number of threads to come is not what it was


@dataclass(frozen=True)
class Encoded:
    """One picture file's code, or why it has none."""

    path: str
    bits: int
    packed: Packed | None  # (ceil(k / 8),) uint8
    error: str | None = None
    relaxed: NDArray[np.float32] | None = None  # (k,) outputs of the network


class Code(NamedTuple):
    """What a network makes of a picture."""

    packed: Packed  # (ceil(k / 8),) uint8
    relaxed: NDArray[np.float32]  # (k,) outputs


def form_of(model: ModelConfig) -> Form:
    """What a network takes."""
    return Form(model.image_size, model.channels, model.fit, model.interpolation)


class Encoder:
    """A network as it makes codes: a copy of it in evaluation mode, folded for speed. Threads may share one."""

    def __init__(self, net: HashNet) -> None:
        self.bits, self.mirror, self.form = net.config.bits, net.config.mirror, form_of(net.config)
        self.device = net.mean.device
        self.at_once = max(
            1, min(_BATCH, _PIXELS // max(1, self.form.size) ** 2)
        )  # fewer large pictures, whose maps take more memory
        self._net = net.folded()

    def relaxed(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, H, W, channels) uint8 pictures -> (n, k) outputs of the network.

        Raises:
            DivergedError: one is not finite, or beyond float16, in which outputs are kept.
        """
        with torch.inference_mode():
            parts = [
                self._net(to_float(torch.tensor(pictures[start : start + self.at_once], device=self.device))).cpu()
                for start in range(0, len(pictures), self.at_once)
            ]
        return self._sound(parts)

    def _sound(self, parts: Sequence[Tensor]) -> NDArray[np.float32]:
        """Outputs (n, k), of which all can be kept."""
        outputs = torch.cat(list(parts)).numpy() if parts else np.zeros((0, self.bits), np.float32)
        if not (np.abs(outputs) <= _LARGEST).all():  # which no number is not either
            raise DivergedError(
                "the outputs of the network are not finite, or far too large, and would give no codes: its training "
                "has diverged; train again with a smaller `lr`"
            )
        return outputs

    def features(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, H, W, channels) uint8 pictures -> (n, d) of what the backbone gives."""
        with torch.inference_mode():
            parts = [
                self._net.features(to_float(torch.tensor(pictures[start : start + self.at_once], device=self.device)))
                for start in range(0, len(pictures), self.at_once)
            ]
        return torch.cat([part.float().cpu() for part in parts]).numpy()

    def of_features(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, views, d) features, or vectors -> (n, k) outputs, the mean of those of the views.

        Raises:
            DivergedError: as in `relaxed`.
        """
        count, views, width = features.shape
        last = self._net if self._net.config.of_vectors else self._net.of_features
        with torch.inference_mode():
            parts = [
                last(torch.tensor(features[start : start + _VECTORS], device=self.device).view(-1, width))
                .view(-1, views, self.bits)
                .mean(dim=1)
                .cpu()
                for start in range(0, count, _VECTORS)
            ]
        return self._sound(parts)

    def each(
        self,
        items: Iterable[_Item],
        read: Callable[[_Item], tuple[_Result, Picture | None]],
        workers: int | None = None,
    ) -> Iterator[tuple[_Item, _Result, Code | None]]:
        """Each item with what `read` says of it and the code of the picture it reads, if any; in order.

        On a CPU every worker both reads and computes: threads that share a convolution wait actively for each other,
        and take the processors from those that read. Elsewhere workers read, and the caller's thread computes.
        Memory does not grow with the number of items.
        """
        workers = workers or default_workers()
        if self.device.type != "cpu":
            yield from self._in_turn(items, read, workers)
            return
        share = max(1, self.at_once // workers)
        items = iter(items)
        first = list(islice(items, workers * share))  # few pictures are divided among all workers
        share = max(1, min(share, -(-len(first) // workers)))
        with _SETTING:
            own = torch.get_num_threads()
        threads = max(1, own // max(1, min(workers, len(first))))
        reading = threading.local()

        def work(some: Sequence[_Item]) -> list[tuple[_Result, Code | None]]:
            if not hasattr(reading, "begun"):
                reading.begun = True
                _compute_with(threads)
            return self._coded([read(item) for item in some])

        for item, (result, code) in ahead(chain(first, items), work, workers, share, _AHEAD):
            yield item, result, code

    def _in_turn(
        self, items: Iterable[_Item], read: Callable[[_Item], tuple[_Result, Picture | None]], workers: int
    ) -> Iterator[tuple[_Item, _Result, Code | None]]:
        def work(some: Sequence[_Item]) -> list[tuple[_Result, Picture | None]]:
            return [read(item) for item in some]

        source = ahead(items, work, workers, max(1, self.at_once // 16), 4 * self.at_once)
        while batch := list(islice(source, self.at_once)):
            for (item, _), (result, code) in zip(batch, self._coded([found for _, found in batch]), strict=True):
                yield item, result, code

    def _coded(self, found: Sequence[tuple[_Result, Picture | None]]) -> list[tuple[_Result, Code | None]]:
        pictures = [picture for _, picture in found if picture is not None]
        codes: Iterator[Code] = iter(())
        if pictures:
            relaxed = self.relaxed(np.stack(pictures))
            codes = map(Code, pack(binarize(relaxed)), relaxed)
        return [(result, None if picture is None else next(codes)) for result, picture in found]


def _compute_with(threads: int) -> None:
    """Let this thread compute with so many. Torch takes the number for threads to come too, so they get theirs back."""
    with _SETTING:
        others = torch.get_num_threads()
        torch.set_num_threads(threads)
        restoring = threading.Thread(target=torch.set_num_threads, args=(others,))
        restoring.start()
        restoring.join()


def encode_files(net: HashNet, paths: Iterable[str], workers: int | None = None) -> Iterator[Encoded]:
    """Codes of picture files, in their order, by `workers` threads: one a processor where none are named.

    Pictures that cannot be read come as `Encoded` with an error. Memory does not grow with their number.
    """
    form = form_of(net.config)

    def read(path: str) -> tuple[str | None, Picture | None]:
        try:
            return None, decode.read(path, form)
        except ImageError as error:
            return str(error), None

    for path, error, code in Encoder(net).each(paths, read, workers):
        packed, relaxed = code or (None, None)
        yield Encoded(path, net.config.bits, packed, error, relaxed)


def encode(net: HashNet, paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> CodeSet:
    """Codes and outputs of picture files, and of the pictures below folders, as a `CodeSet` in their order.

    Raises:
        ImageError: one of them cannot be read; `encode_files` goes on instead.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    found = list(encode_files(net, find.expand(os.fspath(path) for path in given)))
    for item in found:
        if item.error is not None:
            raise ImageError(f"{item.path}: {item.error}")
    width = -(-net.config.bits // 8)
    packed = [item.packed for item in found if item.packed is not None]
    relaxed = [item.relaxed for item in found if item.relaxed is not None]
    return CodeSet(
        bits=net.config.bits,
        packed=np.stack(packed) if packed else np.zeros((0, width), np.uint8),
        labels=np.full(len(found), -1, np.int64),
        classes=(),
        names=tuple(item.path for item in found),
        relaxed=np.stack(relaxed).astype(np.float16) if relaxed else np.zeros((0, net.config.bits), np.float16),
    )


def to_float(images: Tensor) -> Tensor:
    """(B, H, W, channels) uint8 -> (B, channels, H, W) float in [0, 1], a view that is channels last."""
    return images.permute(0, 3, 1, 2).float().div_(255)
