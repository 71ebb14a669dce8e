"""What makes codes, whatever computes it: pictures or vectors -> outputs and codes. Free of torch."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import Packed, binarize, pack
from dsh_cli.config import ModelConfig
from dsh_cli.errors import DivergedError, ImageError
from dsh_cli.pictures import decode
from dsh_cli.pictures.decode import Form, Picture
from dsh_cli.threads import ahead, default_workers

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
NEAR_ZERO = 1e-4  # size of an output below which two ways to compute it may differ in its sign, and so in the bit
_BATCH = 256  # pictures through the network at once, at most
_PIXELS = 256 * 128 * 128  # of the pictures of one batch, at most
VECTORS_AT_ONCE = 4096
_AHEAD = 1024  # codes made before they are asked for, about
_LARGEST = np.finfo(np.float16).max  # of an output; those of a sound network are about 1


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


def at_once(form: Form) -> int:
    """Pictures through a network at once: fewer large ones, whose maps take more memory."""
    return max(1, min(_BATCH, _PIXELS // max(1, form.size) ** 2))


class Encoder(ABC):
    """A network as it makes codes. Threads may share one."""

    in_turn = False  # whether one thread alone computes, as for a GPU

    def __init__(self, model: ModelConfig) -> None:
        self.model, self.bits, self.form = model, model.bits, form_of(model)
        self.at_once = at_once(self.form)

    @abstractmethod
    def _computed(self, inputs: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        """A batch of (n, H, W, channels) pictures, or of (n, d) vectors -> (n, k) outputs."""

    def relaxed(self, inputs: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, H, W, channels) uint8 pictures, or (n, d) float32 vectors -> (n, k) outputs of the network.

        Raises:
            DivergedError: one is not finite, or beyond float16, in which outputs are kept.
        """
        size = VECTORS_AT_ONCE if self.model.of_vectors else self.at_once
        parts = [self._computed(inputs[start : start + size]) for start in range(0, len(inputs), size)]
        return self.sound(parts)

    def sound(self, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Outputs of batches as one, (n, k), of which all can be kept.

        Raises:
            DivergedError: as in `relaxed`.
        """
        outputs = np.concatenate(parts) if parts else np.zeros((0, self.bits), np.float32)
        if not (np.abs(outputs) <= _LARGEST).all():  # which no number is not either
            raise DivergedError(
                "the outputs of the network are not finite, or far too large, and would give no codes: its training "
                "has diverged; train again with a smaller `lr`"
            )
        return outputs

    def _made_ready(self, workers: int) -> Callable[[], None]:
        """What each of so many threads that compute is to do first."""
        return lambda: None

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
        if self.in_turn:
            yield from self._in_turn(items, read, workers)
            return
        share = max(1, self.at_once // workers)
        items = iter(items)
        first = list(islice(items, workers * share))  # few pictures are divided among all workers
        share = max(1, min(share, -(-len(first) // workers)))
        begin, reading = self._made_ready(max(1, min(workers, len(first)))), threading.local()

        def work(some: Sequence[_Item]) -> list[tuple[_Result, Code | None]]:
            if not hasattr(reading, "begun"):
                reading.begun = True
                begin()
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

    def encode_files(self, paths: Iterable[str], workers: int | None = None) -> Iterator[Encoded]:
        """Codes of picture files, in their order, by `workers` threads: one a processor where none are named.

        Pictures that cannot be read come as `Encoded` with an error. Memory does not grow with their number.
        """

        def read(path: str) -> tuple[str | None, Picture | None]:
            try:
                return None, decode.read(path, self.form)
            except ImageError as error:
                return str(error), None

        for path, error, code in self.each(paths, read, workers):
            packed, relaxed = code or (None, None)
            yield Encoded(path, self.bits, packed, error, relaxed)
