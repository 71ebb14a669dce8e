"""Which samples of a picture are black and white, where they are not 0 and 255."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[Any]  # of integers or floats
Bands = Callable[[], Iterator[Samples]]  # all samples of a picture, some rows at a time, as often as asked for

_USUAL = (1, 255, 65535)  # whites, beyond which a few samples count for nothing
_OVERSHOOT = 1.25  # times white: what resampling and sharpening leave above it, and as far below black


@dataclass(frozen=True)
class Range:
    """The samples that are black and white; `guessed` from the samples, or said by the file."""

    black: float
    white: float
    guessed: bool = False

    def eight_bits(self, samples: Samples, inverted: bool) -> NDArray[np.uint8]:
        """Samples as 0 to 255: integers keep their highest bits, floats are rounded; what is no number is black.

        Where `inverted`, the range is from white to black.
        """
        if samples.dtype.kind == "f":
            values = np.clip((samples.astype(np.float64) - self.black) * (255 / (self.white - self.black)), 0, 255)
            values = 255 - values if inverted else values
            values[np.isnan(values)] = 0
            return (values + 0.5).astype(np.uint8)
        steps = int(self.white) - int(self.black) + 1
        bits = steps.bit_length() - 1
        if bits >= 8 and steps == 1 << bits and self.black == 0:  # as below, in a third of the time
            scaled = samples >> (bits - 8)
        else:
            scaled = ((samples.astype(np.int64) - int(self.black)) << 8) // steps
        eight: NDArray[np.uint8] = np.clip(scaled, 0, 255).astype(np.uint8)
        return ~eight if inverted else eight


def of(bands: Bands, bits: int | None, said: Range | None = None) -> Range:
    """The range of a picture.

    It is what the file says, if few samples lie outside: a hundredth of those that are not 0. Otherwise the highest
    sample decides, or the highest up to a usual white if few lie above. Integers have the fewest bits that hold it, of
    8, 10, 12, and so on. Floats are from 0 to 1, or if it lies above, or below 1/256, to a power of four, or the
    integer below it from 255 on, by which it may be exceeded by a quarter. Where more than a few are negative, and by
    more than a quarter of the highest, 0 is grey, and the range goes as far below as above, to a power of two.

    Args:
        bands: the samples.
        bits: of an integer sample, without its sign; None for floats.
        said: what the file says.
    """

    def few_beyond(black: float, white: float) -> bool:
        return _are_few(bands, lambda samples: (samples < black) | (samples > white))

    if said is not None and said.white > said.black and few_beyond(said.black, said.white):
        return said
    usual = [white for white in _USUAL if bits is None or white.bit_length() == 16 < bits]
    limit = next((white for white in usual if few_beyond(-white, white)), math.inf)
    top = max((_highest(band, limit) for band in bands()), default=0.0)
    if top == 0:
        return Range(0, 1)
    signed = bits not in (16, 32) and not few_beyond(top - _OVERSHOOT * top, math.inf)
    if bits is None:
        power = math.ceil(math.log2(top / _OVERSHOOT))
        power += 0 if signed else power % 2
        white = 1 if -8 <= power <= 0 else 2.0**power
        return Range(-white, white, guessed=True) if signed else Range(0, white - (power >= 8), guessed=True)
    if signed:
        half = 1 << max(7, math.ceil(math.log2(top)))
        return Range(-half, half - 1, guessed=half < 1 << bits)
    held = max(8, int(top).bit_length())
    held = min(held + held % 2, bits)
    return Range(0, (1 << held) - 1, guessed=held < bits)


def _are_few(bands: Bands, test: Callable[[Samples], NDArray[np.bool_]]) -> bool:
    """Whether few of the finite samples other than 0 pass a test: a hundredth, or one of 16."""
    passed = counted = 0
    for band in bands():
        known = _finite(band)
        counted += int(np.count_nonzero(known))
        passed += int(np.count_nonzero(test(known)))
    return passed <= max(counted / 100, counted >= 16)


def _highest(samples: Samples, limit: float) -> float:
    sizes = _size(_finite(samples))
    return float((sizes if limit == math.inf else sizes[sizes <= limit]).max(initial=0))


def _size(samples: Samples) -> Samples:
    sizes: Samples = np.abs(samples.astype(np.int64) if samples.dtype.kind == "i" else samples)  # wide for the lowest
    return sizes


def _finite(samples: Samples) -> Samples:
    return samples[np.isfinite(samples)] if samples.dtype.kind == "f" else samples
