"""Which samples of a picture are black and white, where they are not 0 and 255."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[Any]  # of integers or floats
Bands = Callable[[], Iterator[Samples]]  # all samples of a picture, some rows at a time, as often as asked for

# Of the samples that are not 0, one in so many may lie outside a range that is likely before anything is seen ...
_OUTSIDE = 100
# ... and above one that the samples themselves must tell: sensors have fewer hot pixels, nights have more lamps.
ABOVE = 1000
_OVERSHOOT = 1.25  # times white: what resampling and sharpening leave above it, and as far below black
_EXPONENTS = 1100  # of floats: as many below 0, and above, as there can be
_NO_DATA = -999  # or less; others are -9999, -32768 and the lowest number that there is


@dataclass(frozen=True)
class Range:
    """The samples that are black and white; `guessed` from the samples, or said by the file.

    What is `missing` stands for no data, and is black.
    """

    black: float
    white: float
    guessed: bool = False
    missing: float | None = None

    def eight_bits(self, samples: Samples, inverted: bool) -> NDArray[np.uint8]:
        """Samples as 0 to 255: integers keep their highest bits, floats are rounded; what is no number is black.

        Where `inverted`, the range is from white to black.
        """
        eight = self._scaled(samples, inverted)
        if self.missing is not None:
            eight[samples == self.missing] = 0
        return eight

    def _scaled(self, samples: Samples, inverted: bool) -> NDArray[np.uint8]:
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


def of(bands: Bands, bits: int | None, said: Range | None = None, missing: float | None = None) -> Range:
    """The range of a picture.

    It is what the file says, if few samples lie outside: a hundredth of those that are not 0. Otherwise the highest
    sample decides, once the few above it are dropped: a thousandth, or one of 16. Integers have the fewest bits that
    hold it, of 8, 10, 12, and so on; but all 16, or 32, where each is a byte repeated, or each a byte and zeros, which
    pictures of eight bits become. Floats are from 0 to 1, also where a hundredth lies above; or if the highest lies
    above, or below 1/256, to a power of four, or the integer below it from 255 on, by which it may be exceeded by a
    quarter; and to 255 at least if all are whole. Where more than a hundredth are negative, and by more than a quarter
    of the power of two that holds the highest, 0 is grey, and the range goes as far below as above, to such a power.

    Args:
        bands: the samples.
        bits: of an integer sample, without its sign; None for floats.
        said: what the file says.
        missing: the sample that stands for no data; without it, a lowest one that looks like that (see `_no_data`).
    """
    if missing is None and bits not in (16, 32):
        missing = _no_data(bands)

    def known() -> Iterator[Samples]:
        return (_known(band, missing) for band in bands())

    def few_outside(black: float, white: float) -> bool:
        return _are_few(known, lambda samples: (samples < black) | (samples > white))

    if said is not None and said.white > said.black and few_outside(said.black, said.white):
        return replace(said, missing=missing)
    power = _power(known) if bits is None else _bits(known, bits)
    if power is None:
        return Range(0, 1, missing=missing)
    if bits is None and power > 0 and few_outside(-1, 1):
        power = 0
    signed = bits not in (16, 32) and not few_outside(-_OVERSHOOT * 2.0 ** (power - 2), np.inf)
    whole = 16 if power <= 16 else 32
    if 8 < power <= whole and _of_eight_bits(known, whole):
        power = whole - signed
    if bits is None:
        if 0 < power < 8 and _all(known, lambda samples: samples == np.rint(samples)):
            power = 8
        power += 0 if signed else power % 2
        white = 1 if -8 <= power <= 0 else 2.0**power
        black, white = (-white, white) if signed else (0, white - (power >= 8))
        return Range(black, white, guessed=True, missing=missing)
    if signed:
        half = 1 << min(max(7, power), bits)
        return Range(-half, half - 1, half < 1 << bits, missing)
    held = min(max(8, power + power % 2), bits)
    return Range(0, (1 << held) - 1, held < bits, missing)


def _no_data(bands: Bands) -> float | None:
    """The sample that stands for no data, as in pictures of the earth; None if there is none.

    It is the lowest, if it is -999 or less, more than a hundredth have it, and it lies farther below the next than
    twice what all others span.
    """
    lowest = min((float(_finite(band).min(initial=0)) for band in bands()), default=0.0)
    if lowest > _NO_DATA or _are_few(bands, lambda samples: samples == lowest):
        return None
    next_lowest, highest = np.inf, -np.inf
    for band in bands():
        others = _known(band, lowest)
        if others.size:
            next_lowest, highest = min(next_lowest, float(others.min())), max(highest, float(others.max()))
    return lowest if next_lowest - lowest > 2 * (highest - next_lowest) > 0 else None


def _bits(known: Bands, bits: int) -> int | None:
    """The bits, 7 or more, that hold all integers but the few farthest from 0, without a sign; None if all are 0."""
    beyond, counted = [0] * bits, 0
    for band in known():
        sizes = band ^ (band >> bits) if band.dtype.kind == "i" else band  # -128 needs no more than 127
        counted += int(np.count_nonzero(band))
        for held in range(7, bits):
            passed = int(np.count_nonzero(sizes >= 1 << held))
            if not passed:
                break
            beyond[held] += passed
    return next((held for held in range(7, bits) if beyond[held] <= few(counted, ABOVE)), bits) if counted else None


def _power(known: Bands) -> int | None:
    """The least power of two that floats exceed by less than a quarter, up or down, but for the few farthest."""
    counts = np.zeros(2 * _EXPONENTS, np.int64)
    for band in known():
        sizes = np.abs(band[band != 0]) / _OVERSHOOT
        counts += np.bincount(np.frexp(sizes)[1] + _EXPONENTS, minlength=len(counts))
    reached = counts[::-1].cumsum()[::-1]
    above = np.flatnonzero(reached > few(int(reached[0]), ABOVE))
    return int(above[-1]) - _EXPONENTS if len(above) else None


def _of_eight_bits(known: Bands, bits: int) -> bool:
    """Whether each sample of so many bits is a byte repeated, or each a byte and zeros."""
    repeated, zeros = ((1 << bits) - 1) // 255, 1 << bits - 8
    return _all(known, lambda samples: samples % repeated == 0) or _all(known, lambda samples: samples % zeros == 0)


def few(counted: int, share: int) -> float:
    """How many samples are few: one in `share`, or one of 16."""
    return max(counted / share, counted >= 16)


def _are_few(bands: Bands, test: Callable[[Samples], NDArray[np.bool_]]) -> bool:
    """Whether few of the finite samples other than 0 pass a test."""
    passed = counted = 0
    for band in bands():
        finite = _finite(band)
        counted += int(np.count_nonzero(finite))
        passed += int(np.count_nonzero(test(finite)))
    return passed <= few(counted, _OUTSIDE)


def _all(bands: Bands, test: Callable[[Samples], NDArray[np.bool_]]) -> bool:
    return all(test(band).all() for band in bands())


def _known(samples: Samples, missing: float | None) -> Samples:
    """The samples that are finite, and data."""
    finite = _finite(samples)
    return finite if missing is None else finite[finite != missing]


def _finite(samples: Samples) -> Samples:
    return samples[np.isfinite(samples)] if samples.dtype.kind == "f" else samples
